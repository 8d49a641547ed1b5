"""Prompt and both responses as one row, so that what the two causal passes share is computed once.

A causal model has the same states for the common beginning of `[x; y_c]` and `[x; y_r]`. One row `[x; y_c; y_r]` in
which `y_r` does not see `y_c`, and in which its positions go on after `x`, therefore gives the states of both passes.

Pure tensor code: knows no model and no trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedPairs:
    """A batch of pairs, one row each.

    Args:
        input_ids: `(pairs, packed)`: common beginning, rest of the chosen row, rest of the rejected row, padding.
        position_ids: `(pairs, packed)`, those that the tokens have in their own rows.
        visible: `(pairs, packed, packed)` bool, which column each row may attend to; padding sees itself alone.
        last_token_index: `(pairs, 2)` place of the last token of the chosen and of the rejected row.
        places: `(pairs, 2 * length)` place in the packed row of each token of the two rows laid end to end (0 for
            their padding).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    last_token_index: torch.Tensor
    places: torch.Tensor

    @classmethod
    def from_rows(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> PackedPairs:
        """Pack the batch that `RewardTrainer` collates.

        Args:
            input_ids: `(2 * pairs, length)`, chosen rows, then rejected ones, padded on the right.
            attention_mask: the same shape, 1 for tokens.
        """
        chosen, rejected = input_ids.chunk(2)
        mask = attention_mask.bool()
        chosen_size, rejected_size = mask.sum(1).chunk(2)
        is_common = (chosen == rejected) & mask.chunk(2)[0] & mask.chunk(2)[1]
        common = is_common.long().cumprod(1).sum(1)
        sizes = chosen_size + rejected_size - common
        slots = torch.arange(int(sizes.max()), device=input_ids.device)[None]
        is_rejected = (slots >= chosen_size[:, None]) & (slots < sizes[:, None])
        is_token = slots < sizes[:, None]
        own = torch.where(is_rejected, slots - (chosen_size - common)[:, None], slots)
        own = own.masked_fill(~is_token, 0)
        ids = torch.where(is_rejected, rejected.gather(1, own), chosen.gather(1, own))
        pad = (input_ids[~mask][:1] if not mask.all() else input_ids.new_zeros(1)).expand_as(ids)
        return cls(
            input_ids=torch.where(is_token, ids, pad),
            position_ids=own,
            visible=_visible(slots, is_token, is_rejected, common, chosen_size),
            last_token_index=torch.stack(
                [chosen_size - 1, sizes - 1 - (rejected_size == common) * (chosen_size - common)], 1
            ),
            places=_places(input_ids.shape[1], common, chosen_size, rejected_size),
        )


def _visible(slots, is_token, is_rejected, common, chosen_size) -> torch.Tensor:
    is_chosen_only = (slots >= common[:, None]) & (slots < chosen_size[:, None])
    causal = (slots[0][:, None] >= slots[0])[None] & is_token[:, None] & is_token[:, :, None]
    visible = causal & ~(is_rejected[:, :, None] & is_chosen_only[:, None])
    return visible | torch.eye(slots.shape[1], dtype=torch.bool, device=slots.device)


def _places(length, common, chosen_size, rejected_size) -> torch.Tensor:
    own = torch.arange(length, device=common.device)[None]
    in_chosen = torch.where(own < chosen_size[:, None], own, 0)
    in_rejected = torch.where(own < common[:, None], own, own + (chosen_size - common)[:, None])
    return torch.cat([in_chosen, torch.where(own < rejected_size[:, None], in_rejected, 0)], 1)
