"""LLMBar (arXiv 2310.07641): which of two outputs follows the instruction.

Source: github.com/princeton-nlp/LLMBar at 900616b, `LLMEvaluator/evaluate.py`, the rating approach: the first output
wins in one order only if it scores higher, the second in the other order only if it scores higher, and the accuracy is
the mean of both orders (`correct_average`). So a tie is half right. The authors' code stops at the subsets; that the
Adversarial score is the mean of its four subsets and the total the mean of all five is our reading of the paper's
tables.

Rows: `input`, `output_1`, `output_2`, `label` (1 or 2). The subset is named by the folder
(`Adversarial/Neighbor/dataset.json`) or the file's name. The repository on the Hub is a loading script, which
`datasets` no longer runs, so the files are read from GitHub.
"""

from __future__ import annotations

import re

from .items import Benchmark, HubSource, Item, Result, Row, SubsetScore, by_subset, mean, mean_subset, user_message

ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SUBSETS = ("Natural", *ADVERSARIAL)
_FILES = "https://raw.githubusercontent.com/princeton-nlp/LLMBar/main/Dataset/LLMBar/{}/dataset.json"


def parse_row(row: Row) -> Item:
    """The item of a row, in the published order."""
    words = [word.lower() for word in re.split(r"[^A-Za-z]+", row.part)]
    subset = next((subset for subset in SUBSETS if subset.lower() in words), None)
    if subset is None:
        raise ValueError(
            f"{row.location}: `{row.part}` names no subset of LLMBar. Give a folder or a file that does "
            f"({', '.join(SUBSETS)}), as in the authors' repository."
        )
    label = row.get("label", int)
    if label not in (1, 2):
        raise ValueError(f"{row.location}: `label` is {label}, but must be 1 or 2.")
    outputs = (row.get("output_1", str), row.get("output_2", str))
    prompt, better = user_message(row.get("input", str)), label - 1
    return Item(row.location, subset, prompt, outputs, {"better": better}, ((better, 1 - better),), (0, 1))


def judge(items, rewards, is_tie_half: bool) -> dict[str, SubsetScore]:
    """The subsets; a tie is half right anyway."""
    groups = by_subset(items, rewards)
    return {name: mean_subset(groups[name], _score_pair, is_tie_half) for name in SUBSETS if name in groups}


def combine(subsets: dict[str, SubsetScore]) -> Result:
    """Subsets, the adversarial mean, the total."""
    adversarial = [subsets[name].score for name in ADVERSARIAL if name in subsets]
    sections = {"Adversarial": mean(adversarial)} if adversarial else {}
    total = mean([subset.score for subset in subsets.values()])
    return Result(subsets, sections, total, tuple(name for name in SUBSETS if name not in subsets))


def _score_pair(item: Item, rewards) -> float:
    if rewards[0] == rewards[1]:
        return 0.5
    return float((rewards[1] > rewards[0]) == item.facts["better"])


_HUB = tuple(
    HubSource(
        "json", "train", part=name, data_files=_FILES.format(name if name == "Natural" else f"Adversarial/{name}")
    )
    for name in SUBSETS
)
LLMBAR = Benchmark("llmbar", _HUB, parse_row, judge, combine)
