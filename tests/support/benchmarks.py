"""Items of benchmarks whose answers have given lengths."""

from __future__ import annotations

import math
from pathlib import Path

from hf_interdistill.reward_benchmarks import BENCHMARKS
from hf_interdistill.reward_benchmarks.items import Item, Row
from hf_interdistill.reward_benchmarks.loading import load_items
from support.datasets import ROOT

SAMPLES = ROOT / "tests" / "reward_benchmarks" / "samples"


def sample_path(name: str) -> Path:
    """The sample file or folder of a benchmark."""
    if name == "reward_bench":
        return SAMPLES / "reward_bench" / "filtered.jsonl"
    stem = name.removesuffix("_claude").removesuffix("_with_prior_sets")
    return next(path for path in SAMPLES.iterdir() if path.stem == stem)


def sample_items(name: str) -> list[Item]:
    """The items of the samples."""
    return load_items(BENCHMARKS[name], str(sample_path(name)))


def reward_bench_items(*rows: tuple[str, int, int]) -> list[Item]:
    """Pairs of RewardBench: subset, length of the chosen and of the rejected answer."""
    return [
        BENCHMARKS["reward_bench"].parse(
            Row(
                "file, line 1",
                "filtered",
                {"prompt": "p", "chosen": "c" * one, "rejected": "r" * other, "subset": name},
            )
        )
        for name, one, other in rows
    ]


def reward_bench_2_item(subset: str, right: list[int], wrong: list[int], name: str = "0") -> Item:
    """A row of RewardBench 2 by the lengths of its right and its wrong answers."""
    values = {"id": name, "prompt": "p", "subset": subset, "num_correct": len(right)}
    values |= {"chosen": ["c" * length for length in right], "rejected": ["r" * length for length in wrong]}
    return BENCHMARKS["reward_bench_2"].parse(Row("file, line 1", "test", values))


def exact_interval(right: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson, from the binomial's own sums: each bound has a tail of 2.5 %."""

    def solved(tail, target) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if tail(middle) < target else (low, middle)
        return low

    def chance(numbers, share) -> float:
        return sum(math.comb(trials, n) * share**n * (1 - share) ** (trials - n) for n in numbers)

    low = solved(lambda share: chance(range(right, trials + 1), share), 0.025) if right else 0.0
    high = solved(lambda share: chance(range(right + 1, trials + 1), share), 0.975) if right < trials else 1.0
    return low, high
