"""GRM's regularization: the reward model's hidden states must still write the responses. Pure tensor code."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, linear, logsigmoid
from torch.utils.checkpoint import checkpoint

REGULARIZATION_LOSSES = ("sft", "dpo")
_TOKENS_AT_ONCE = 1024  # logits of more tokens are recomputed in the backward pass instead of being stored


def response_log_probs(
    hidden_states: torch.Tensor,
    head: tuple[torch.Tensor, torch.Tensor | None],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_index: torch.Tensor | None = None,
    *,
    is_chosen_only: bool = False,
) -> torch.Tensor:
    """Log-probability of each response after its prompt, `(2, pairs)`, chosen first: sums over its tokens, nats.

    A response begins where the two rows of a pair first differ.

    Args:
        hidden_states: what the score head reads: `(2 * pairs, length, hidden)`, chosen rows first, or, with
            `token_index`, of packed rows, `(pairs, packed, hidden)`.
        head: output embeddings `(vocabulary, hidden)` and their bias `(vocabulary,)` or `None`.
        input_ids, attention_mask: `(2 * pairs, length)`, padded on the right.
        token_index: `(pairs, 2 * length)`, see `PackedPairs`.
        is_chosen_only: leave the rejected responses out, `(1, pairs)`.
    """
    pairs, length = len(input_ids) // 2, input_ids.shape[1]
    rows, mask = input_ids.unflatten(0, (2, pairs)), attention_mask.bool().unflatten(0, (2, pairs))
    common = ((rows[0] == rows[1]) & mask.all(0)).long().cumprod(1).sum(1)
    if is_chosen_only:
        rows, mask = rows[:1], mask[:1]
    is_written = mask[..., 1:] & (torch.arange(1, length, device=rows.device) >= common[:, None])
    side, pair, place = is_written.nonzero(as_tuple=True)  # `place`: of the token before the predicted one
    if token_index is None:
        states = hidden_states[side * pairs + pair, place]
    else:
        states = hidden_states[pair, token_index[pair, side * length + place]]
    labels, sums = rows[..., 1:][is_written], states.new_zeros(len(rows) * pairs, dtype=torch.float32)
    for part, tokens, owner in zip(
        *(each.split(_TOKENS_AT_ONCE) for each in (states, labels, side * pairs + pair)), strict=True
    ):
        sums = sums.index_add(0, owner, checkpoint(_token_log_probs, part, tokens, *head, use_reentrant=False))
    return sums.unflatten(0, (-1, pairs))


def _token_log_probs(states, tokens, weight, bias) -> torch.Tensor:
    logits = linear(states, weight.to(states.dtype), None if bias is None else bias.to(states.dtype))
    return -cross_entropy(logits.float(), tokens, reduction="none")


def regularization_loss(log_probs: torch.Tensor, loss: str, beta: float) -> torch.Tensor:
    """The loss of each pair, `(pairs,)`: `-log sigmoid(beta * log p(chosen))` for `sft`, and with
    `log p(chosen) - log p(rejected)` for `dpo`.

    Source: GRM (arXiv 2406.10216), its SFT form and its DPO form without a reference model.

    Args:
        log_probs: of `response_log_probs`.
        loss: `sft` or `dpo`.
        beta: temperature.
    """
    return -logsigmoid(beta * (log_probs[0] if loss == "sft" else log_probs[0] - log_probs[1]))
