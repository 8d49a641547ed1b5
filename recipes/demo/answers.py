"""Three ways to answer with one chat model: plain, best-of-n by a reward model, and RAIN steered by it."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
MAX_NEW_TOKENS = 24
# For all three: so small a model repeats itself otherwise, and a reward model of 300 pairs may like that.
SETTINGS = {"max_new_tokens": MAX_NEW_TOKENS, "no_repeat_ngram_size": 3}
SAMPLING = {"do_sample": True, "top_p": 0.8}


@dataclass
class Answer:
    """One answer, and what it took.

    `seconds`: of all prompts together, divided by their number. `tokens`: read by language model and reward model.
    """

    system: str
    prompt: str
    text: str
    seconds: float
    tokens: int


class Answerer:
    """Answers prompts with a chat model, all at once.

    Args:
        folder: the language model, which is read in `dtype`. reward: the reward model that chooses and steers.
    """

    def __init__(self, folder: str, reward: RewardScorer, dtype: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.reward = reward
        self.inputs = self.tokenizer.apply_chat_template(
            [_messages(prompt) for prompt in PROMPTS],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )

    def plain(self) -> list[Answer]:
        """The likeliest next token at each step."""
        start = time.monotonic()
        texts, tokens = self._generate()
        return _answers("plain", texts, start, tokens)

    def best_of_n(self) -> tuple[list[Answer], list[str]]:
        """The sample with the highest reward for each prompt, and all samples, `NUM_SAMPLES` a prompt."""
        start = time.monotonic()
        texts, counts = self._generate(**SAMPLING, num_return_sequences=NUM_SAMPLES)
        rewards = rewards_of(self.reward, _repeated(PROMPTS), texts)
        counts = [count + read for count, read in zip(counts, self.reward.last_token_counts, strict=True)]
        groups = [range(first, first + NUM_SAMPLES) for first in range(0, len(texts), NUM_SAMPLES)]
        best = [texts[max(group, key=rewards.__getitem__)] for group in groups]
        tokens = [sum(counts[index] for index in group) for group in groups]
        return _answers(f"best of {NUM_SAMPLES}", best, start, tokens), texts

    def rain(self, scorer: RewardModelScorer, trees: Path) -> list[Answer]:
        """Searches steered by the reward model; writes their trees as pages, `rain_tree_1.html` and so on."""
        start = time.monotonic()
        out = self.model.generate(
            **self.inputs,
            strategy="rain",
            tokenizer=self.tokenizer,
            rain_config=RainConfig.preset("harmless", similarity_model=embedded.encoder("minilm")),
            rain_scorer=scorer,
            rain_prompts=[_messages(prompt) for prompt in PROMPTS],
            **SETTINGS,
            **SAMPLING,
            return_dict_in_generate=True,
        )
        answers = _answers(
            "RAIN", self._texts(out.sequences), start, [int(record.stats["forward_tokens"]) for record in out.rain]
        )
        for number, record in enumerate(out.rain, 1):
            views.save(record.tree, trees / f"rain_tree_{number}.html")
        return answers

    def _generate(self, **settings) -> tuple[list[str], list[int]]:
        """Texts, and the tokens that the language model read for each."""
        with torch.no_grad():
            output = self.model.generate(**self.inputs, **SETTINGS, **settings)
        length = self.inputs["input_ids"].shape[1]
        prompts = self.inputs["attention_mask"].sum(1).repeat_interleave(len(output) // len(PROMPTS))
        # The last token is written and not read.
        written = (output[:, length:] != self.tokenizer.pad_token_id).sum(1)
        return self._texts(output), (prompts + written.clamp(max=MAX_NEW_TOKENS - 1)).tolist()  # the last is not read

    def _texts(self, output: torch.Tensor) -> list[str]:
        length = self.inputs["input_ids"].shape[1]
        return self.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)


def _answers(system: str, texts: list[str], start: float, tokens: list[int]) -> list[Answer]:
    seconds = (time.monotonic() - start) / len(PROMPTS)
    made = zip(PROMPTS, texts, tokens, strict=True)
    return [Answer(system, prompt, text, seconds, count) for prompt, text, count in made]


def _repeated(prompts: Sequence[str]) -> list[str]:
    return [prompt for prompt in prompts for _ in range(NUM_SAMPLES)]


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _replies(texts: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def rewards_of(reward: RewardScorer, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Rewards of answers to user messages."""
    return reward([_messages(prompt) for prompt in prompts], _replies(texts))


def answer_all(folder: str, reward: RewardScorer, trees: Path, dtype: str = "float32") -> list[Answer]:
    """Answers to all prompts by the three systems; RAIN's trees are written into the folder `trees`."""
    set_seed(0)
    answerer = Answerer(folder, reward, dtype)
    plain = answerer.plain()
    best, samples = answerer.best_of_n()
    # Where rewards lie, and how far apart, differs from model to model: the samples tell.
    prompts = [_messages(prompt) for prompt in _repeated(PROMPTS)]
    scorer = RewardModelScorer.calibrated(reward, prompts, _replies(samples))
    return [*plain, *best, *answerer.rain(scorer, trees)]


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
