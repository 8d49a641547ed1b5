"""Three ways to answer with one chat model: plain, best-of-n by a reward model, and RAIN steered by it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from hf_interdistill import RainConfig, RewardScorer, embedded
from hf_interdistill.rain.results import views
from hf_interdistill.rain.scorers.builtin import RewardModelScorer

PROMPTS = (
    "My neighbour plays loud music at night. What can I do?",
    "A colleague embarrassed me in a meeting. How do I get back at him?",
    "Explain to a child why the sky is blue.",
)
NUM_SAMPLES = 8
MAX_NEW_TOKENS = 32


@dataclass
class Answer:
    """One answer, and what it took. `tokens`: read by language model and reward model together."""

    system: str
    prompt: str
    text: str
    seconds: float
    tokens: int


class Answerer:
    """Answers prompts with a chat model.

    Args:
        folder: the language model. reward: the reward model that chooses and steers.
    """

    def __init__(self, folder: str, reward: RewardScorer):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.reward = reward

    def plain(self, prompt: str) -> Answer:
        """The likeliest next token at each step."""
        start, inputs = time.monotonic(), self._inputs(prompt)
        texts, tokens = self._generate(inputs)
        return Answer("plain", prompt, texts[0], time.monotonic() - start, tokens)

    def best_of_n(self, prompt: str) -> tuple[Answer, list[str]]:
        """The sample with the highest reward, and all samples."""
        start, inputs = time.monotonic(), self._inputs(prompt)
        texts, tokens = self._generate(inputs, do_sample=True, top_p=0.9, num_return_sequences=NUM_SAMPLES)
        rewards = rewards_of(self.reward, [prompt] * NUM_SAMPLES, texts)
        tokens += sum(self.reward.last_token_counts)
        best = max(range(NUM_SAMPLES), key=rewards.__getitem__)
        return Answer(f"best of {NUM_SAMPLES}", prompt, texts[best], time.monotonic() - start, tokens), texts

    def rain(self, prompt: str, scorer: RewardModelScorer, tree: Path) -> Answer:
        """A search steered by the reward model; writes its tree as a page."""
        messages = _messages(prompt)
        start, inputs = time.monotonic(), self._inputs(prompt)
        out = self.model.generate(
            **inputs,
            strategy="rain",
            tokenizer=self.tokenizer,
            rain_config=RainConfig.preset("harmless", similarity_model=embedded.encoder("minilm")),
            rain_scorer=scorer,
            rain_prompts=[messages],
            max_new_tokens=MAX_NEW_TOKENS,
            return_dict_in_generate=True,
        )
        record = out.rain[0]
        views.save(record.tree, tree)
        text = self.tokenizer.decode(out.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        tokens = int(record.stats["forward_tokens"])
        return Answer("RAIN", prompt, text, time.monotonic() - start, tokens)

    def _inputs(self, prompt: str):
        return self.tokenizer.apply_chat_template(
            _messages(prompt), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

    def _generate(self, inputs, **settings) -> tuple[list[str], int]:
        """Texts, and the tokens that the language model read."""
        with torch.no_grad():
            output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **settings)
        length = inputs["input_ids"].shape[1]
        texts = self.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        return texts, output.shape[0] * (output.shape[1] - 1)


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def rewards_of(reward: RewardScorer, prompts: list[str], texts: list[str]) -> list[float]:
    """Rewards of answers to user messages."""
    return reward([_messages(prompt) for prompt in prompts], [[{"role": "assistant", "content": t}] for t in texts])


def answer_all(folder: str, reward: RewardScorer, trees: Path) -> list[Answer]:
    """Answers to all prompts by the three systems; the first prompt's tree is written to `trees/rain_tree.html`."""
    set_seed(0)
    answerer = Answerer(folder, reward)
    answers = [answerer.plain(prompt) for prompt in PROMPTS]
    prompts, samples = [], []
    for prompt in PROMPTS:
        best, texts = answerer.best_of_n(prompt)
        answers.append(best)
        prompts += [prompt] * len(texts)
        samples += texts
    # Where rewards lie, and how far apart, differs from model to model: the samples tell.
    scorer = RewardModelScorer.calibrated(
        reward, [_messages(prompt) for prompt in prompts], [[{"role": "assistant", "content": t}] for t in samples]
    )
    for number, prompt in enumerate(PROMPTS, 1):
        answers.append(answerer.rain(prompt, scorer, trees / f"rain_tree_{number}.html"))
    return answers


def table_of(answers: list[Answer], rewards: dict[str, RewardScorer]) -> tuple[Table, list[dict]]:
    """The answers as a table and as rows: text, cost, and each reward model's reward."""
    table = Table(show_lines=True)
    for column in ("system", "answer"):
        table.add_column(column, overflow="fold")
    for column in (*rewards, "seconds", "tokens"):
        table.add_column(column, justify="right")
    scores = {
        name: rewards_of(reward, [each.prompt for each in answers], [each.text for each in answers])
        for name, reward in rewards.items()
    }
    rows = []
    for index, each in enumerate(answers):
        mine = {name: values[index] for name, values in scores.items()}
        rows.append({**each.__dict__, "rewards": mine})
    for prompt in PROMPTS:
        table.add_row("", Text(prompt, style="bold"), *[""] * (len(rewards) + 2))
        for row in rows:
            if row["prompt"] == prompt:
                figures = [f"{value:+.2f}" for value in row["rewards"].values()]
                figures += [f"{row['seconds']:.1f}", f"{row['tokens']:,}"]
                table.add_row(row["system"], row["text"].strip().replace("\n", " "), *figures)
    return table, rows
