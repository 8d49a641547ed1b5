"""Metrics of rewards: pure functions of numpy arrays.

A margin is `reward of the chosen - reward of the rejected` completion of a pair. Under the Bradley-Terry model (1952)
`sigmoid(margin)` is the probability that the chosen one is preferred. A margin of exactly zero is a tie: it is counted
separately, never as right or wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def pair_margins(chosen: ArrayLike, rejected: ArrayLike) -> np.ndarray:
    """Margins of pairs in float64, shape `(pairs,)`.

    Args:
        chosen, rejected: rewards, shape `(pairs,)`.

    Raises:
        ValueError: other shapes, no pairs, or a reward that is not finite.
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if chosen.ndim != 1 or chosen.shape != rejected.shape:
        raise ValueError(
            f"Rewards of shapes {chosen.shape} (chosen) and {rejected.shape} (rejected); both must be `(pairs,)`."
        )
    return _checked(chosen - rejected, "margin")


def pairwise_accuracy(margins: ArrayLike) -> dict[str, float]:
    """Share of pairs whose chosen completion has the higher reward, among pairs that are not ties.

    Args:
        margins: shape `(pairs,)`.

    Returns:
        `pairwise_accuracy` (`nan` if every pair is a tie), `ties` and `pairs` (counts; ties are among the pairs).
    """
    margins = _checked(margins, "margin")
    decided = margins[margins != 0]
    accuracy = float(np.mean(decided > 0)) if decided.size else float("nan")
    return {"pairwise_accuracy": accuracy, "ties": int(margins.size - decided.size), "pairs": int(margins.size)}


def in_random_order(margins: ArrayLike, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs shown in random order, so that nothing tells which completion was chosen.

    Without it every label is 1, and a model that always says "the first" looks calibrated.

    Args:
        margins: shape `(pairs,)`. seed: of the order; the same seed gives the same order.

    Returns:
        Margins of first over second, and labels (1 where the first is the chosen one), both of shape `(pairs,)`.
    """
    margins = _checked(margins, "margin")
    is_chosen_first = np.random.default_rng(seed).random(margins.size) < 0.5
    return np.where(is_chosen_first, margins, -margins), is_chosen_first.astype(np.int64)


def calibration(margins: ArrayLike, bins: int = 10, seed: int = 0) -> dict[str, float]:
    """Whether `sigmoid(margin)` is the probability that it claims to be, on pairs in random order.

    With `p` the probability that the first completion is the preferred one and `y` whether it is:

    - `ece`: expected calibration error, the sum over equal bins of [0, 1] of `share of pairs in the bin *
      |mean(y) - mean(p)|`. Source: Naeini et al., AAAI 2015, the binary form (Guo et al., arXiv
      1706.04599, Eq. 3, bin the confidence in the predicted class instead).
    - `brier`: `mean((p - y)^2)`. Source: Brier, 1950, for one of the two outcomes.
    - `nll`: `mean(-log p(y))` in nats, which is the Bradley-Terry loss. A coin has log 2.

    Only `ece` depends on the order. A tie is a probability of one half and is scored as such.

    Args:
        margins: shape `(pairs,)`. bins: number of bins for `ece`. seed: of the order.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}, but there must be at least one bin.")
    margins, labels = in_random_order(margins, seed)
    probabilities = sigmoid(margins)
    signed = np.where(labels == 1, margins, -margins)
    return {
        "ece": float(calibration_error(probabilities, labels, bins)),
        "brier": float(np.mean((probabilities - labels) ** 2)),
        "nll": float(np.mean(np.logaddexp(0.0, -signed))),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> np.ndarray:
    """Expected calibration error as in `calibration`; pairs on the last axis, one error for each of the others."""
    # The last bin includes its upper edge, so a probability of 1 falls into a bin.
    bin_indices = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    surplus = labels - probabilities
    gaps = [np.abs(np.where(bin_indices == index, surplus, 0.0).sum(-1)) for index in range(bins)]
    return sum(gaps) / probabilities.shape[-1]


def sigmoid(values: np.ndarray) -> np.ndarray:
    """`1 / (1 + exp(-values))` without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def length_bias(margins: ArrayLike, length_differences: ArrayLike) -> dict[str, float]:
    """Whether the model prefers longer completions.

    Args:
        margins: shape `(pairs,)`.
        length_differences: length of the chosen - length of the rejected completion, in any one unit, shape
            `(pairs,)`.

    Returns:
        `length_correlation`, Pearson's correlation of margin and length difference (`nan` if either is constant);
        `accuracy_longer_is_worse` and `pairs_longer_is_worse`, accuracy and number of the pairs whose rejected
        completion is the longer one (ties left out of the accuracy, `nan` if there is none).
    """
    margins = _checked(margins, "margin")
    differences = _checked(length_differences, "length difference")
    if margins.shape != differences.shape:
        raise ValueError(f"{margins.size} margins and {differences.size} length differences: one for each pair.")
    is_constant = np.ptp(margins) == 0 or np.ptp(differences) == 0
    worse = margins[differences < 0]
    return {
        "length_correlation": float("nan") if is_constant else float(np.corrcoef(margins, differences)[0, 1]),
        "accuracy_longer_is_worse": pairwise_accuracy(worse)["pairwise_accuracy"] if worse.size else float("nan"),
        "pairs_longer_is_worse": int(worse.size),
    }


def _checked(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"The {name}s have the shape {values.shape}; expected `(n,)` with at least one {name}.")
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"The {name} at position {index} is {values[index]}: the model is broken, so the pair is neither right "
            "nor wrong."
        )
    return values


def pair_rewards(logits, labels=None):
    """One row per pair, for `preprocess_logits_for_metrics`.

    Args:
        logits: rewards of a batch, chosen before rejected, shape `(2 * pairs, 1)`. labels: ignored.

    Returns:
        Rewards of chosen and rejected, shape `(pairs, 2)`.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.reshape(2, -1).transpose(0, 1).contiguous()
