"""Packs a prompt and its responses into one row, so that the shared prefix is computed once.

A causal model computes the same states for the common prefix of `[x; y_1]`, `[x; y_2]`, ... The packed row is
`[x; y_1; y_2; ...]`: no response attends to another one, and the position ids of each continue from the end of `x`.
The row therefore gives the states of all passes.

Pure tensor code: knows no model and no trainer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PackedPairs:
    """A batch of prompts with two or more responses each, one packed row per prompt.

    Args:
        input_ids: `(pairs, packed)`: common prefix, the rest of the chosen row, of the rejected row and of any others,
            padding.
        position_ids: `(pairs, packed)`, the positions of the tokens in their own rows.
        prefix: `(pairs,)` tokens that all rows of a prompt have in common: the prompt, and the responses' openings.
        owner: `(pairs, packed)` number of the row that each token is from, of the prefix 0, of padding -1.
        last_token_index: `(pairs, responses)` index of the token of each row that is scored.
        token_index: `(pairs, responses * length)` index in the packed row of each token of the concatenated rows; 0
            for their padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    prefix: torch.Tensor
    owner: torch.Tensor
    last_token_index: torch.Tensor
    token_index: torch.Tensor

    @classmethod
    def from_rows(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pad_token_id: int | None = None,
        responses: int = 2,
    ) -> PackedPairs:
        """Pack a batch as `RewardTrainer` collates it.

        Args:
            input_ids: `(responses * pairs, length)`, chosen rows, rejected rows, then others, padded on the right.
            attention_mask: the same shape, 1 for tokens. Rows without any are responses that a prompt does not have.
            pad_token_id: of the model. As in transformers, the last other token of a row is scored, which is not the
                last one where EOS is the padding token too; `None`: the last token.
            responses: rows of each prompt.
        """
        rows, mask = (each.unflatten(0, (responses, -1)) for each in (input_ids, attention_mask.bool()))
        sizes = mask.sum(2)
        is_common = (((rows == rows[0]) & mask) | (sizes == 0)[..., None]).all(0) & mask[0]
        common = is_common.long().cumprod(1).sum(1)
        branches = (sizes - common).clamp(min=0)  # tokens of each row behind the prefix
        starts = common + branches.cumsum(0) - branches
        total = common + branches.sum(0)
        packed_index = torch.arange(int(total.max()), device=input_ids.device)[None]
        is_token = packed_index < total[:, None]
        owner = ((packed_index >= starts[..., None]).sum(0) - 1).clamp(min=0)  # row of each token; of the prefix 0
        position = packed_index - starts.T.gather(1, owner) + common[:, None]
        position = torch.where(packed_index < common[:, None], packed_index, position).masked_fill(~is_token, 0)
        ids = rows.transpose(0, 1).flatten(1).gather(1, owner * input_ids.shape[1] + position)
        pad = (input_ids[~attention_mask.bool()][:1] if not mask.all() else input_ids.new_zeros(1)).expand_as(ids)
        token_index = _token_index(input_ids.shape[1], common, sizes, starts)
        return cls(
            input_ids=torch.where(is_token, ids, pad),
            position_ids=position,
            prefix=common,
            owner=owner.masked_fill(~is_token, -1),
            last_token_index=token_index.gather(1, _scored_tokens(rows, mask, pad_token_id)),
            token_index=token_index,
        )

    @property
    def visible(self) -> torch.Tensor:
        """`(pairs, packed, packed)` bool, columns that each row attends to; padding attends to itself only."""
        place = torch.arange(self.owner.shape[1], device=self.owner.device)
        is_token = self.owner >= 0
        causal = (place[:, None] >= place)[None] & is_token[:, None] & is_token[:, :, None]
        is_prefix = (place < self.prefix[:, None])[:, None]
        visible = causal & (is_prefix | (self.owner[:, :, None] == self.owner[:, None]))
        return visible | torch.eye(len(place), dtype=torch.bool, device=place.device)


def _token_index(length, common, sizes, starts) -> torch.Tensor:
    position = torch.arange(length, device=common.device)
    in_branch = position + (starts - common)[..., None]
    index = torch.where(position < common[:, None], position, in_branch)
    return torch.where(position < sizes[..., None], index, 0).transpose(0, 1).flatten(1)


def _scored_tokens(rows: torch.Tensor, mask: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """Places of the scored tokens in the concatenated rows of each prompt, `(pairs, responses)`."""
    is_read = mask if pad_token_id is None else mask & (rows != pad_token_id)
    responses, _, length = rows.shape
    places = (torch.arange(length, device=rows.device) * is_read).argmax(2)
    return (places + length * torch.arange(responses, device=rows.device)[:, None]).T
