"""Best-of-n from N samples: the expected score of the sample that a reward model picks, and its KL divergence.

Pure functions of numbers, and the only place where they are computed. `selection/` samples and chooses, `diagnostics/`
adds confidence intervals, `metrics/best_of_n/` is the module for `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def best_of_n_kl(n: int) -> float:
    """KL divergence of the best-of-n policy from the sampled one, in nats: `log n - (n - 1) / n`.

    Source: Stiennon et al., arXiv 2009.01325, appendix G.3; as used by Gao et al., arXiv 2210.10760. Exact where no
    two samples tie, otherwise an upper bound (Beirami et al., arXiv 2401.01879).

    Raises:
        ValueError: `n` is less than 1.
    """
    _check_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_scores(proxy, gold, n: int) -> np.ndarray:
    """Expected gold score of the sample with the highest proxy score among n, estimated from N >= n samples.

    The mean over all choices of n of the N samples, which is unbiased and needs no further sampling: in ascending
    order of the proxy, sample i is the best of `C(i - 1, n - 1)` of the `C(N, n)` choices.

    Source: Nakano et al., WebGPT, arXiv 2112.09332, appendix I; as used by Gao et al., arXiv 2210.10760.
    Ours: samples with equal proxy scores are equally likely to be picked, so their gold scores are averaged.

    Args:
        proxy: scores to choose by, `(prompts, N)` or `(N,)`.
        gold: scores to report, of the same shape; `proxy` itself for the expected proxy score.
        n: samples to choose from.

    Returns:
        `(prompts,)`, or a number for one prompt.

    Raises:
        ValueError: shapes differ, scores that are not finite, or n is not between 1 and N.
    """
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.shape != gold.shape or proxy.ndim not in (1, 2):
        raise ValueError(f"`proxy` has shape {proxy.shape}, `gold` {gold.shape}; both must be (prompts, N) or (N,).")
    if not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        raise ValueError("Some scores are NaN or infinite, so the best one is not defined. Leave those samples out.")
    _check_n(n, proxy.shape[-1])
    order = np.argsort(proxy, axis=-1, kind="stable")
    ranked = np.take_along_axis(proxy, order, axis=-1)
    shared = _share_among_ties(ranked, np.take_along_axis(gold, order, axis=-1))
    return shared @ _weights(proxy.shape[-1], n)


def best_of_n_by_prompt(proxy: Sequence[Sequence[float]], gold: Sequence[Sequence[float]], ns: Sequence[int]):
    """`best_of_n_scores` for several n: `(prompts, len(ns))`; prompts may have different numbers of samples."""
    return np.array([[best_of_n_scores(*scores, n) for n in ns] for scores in zip(proxy, gold, strict=True)])


def over_optimization_curve(
    proxy: Sequence[Sequence[float]], gold: Sequence[Sequence[float]], ns: Sequence[int] | None = None
) -> list[dict[str, float]]:
    """Proxy and gold score of best-of-n over its KL divergence: where gold falls while proxy rises, a stronger choice
    does harm.

    Args:
        proxy, gold: scores of each prompt's samples; prompts may have different numbers of samples.
        ns: which n; powers of two up to the smallest number of samples, and that number, if not given.

    Returns:
        One dict per n: `n`, `kl` (nats); means over prompts `proxy`, `gold`, and `proxy_gain`, `gold_gain`, the same
        minus that of a random choice (paired by prompt); `proxy_se` and so on, their standard errors (NaN for one
        prompt).

    Raises:
        ValueError: no prompts, or what `best_of_n_scores` refuses.
    """
    if not len(proxy) or len(proxy) != len(gold):
        raise ValueError(
            f"There are {len(proxy)} prompts with proxy and {len(gold)} with gold scores; give equally many."
        )
    ns = doubling(min(len(scores) for scores in proxy)) if ns is None else ns
    points = [{"n": int(n), "kl": best_of_n_kl(n)} for n in ns]
    for name, scores in (("proxy", proxy), ("gold", gold)):
        picked = best_of_n_by_prompt(proxy, scores, ns)
        gains = picked - best_of_n_by_prompt(proxy, scores, [1])
        for label, columns in ((name, picked), (f"{name}_gain", gains)):
            for point, values in zip(points, columns.T, strict=True):
                error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
                point |= {label: float(values.mean()), f"{label}_se": float(error)}
    return points


def doubling(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`."""
    return [*(1 << power for power in range(largest.bit_length()) if 1 << power < largest), largest]


def _check_n(n: int, samples: int | None = None) -> None:
    if n < 1 or n != int(n) or (samples is not None and n > samples):
        raise ValueError(
            f"`n` is {n}, but must be a whole number from 1 to {samples if samples is not None else 'infinity'} (the "
            "number of samples)."
        )


def _weights(samples: int, n: int) -> np.ndarray:
    """`C(i - 1, n - 1) / C(samples, n)` for i = 1 ... samples, from the top down: no large binomials."""
    ranks = np.arange(samples, 1, -1)
    ratios = (ranks - n).clip(min=0) / (ranks - 1)
    return np.concatenate([[1.0], np.cumprod(ratios)])[::-1] * (n / samples)


def _share_among_ties(ranked: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Gold scores in ranked order, equal ones of the proxy with their mean."""
    if ranked.ndim == 2:
        return np.stack([_share_among_ties(*pair) for pair in zip(ranked, gold, strict=True)])
    group = np.concatenate([[0], np.cumsum(np.diff(ranked) != 0)])
    return (np.bincount(group, weights=gold) / np.bincount(group))[group]
