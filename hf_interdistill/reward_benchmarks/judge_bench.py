"""JudgeBench (arXiv 2410.12784): pairs of answers of one model to hard questions, one of them right.

Source: github.com/ScalerLab/JudgeBench at e2c52c2. Reward models are run in the published order alone (README,
`--single_game`). The decision is A>B if A has the higher reward, else B>A (`utils/judges.py`), so a tie is right
exactly where B is. Score: share of right decisions for each kind of source and over all pairs (`run_judge.py`). The
answers of each response model are a benchmark of their own: 350 pairs of GPT-4o (`judge_bench`), 270 of Claude 3.5
Sonnet (`judge_bench_claude`).

Rows: `source`, `question`, `response_model`, `response_A`, `response_B`, `label` (`A>B` or `B>A`).
"""

from __future__ import annotations

from .items import Benchmark, HubSource, Item, Result, Row, SubsetScore, by_subset, mean_subset, user_message

SUBSETS = {
    "knowledge": "mmlu-pro",
    "reasoning": "livebench-reasoning",
    "math": "livebench-math",
    "coding": "livecodebench",
}


def parse_row(row: Row) -> Item:
    """The item of a row, in the published order."""
    source, label = row.get("source", str), row.get("label", str)
    subset = next((name for name, start in SUBSETS.items() if source.startswith(start)), None)
    if subset is None:
        raise ValueError(
            f"{row.location}: the source `{source}` belongs to no category of JudgeBench "
            f"({', '.join(SUBSETS.values())})."
        )
    if label not in ("A>B", "B>A"):
        raise ValueError(f"{row.location}: `label` is {label!r}, but must be `A>B` or `B>A`.")
    answers = (row.get("response_A", str), row.get("response_B", str))
    is_a_better = label == "A>B"
    facts = {"is_a_better": is_a_better, "response_model": row.get("response_model", str)}
    pairs = ((0, 1) if is_a_better else (1, 0),)
    return Item(row.location, subset, user_message(row.get("question", str)), answers, facts, pairs, (0, 1))


def judge(items, rewards, is_tie_half: bool) -> dict[str, SubsetScore]:
    """The categories.

    Raises:
        ValueError: pairs of several response models, which the authors never mix.
    """
    models = sorted({item.facts["response_model"] for item in items})
    if len(models) > 1:
        raise ValueError(f"JudgeBench scores each response model separately, but the data hold {', '.join(models)}.")
    groups = by_subset(items, rewards)
    return {name: mean_subset(groups[name], _score_pair, is_tie_half) for name in SUBSETS if name in groups}


def combine(subsets: dict[str, SubsetScore]) -> Result:
    """Categories and the share over all pairs."""
    rows = sum(subset.rows for subset in subsets.values())
    total = sum(subset.score * subset.rows for subset in subsets.values()) / rows
    return Result(subsets, {}, total, tuple(name for name in SUBSETS if name not in subsets))


def _score_pair(item: Item, rewards) -> float:
    return float((rewards[0] > rewards[1]) == item.facts["is_a_better"])


JUDGE_BENCH = Benchmark("judge_bench", (HubSource("ScalerLab/JudgeBench", "gpt"),), parse_row, judge, combine)
JUDGE_BENCH_CLAUDE = Benchmark(
    "judge_bench_claude", (HubSource("ScalerLab/JudgeBench", "claude"),), parse_row, judge, combine
)
