"""Packs prompt and both responses into one row, so that the shared prefix is computed once.

A causal model computes the same states for the common prefix of `[x; y_c]` and `[x; y_r]`. The packed row is
`[x; y_c; y_r]`: `y_r` does not attend to `y_c`, and its position ids continue from the end of `x`. The row therefore
gives the states of both passes.

Pure tensor code: knows no model and no trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedPairs:
    """A batch of pairs, one packed row per pair.

    Args:
        input_ids: `(pairs, packed)`: common prefix, rest of the chosen row, rest of the rejected row, padding.
        position_ids: `(pairs, packed)`, the positions of the tokens in their own rows.
        visible: `(pairs, packed, packed)` bool, columns that each row attends to; padding attends to itself only.
        last_token_index: `(pairs, 2)` index of the token of the chosen and of the rejected row that is scored.
        token_index: `(pairs, 2 * length)` index in the packed row of each token of the two concatenated rows; 0 for
            their padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    last_token_index: torch.Tensor
    token_index: torch.Tensor

    @classmethod
    def from_rows(
        cls, input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_token_id: int | None = None
    ) -> PackedPairs:
        """Pack a batch as `RewardTrainer` collates it.

        Args:
            input_ids: `(2 * pairs, length)`, chosen rows, then rejected rows, padded on the right.
            attention_mask: the same shape, 1 for tokens.
            pad_token_id: of the model. As in transformers, the last other token of a row is scored, which is not the
                last one where EOS is the padding token too; `None`: the last token.
        """
        chosen, rejected = input_ids.chunk(2)
        mask = attention_mask.bool()
        chosen_size, rejected_size = mask.sum(1).chunk(2)
        is_common = (chosen == rejected) & mask.chunk(2)[0] & mask.chunk(2)[1]
        common = is_common.long().cumprod(1).sum(1)
        sizes = chosen_size + rejected_size - common
        packed_index = torch.arange(int(sizes.max()), device=input_ids.device)[None]
        is_token = packed_index < sizes[:, None]
        is_rejected = (packed_index >= chosen_size[:, None]) & is_token
        position = torch.where(is_rejected, packed_index - (chosen_size - common)[:, None], packed_index)
        position = position.masked_fill(~is_token, 0)
        ids = torch.where(is_rejected, rejected.gather(1, position), chosen.gather(1, position))
        pad = (input_ids[~mask][:1] if not mask.all() else input_ids.new_zeros(1)).expand_as(ids)
        token_index = _token_index(input_ids.shape[1], common, chosen_size, rejected_size)
        return cls(
            input_ids=torch.where(is_token, ids, pad),
            position_ids=position,
            visible=_visible(packed_index, is_token, is_rejected, common, chosen_size),
            last_token_index=token_index.gather(1, _scored_tokens(input_ids, mask, pad_token_id)),
            token_index=token_index,
        )


def _visible(packed_index, is_token, is_rejected, common, chosen_size) -> torch.Tensor:
    is_chosen_only = (packed_index >= common[:, None]) & (packed_index < chosen_size[:, None])
    causal = (packed_index[0][:, None] >= packed_index[0])[None] & is_token[:, None] & is_token[:, :, None]
    visible = causal & ~(is_rejected[:, :, None] & is_chosen_only[:, None])
    return visible | torch.eye(packed_index.shape[1], dtype=torch.bool, device=packed_index.device)


def _token_index(length, common, chosen_size, rejected_size) -> torch.Tensor:
    position = torch.arange(length, device=common.device)[None]
    in_chosen = torch.where(position < chosen_size[:, None], position, 0)
    in_rejected = torch.where(position < common[:, None], position, position + (chosen_size - common)[:, None])
    return torch.cat([in_chosen, torch.where(position < rejected_size[:, None], in_rejected, 0)], 1)


def _scored_tokens(input_ids: torch.Tensor, mask: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """Places of the scored tokens in the two concatenated rows of each pair, `(pairs, 2)`."""
    is_read = mask if pad_token_id is None else mask & (input_ids != pad_token_id)
    places = (torch.arange(input_ids.shape[1], device=input_ids.device) * is_read).argmax(1)
    chosen, rejected = places.chunk(2)
    return torch.stack([chosen, rejected + input_ids.shape[1]], 1)
