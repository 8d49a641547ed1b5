"""Draws that depend on what is drawn, not on when: one counter-based stream for every prefix.

A draw is `argmax(log p + Gumbel noise)`, with the noise a hash of (stream, token id). So a prompt gets the same tokens
whatever it is batched with, unless two tokens lie closer together than the rounding of the logits. In float32 that is
about one draw in a million; in bfloat16, whose logits differ in the third digit from batch to batch, it is not rare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch

from ...utils.random_streams import hash_bits
from ..config import RainConfig

_LARGEST = 54 * math.log(2)  # of `-log u`
_NEAR = 1.0  # more than the quick noise may be off
_AT_ONCE = 1 << 18  # scores, on a CPU: their noise should stay in its cache


def _gumbel(bits: torch.Tensor) -> torch.Tensor:
    """Gumbel noise, float64: `-log(-log u)` of `u = (bits + 0.5) / 2^53`, kept from being rounded to 1."""
    return -torch.log(-torch.log(((bits.double() + 0.5) / (1 << 53)).clamp(max=1 - 2**-53)))


def _quick_gumbel(bits: torch.Tensor) -> torch.Tensor:
    """The same in float32: right to four digits, but up to 0.82 too low where `u < 2^-24`, which float32 calls 0."""
    complement = ((1 << 53) - bits).float() / (1 << 53)  # of u, so that u near 1 (large noise) keeps its digits
    return -torch.log((-torch.log1p(-complement)).clamp(max=_LARGEST))


def sample(scores: torch.Tensor, keys: Sequence[int], ids: torch.Tensor | None = None) -> torch.Tensor:
    """Columns drawn with probability `softmax(scores)`.

    The few columns that may win are found in float32, and one of them is chosen in float64.

    Args:
        scores: `(rows, columns)`; `-inf` is never drawn.
        keys: a stream key for each row.
        ids: token ids of the columns, `(rows, columns)`; the column numbers if not given.

    Returns:
        Column numbers, `(rows,)`.

    Raises:
        ValueError: a score is not a number, or all scores of a row are `-inf`.
    """
    return torch.tensor(_sample_rows(scores, keys, ids), dtype=torch.int64, device=scores.device)


def _sample_rows(scores: torch.Tensor, keys: Sequence[int], ids: torch.Tensor | None) -> list[int]:
    if ids is None:
        ids = torch.arange(scores.shape[1], device=scores.device).unsqueeze(0)
    streams = torch.tensor(keys, dtype=torch.int64, device=scores.device).unsqueeze(1)
    step = max(1, _AT_ONCE // scores.shape[1]) if scores.device.type == "cpu" else max(1, len(scores))
    drawn: list[int] = []
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        drawn += _sample_block(scores[part], streams[part], ids if len(ids) == 1 else ids[part])
    return drawn


def _sample_block(scores: torch.Tensor, keys: torch.Tensor, ids: torch.Tensor) -> list[int]:
    """`sample` for a few rows; `keys` `(rows, 1)`."""
    bits = hash_bits(keys, ids)
    sums = scores.float() + _quick_gumbel(bits)
    rows, columns = (sums >= sums.amax(dim=-1, keepdim=True) - _NEAR).nonzero(as_tuple=True)
    exact = scores[rows, columns].double() + _gumbel(bits[rows, columns])
    best: dict[int, tuple[float, int]] = {}
    for row, column, value in zip(rows.tolist(), columns.tolist(), exact.tolist(), strict=True):
        if row not in best or value > best[row][0]:
            best[row] = value, column
    if len(best) < len(scores):
        refuse_scores(torch.nan)
    if any(value == -math.inf for value, _ in best.values()):
        refuse_scores(-torch.inf)
    return [best[row][1] for row in range(len(scores))]


def refuse_scores(largest: float, place: str = "") -> NoReturn:
    """Raise `ValueError` for scores of which no token can be drawn.

    Args:
        largest: their maximum, NaN if one of them is. place: whose they are, to begin the message with.
    """
    if math.isnan(largest):
        raise ValueError(
            f"{place}The next token cannot be drawn, for the model's scores hold NaN. Look for overflow in the model "
            "(try bfloat16 or float32 instead of float16) or in a logits processor."
        )
    raise ValueError(
        f"{place}The next token cannot be drawn, for all scores are -inf: the logits processors leave no token. Let "
        "them leave at least one in each state, such as EOS, or set fewer constraints (`bad_words_ids`, "
        "`suppress_tokens`, ...)."
    )


def likeliest_tokens(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores and their token ids, `(rows, count)` on the CPU, float64; of equal ones the smaller id first.

    Args:
        scores: `(rows, vocabulary)`.
    """
    top = scores.topk(count, dim=-1)
    ids, order = top.indices.cpu().sort(dim=-1)
    values, order = top.values.double().cpu().gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def choose_tokens(
    scores: torch.Tensor, ids: torch.Tensor, keys: Sequence[int | None], config: RainConfig
) -> list[tuple[int, float]]:
    """Tokens of an expansion: sampled from the likeliest ones by their probabilities among these.

    Args:
        scores: log probabilities up to a constant, best first, `(rows, tokens)` on the CPU. ids: their token ids.
        keys: the random stream of each row; `None` takes the likeliest token.
        config: for the number of tokens to sample from, and the temperature.

    Returns:
        For each row the token and its log probability.
    """
    scores, ids = scores[:, : config.sample_top_k], ids[:, : config.sample_top_k]
    log_probs = torch.log_softmax(scores / config.expansion_temperature, dim=-1)
    sampled = sample(log_probs, [key or 0 for key in keys], ids).tolist()
    columns = torch.tensor([[0 if key is None else column] for key, column in zip(keys, sampled, strict=True)])
    return list(zip(ids.gather(1, columns)[:, 0].tolist(), log_probs.gather(1, columns)[:, 0].tolist(), strict=True))
