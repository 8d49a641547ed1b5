"""The network of a teacher: an encoder, and a score head at the separator after each response."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from ..attention.interceptor import layer_of_modules
from .late_interaction import LATE_INTERACTION_IMPLEMENTATIONS, PartnerAttention


class PairEncoder(nn.Module):
    """An encoder, and a score head at the separator after each response.

    Forward: `input_ids`, `attention_mask` and, if the encoder has them, `token_type_ids`, all `(batch, length)`;
    `score_positions` `(batch, responses)`; `is_pairwise`, whether rows 2i and 2i + 1 are the responses of one pair, to
    attend to each other in the top `interaction_layers`. Returns rewards `(batch, responses)`.

    Args:
        encoder: reads both ways. interaction_layers: see `resolve_interaction_layers`, which also checks a new value.
        is_recordable: whether queries and keys of its layers can be recorded; otherwise it returns its attention.
    """

    def __init__(self, encoder: PreTrainedModel, interaction_layers: int | None, *, is_recordable: bool):
        super().__init__()
        self.encoder, self.is_recordable = encoder, is_recordable
        self.interaction_layers = resolve_interaction_layers(encoder, interaction_layers, is_recordable)
        # The last states of some OPT models are narrower than its layers.
        width = getattr(encoder.config, "word_embed_proj_dim", encoder.config.hidden_size)
        self.score = nn.Linear(width, 1)
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.zeros_(self.score.bias)

    def forward(
        self, input_ids, attention_mask, score_positions, token_type_ids=None, is_pairwise=True
    ) -> torch.Tensor:
        states = self.encode(input_ids, attention_mask, token_type_ids, is_pairwise).last_hidden_state
        return self.score_at(states, score_positions)

    def encode(self, input_ids, attention_mask, token_type_ids=None, is_pairwise=True, **kwargs):
        """The output of the encoder; `**kwargs` go to its forward."""
        if token_type_ids is not None and getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            kwargs["token_type_ids"] = token_type_ids
        has_late_interaction = is_pairwise and self.interaction_layers
        with PartnerAttention(self.encoder, self.first_cross_layer) if has_late_interaction else nullcontext():
            return self.encoder(input_ids, attention_mask=attention_mask, **kwargs)

    @property
    def first_cross_layer(self) -> int:
        """The lowest layer in which responses in their own rows attend to each other."""
        return self.encoder.config.num_hidden_layers - self.interaction_layers

    def freeze_below_cross_layers(self) -> None:
        """Let only the layers of late interaction and the score head train."""
        self.encoder.requires_grad_(False)
        for module, layer in layer_of_modules(self.encoder).items():
            if layer >= self.first_cross_layer:
                module.requires_grad_(True)

    def score_at(self, states: torch.Tensor, score_positions: torch.Tensor) -> torch.Tensor:
        """Scores at the given positions, float32: `(batch, responses)` from states `(batch, length, hidden)`."""
        states_at_scores = states.gather(1, score_positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return nn.functional.linear(states_at_scores.float(), self.score.weight.float(), self.score.bias.float())[
            ..., 0
        ]


def reward_margins(rewards: torch.Tensor) -> torch.Tensor:
    """Chosen minus rejected, from the rewards of two rows per pair.

    Args:
        rewards: `(2 * pairs, 1)`, chosen and rejected in their own rows; or `(2 * pairs, 2)`, both reading orders,
            each in reading order.

    Returns:
        `(pairs, 1)`, or `(pairs, 2)`: with the chosen response read first, with the rejected one read first.
    """
    if rewards.shape[1] == 1:
        return rewards[0::2] - rewards[1::2]
    return torch.stack([rewards[0::2, 0] - rewards[0::2, 1], rewards[1::2, 1] - rewards[1::2, 0]], dim=1)


def resolve_interaction_layers(model: PreTrainedModel, wanted: int | None, is_recordable: bool) -> int:
    """The number of interaction layers: `wanted`, or the default of the encoder (see `InteractionTeacher`).

    Args:
        model: the encoder. wanted: `None` for the default. is_recordable: as in `PairEncoder`.

    Raises:
        ValueError: more layers than there are, or an encoder without late interaction.
    """
    attention = model.config._attn_implementation
    unsupported_reason = None
    if not is_recordable:
        unsupported_reason = "its attention does not go through transformers' AttentionInterface"
    elif attention not in LATE_INTERACTION_IMPLEMENTATIONS:
        unsupported_reason = f"its attention implementation is {attention!r} (load it with attn_implementation='sdpa')"
    layers = model.config.num_hidden_layers
    if wanted is None:
        return 0 if unsupported_reason else 1
    if not 0 <= wanted <= layers:
        raise ValueError(
            f"`interaction_layers` is {wanted}, but {type(model).__name__} has {layers} layers: use 0 to {layers}."
        )
    if wanted and unsupported_reason:
        raise ValueError(
            f"`interaction_layers` is {wanted}, but {type(model).__name__} can read a pair in one row only: "
            f"{unsupported_reason}. Set it to 0 or leave it out."
        )
    return wanted
