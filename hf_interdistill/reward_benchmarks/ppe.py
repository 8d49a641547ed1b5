"""PPE, Preference Proxy Evaluations (arXiv 2410.14872): human preference, and correctness of 32 answers.

Source: the authors' post (lmarena.github.io, "Preference Proxy Evaluations", 2024-10-20) and the datasets' cards.
Their code was not available, so only what these describe is computed:

- `ppe_human_preference`: accuracy over the pairs with a winner; votes for a tie are left out. Sections: the same for
  the rows marked hard, easy, instruction-following, math and code.
- `ppe_correctness`: in each of five domains the accuracy over the pairs of a right and a wrong answer in
  `sampled_conflict_pairs`; the total is the mean of the five domains (the post's table). Sections: `best_of_k`, the
  share of right answers among those that the model ranks first of all, by domain (equal rewards share the place).

Not found, so ours: a tie of rewards is a wrong pair. Not computed: the published Loss, Max score and End score of
best-of-k curves, AUC, and the rankings of models (Spearman, Kendall, separability, row-wise Pearson, Brier,
confidence agreement).

Rows, preference: `prompt`, `response_1`, `response_2`, `winner` (`model_a`, `model_b`, or a tie), `hard_prompt`,
`easy_prompt`, `if_prompt`, `math_prompt`, `is_code`. Correctness: `prompt`, `response_1` ... `response_32`, `scores`
(right or wrong), `sampled_conflict_pairs`; the domain is named by the file (`mmlu_pro`, `math`, `gpqa`,
`mbpp_plus`, `ifeval`).
"""

from __future__ import annotations

import re
from pathlib import PurePath

from .items import (
    Benchmark,
    HubSource,
    Item,
    Result,
    Row,
    SubsetScore,
    by_subset,
    chosen_is_above,
    is_above,
    mean,
    mean_subset,
    user_message,
)

CATEGORIES = {
    "hard": "hard_prompt",
    "easy": "easy_prompt",
    "instruction following": "if_prompt",
    "math": "math_prompt",
    "code": "is_code",
}
DOMAINS = {
    "mmlu_pro": "lmarena-ai/PPE-MMLU-Pro-Best-of-K",
    "math": "lmarena-ai/PPE-MATH-Best-of-K",
    "gpqa": "lmarena-ai/PPE-GPQA-Best-of-K",
    "mbpp_plus": "lmarena-ai/PPE-MBPP-Plus-Best-of-K",
    "ifeval": "lmarena-ai/PPE-IFEval-Best-of-K",
}
_WINNERS = {"model_a": 0, "model_b": 1}


def parse_preference(row: Row) -> Item | None:
    """The item of a row, the preferred answer first; none where the voter saw a tie."""
    winner = row.get("winner", str)
    if winner not in _WINNERS:
        if not winner.startswith("tie"):
            raise ValueError(f"{row.location}: `winner` is {winner!r}, but must be `model_a`, `model_b` or a tie.")
        return None
    answers = [row.get("response_1", str), row.get("response_2", str)]
    better = _WINNERS[winner]
    categories = [name for name, column in CATEGORIES.items() if row.values.get(column)]
    prompt = user_message(row.get("prompt", str))
    candidates, order = (answers[better], answers[1 - better]), (better, 1 - better)
    return Item(row.location, "all", prompt, candidates, {"categories": categories}, ((0, 1),), order)


def judge_preference(items, rewards, is_tie_half: bool) -> dict[str, SubsetScore]:
    """All pairs, and those of each category."""
    group = list(zip(items, rewards, strict=True))
    parts = {"all": group}
    for category in CATEGORIES:
        parts[category] = [(item, values) for item, values in group if category in item.facts["categories"]]
    return {name: mean_subset(part, chosen_is_above, is_tie_half) for name, part in parts.items() if part}


def combine_preference(cells: dict[str, SubsetScore]) -> Result:
    """Accuracy over all pairs and by category."""
    sections = {name: cell.score for name, cell in cells.items() if name in CATEGORIES}
    return Result({"all": cells["all"]}, sections, cells["all"].score)


def parse_correctness(row: Row) -> Item:
    """The item of a row: all its answers."""
    name = re.sub(r"[^a-z]+", "_", PurePath(row.part).name.lower())
    domain = next((domain for domain in DOMAINS if domain in name), None)
    if domain is None:
        raise ValueError(
            f"{row.location}: the file's name ({row.part!r}) names no domain of PPE ({', '.join(DOMAINS)})."
        )
    scores, pairs = row.get("scores", list), row.get("sampled_conflict_pairs", list)
    answers = tuple(row.get(f"response_{number}", str) for number in range(1, len(scores) + 1))
    for pair in pairs:
        if len(pair) != 2 or not all(0 <= index < len(scores) for index in pair):
            raise ValueError(f"{row.location}: the conflict pair {pair} must be two indices of {len(scores)} answers.")
        if bool(scores[pair[0]]) == bool(scores[pair[1]]):
            raise ValueError(f"{row.location}: the answers of the conflict pair {pair} are both right or both wrong.")
    facts = {"is_right": [bool(score) for score in scores]}
    ordered = tuple((one, other) if scores[one] else (other, one) for one, other in pairs)
    prompt, order = user_message(row.get("prompt", str)), tuple(range(len(answers)))
    return Item(row.location, domain, prompt, answers, facts, ordered, order)


def judge_correctness(items, rewards, is_tie_half: bool) -> dict[str, SubsetScore]:
    """Accuracy and best of k by domain."""
    groups = by_subset(items, rewards)
    cells = {}
    for domain in DOMAINS:
        group = groups.get(domain, [])
        pairs = [(values[right], values[wrong]) for item, values in group for right, wrong in item.pairs]
        if pairs:
            ties = sum(right == wrong for right, wrong in pairs)
            score = mean([is_above(right, wrong, is_tie_half) for right, wrong in pairs])
            cells[domain] = SubsetScore(score, len(group), ties, len(pairs))
        if group:
            cells[f"{domain}/best_of_k"] = SubsetScore(mean([_pick(*each) for each in group]), len(group), 0)
    return cells


def combine_correctness(cells: dict[str, SubsetScore]) -> Result:
    """Accuracy by domain, best of k by domain, mean of the domains.

    Raises:
        ValueError: there is no conflict pair.
    """
    subsets = {domain: cells[domain] for domain in DOMAINS if domain in cells}
    if not subsets:
        raise ValueError("No row of the data has a conflict pair, so PPE's accuracy is not defined.")
    sections = {f"{domain}/best_of_k": cells[f"{domain}/best_of_k"].score for domain in subsets}
    sections["best_of_k"] = mean(list(sections.values()))
    total = mean([subset.score for subset in subsets.values()])
    return Result(subsets, sections, total, tuple(domain for domain in DOMAINS if domain not in subsets))


def _pick(item: Item, rewards) -> float:
    best = max(rewards)
    picks = [is_right for is_right, reward in zip(item.facts["is_right"], rewards, strict=True) if reward == best]
    return mean(picks)


PPE_HUMAN_PREFERENCE = Benchmark(
    "ppe_human_preference",
    (HubSource("lmarena-ai/PPE-Human-Preference-V1", "test"),),
    parse_preference,
    judge_preference,
    combine_preference,
)
PPE_CORRECTNESS = Benchmark(
    "ppe_correctness",
    tuple(HubSource(path, "train", part=domain) for domain, path in DOMAINS.items()),
    parse_correctness,
    judge_correctness,
    combine_correctness,
)
