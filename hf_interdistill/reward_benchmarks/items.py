"""The parts of every benchmark: rows as published, items to score, and results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Rewards = Sequence[float]


@dataclass(frozen=True)
class Row:
    """A published row.

    `location` names it for errors (file and line); `part` is the split or the path of the file that it came from, for
    benchmarks whose subset depends on it.
    """

    location: str
    part: str
    values: Mapping[str, Any]

    def get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """A required value of a given type.

        Raises:
            ValueError: it is not; the message names file, line and column.
        """
        if name not in self.values:
            raise ValueError(f"{self.location} has no `{name}`; its columns are {sorted(self.values)}.")
        value = self.values[name]
        if not isinstance(value, kind):
            kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise ValueError(f"{self.location}: `{name}` is {value!r:.80}, but must be a {kinds}.")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts that is not empty."""
        values = self.get(name, list)
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self.location}: `{name}` is {values!r:.80}, but must be a list of texts, not empty.")
        return values


@dataclass(frozen=True)
class Item:
    """A prompt and its candidates, to be scored.

    `facts` holds what the benchmark needs to judge the rewards, `pairs` the comparisons it makes, as numbers of the
    right and the wrong candidate. `order` is each candidate's place in the published row, none where the row names the
    right answers, so that their order has no meaning.
    """

    location: str
    subset: str
    prompt: list[dict[str, str]]
    candidates: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    pairs: tuple[tuple[int, int], ...] = ()
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SubsetScore:
    """`score` in [0, 1] unless the benchmark says otherwise; `rows` it rests on; `ties`, equal rewards among them that
    mattered (counted into the score as the benchmark's authors count them); `comparisons` that the score is the mean
    of, where they are not the rows."""

    score: float
    rows: int
    ties: int
    comparisons: int | None = None

    @property
    def weight(self) -> int:
        """What the score weighs when rows are pooled."""
        return self.rows if self.comparisons is None else self.comparisons


@dataclass(frozen=True)
class Result:
    """Scores of a model on a benchmark.

    `sections` are the authors' groups of subsets, `total` their total over what was there, and `missing` the subsets
    that were not: with any, `total` is not the published number.
    """

    subsets: dict[str, SubsetScore]
    sections: dict[str, float]
    total: float
    missing: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(subset.rows for subset in self.subsets.values())

    @property
    def ties(self) -> int:
        return sum(subset.ties for subset in self.subsets.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        subsets = {
            name: {"score": each.score, "rows": each.rows, "ties": each.ties} for name, each in self.subsets.items()
        }
        counts = {"missing": list(self.missing), "rows": self.rows, "ties": self.ties}
        return {**asdict(self), "subsets": subsets, **counts}

    def scores(self) -> dict[str, float]:
        """All scores by their names in tables: subsets, `[sections]`, `total`."""
        subsets = {name: subset.score for name, subset in self.subsets.items()}
        return {**subsets, **{f"[{name}]": score for name, score in self.sections.items()}, "total": self.total}


@dataclass(frozen=True)
class HubSource:
    """Where rows are published: arguments of `datasets.load_dataset`; `part` replaces the split's name."""

    path: str
    split: str
    part: str | None = None
    data_files: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """Where the rows are, how a row becomes an item (none if it does not count), how rewards become scores.

    `judge` has the items, their rewards, and whether a tie is half right, as chance would have it, or what the authors
    make of it; it returns the scores that all others are means of. `combine` makes the result of these. It is linear
    in the scores, and takes arrays of them as well.
    """

    name: str
    hub: tuple[HubSource, ...]
    parse: Callable[[Row], Item | None]
    judge: Callable[[Sequence[Item], Sequence[Rewards], bool], dict[str, SubsetScore]]
    combine: Callable[[dict[str, SubsetScore]], Result]

    def aggregate(self, items: Sequence[Item], rewards: Sequence[Rewards], *, is_tie_half: bool = False) -> Result:
        """The result of a model on items.

        Raises:
            ValueError: these items make no score of this benchmark.
        """
        return self.combine(self.judge(items, rewards, is_tie_half))


def user_message(text: str) -> list[dict[str, str]]:
    """A prompt of one turn."""
    return [{"role": "user", "content": text}]


def by_subset(items: Sequence[Item], rewards: Sequence[Rewards]) -> dict[str, list[tuple[Item, Rewards]]]:
    """Items and their rewards, grouped, in order of first appearance."""
    groups: dict[str, list[tuple[Item, Rewards]]] = {}
    for item, values in zip(items, rewards, strict=True):
        groups.setdefault(item.subset, []).append((item, values))
    return groups


def judged_together(items: Sequence[Item]) -> list[list[int]]:
    """Numbers of the items that are judged as one: the two rows of a prompt in RewardBench 2's Ties, else each alone.

    A row of Ties without its partner is left out, as in the benchmark's own score.
    """
    groups: dict[tuple, list[int]] = {}
    for number, item in enumerate(items):
        is_tie = "kind" in item.facts
        groups.setdefault((item.subset, item.facts["prompt"]) if is_tie else (number,), []).append(number)
    return [
        group
        for group in groups.values()
        if "kind" not in items[group[0]].facts or {items[i].facts["kind"] for i in group} == {"ref", "tied"}
    ]


def mean_subset(
    group: Sequence[tuple[Item, Rewards]], score: Callable[[Item, Rewards], float], is_tie_half: bool
) -> SubsetScore:
    """Mean score of the pairs; a tie is a pair of equal rewards."""
    is_tie = [values[0] == values[1] for _, values in group]
    scores = [
        0.5 if is_tie_half and tied else score(item, values)
        for (item, values), tied in zip(group, is_tie, strict=True)
    ]
    return SubsetScore(mean(scores), len(group), sum(is_tie))


def chosen_is_above(item: Item, rewards: Rewards) -> float:
    """1 if the first candidate is strictly above the second: a tie is wrong."""
    return float(rewards[0] > rewards[1])


def is_above(right: float, wrong: float, is_tie_half: bool) -> float:
    """1 if the right answer has the higher reward, 0 if not; a tie is wrong, or half."""
    return 0.5 if is_tie_half and right == wrong else float(right > wrong)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
