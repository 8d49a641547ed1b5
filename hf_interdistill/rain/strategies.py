"""The strategies of the search engine, and which settings each of them reads."""

from __future__ import annotations

from dataclasses import dataclass

_EVERY = frozenset(
    {
        *("strategy", "candidates", "expansion_temperature", "turn_markers", "max_batch_size", "seed", "cuda_graphs"),
        *("judge", "judge_vote", "judge_orders", "judge_calibration"),
    }
)


@dataclass(frozen=True)
class Strategy:
    """What a strategy is, and what it reads.

    Args:
        title: its name in prose.
        source: arXiv id.
        summary: what it does, in one sentence.
        reads: the fields of `RainConfig` that change it; `None` for all that no other strategy has to itself.
    """

    title: str
    source: str
    summary: str
    reads: frozenset[str] | None

    @property
    def heading(self) -> str:
        """The title with a capital letter."""
        return f"{self.title[0].upper()}{self.title[1:]}"


STRATEGIES: dict[str, Strategy] = {
    "rain": Strategy(
        "RAIN",
        "2309.07124",
        "A tree search that rolls out, scores, rewinds, and commits the token set that it visited most.",
        None,
    ),
    "best_of_n": Strategy(
        "best-of-n",
        "2009.01325",
        "`candidates` whole answers are sampled, and the one of the highest score is taken.",
        _EVERY | {"sample_top_k"},
    ),
    "beam": Strategy(
        "chunk-wise beam search",
        "2405.19262",
        "Each of `beams` texts is continued by `candidates` sampled chunks, of which the best `beams` are kept.",
        _EVERY | {"sample_top_k", "edge_lengths", "beams"},
    ),
    "args": Strategy(
        "ARGS",
        "2402.01694",
        "Of the `candidates` likeliest tokens the one of the highest log probability + weight x score is taken.",
        _EVERY | {"reward_weight"},
    ),
    "rad": Strategy(
        "reward-augmented decoding",
        "2310.09520",
        "A token is sampled from the `candidates` likeliest by softmax of log probability + weight x score.",
        _EVERY | {"reward_weight"},
    ),
}

# Fields that the tree search does not read.
OF_OTHER_STRATEGIES = frozenset({"reward_weight", "beams"})


def is_read(strategy: str, field: str) -> bool:
    """Whether a field of `RainConfig` changes what a strategy does."""
    reads = STRATEGIES[strategy].reads
    return field not in OF_OTHER_STRATEGIES if reads is None else field in reads


def readers(field: str) -> list[str]:
    """The strategies that read a field of `RainConfig`."""
    return [name for name in STRATEGIES if is_read(name, field)]
