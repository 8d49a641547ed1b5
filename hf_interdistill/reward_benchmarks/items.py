"""What every benchmark is made of: rows as published, items to score, and what comes out."""

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
        """A value that must be there and of a kind.

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
    """A prompt and its candidates, to be scored: `facts` holds what the benchmark needs to judge the rewards."""

    location: str
    subset: str
    prompt: list[dict[str, str]]
    candidates: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SubsetScore:
    """`score` in [0, 1] unless the benchmark says otherwise; `rows` it rests on; `ties`, equal rewards among them that
    mattered (counted into the score as the benchmark's authors count them)."""

    score: float
    rows: int
    ties: int


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
        return {**asdict(self), "missing": list(self.missing), "rows": self.rows, "ties": self.ties}


@dataclass(frozen=True)
class HubSource:
    """Where rows are published: arguments of `datasets.load_dataset`; `part` replaces the split's name."""

    path: str
    split: str
    part: str | None = None
    data_files: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """Where the rows are, how a row becomes an item (none if it does not count), how rewards become scores."""

    name: str
    hub: tuple[HubSource, ...]
    parse: Callable[[Row], Item | None]
    aggregate: Callable[[Sequence[Item], Sequence[Rewards]], Result]


def user_message(text: str) -> list[dict[str, str]]:
    """A prompt of one turn."""
    return [{"role": "user", "content": text}]


def by_subset(items: Sequence[Item], rewards: Sequence[Rewards]) -> dict[str, list[tuple[Item, Rewards]]]:
    """Items and their rewards, grouped, in order of first appearance."""
    groups: dict[str, list[tuple[Item, Rewards]]] = {}
    for item, values in zip(items, rewards, strict=True):
        groups.setdefault(item.subset, []).append((item, values))
    return groups


def mean_subset(group: Sequence[tuple[Item, Rewards]], score: Callable[[Item, Rewards], float]) -> SubsetScore:
    """Mean score of the pairs; a tie is a pair of equal rewards."""
    ties = sum(values[0] == values[1] for _, values in group)
    return SubsetScore(mean([score(item, values) for item, values in group]), len(group), ties)


def chosen_is_above(item: Item, rewards: Rewards) -> float:
    """1 if the first candidate is strictly above the second: a tie is wrong."""
    return float(rewards[0] > rewards[1])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
