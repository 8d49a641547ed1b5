"""One pass of a teacher's network over pairs: its rewards and the sources of its maps."""

from __future__ import annotations

import torch

from ..attention.map_sources import DenseMapSource, MapSource, RecordedMapSource
from ..attention.maps import UnitTokens, pool_attention
from ..attention.recorder import AttentionRecorder, RecordedAttention
from .late_interaction import concatenate_pair_rows
from .pair_encoder import PairEncoder, reward_margins

Batch = dict[str, torch.Tensor]


def record_late_interaction(
    network: PairEncoder, batch: Batch, layers: list[int], units: int, longest: int
) -> tuple[torch.Tensor, list[MapSource]]:
    """Margins `(pairs,)` and maps of pairs whose responses have their own rows, `(pairs, 2, ...)`."""
    batch = dict(batch)
    token_units, mask = batch.pop("units"), batch["attention_mask"].bool()
    with AttentionRecorder(network.encoder, layers) as recorder:
        rewards = network(**{name: tensor.flatten(0, 1) for name, tensor in batch.items()})
    tokens = UnitTokens.from_units(token_units.flatten(1), mask.flatten(1), units)
    records = [concatenate_pair_rows(record) for record in recorder.records]
    return reward_margins(rewards)[:, 0], _map_sources(network, records, layers, tokens, longest)


def record_single_rows(
    network: PairEncoder, batch: Batch, layers: list[int], units: int, longest: int
) -> tuple[torch.Tensor, list[MapSource]]:
    """Rewards in reading order `(pairs, 2)` and maps of pairs in one row each, `(pairs, ...)`."""
    batch = dict(batch)
    token_units, mask = batch.pop("units"), batch["attention_mask"].bool()
    if not network.is_recordable:
        score_positions = batch.pop("score_positions")
        output = network.encode(**batch, output_attentions=True)
        maps = [pool_attention(output.attentions[layer].float().mean(1), token_units, units) for layer in layers]
        return network.score_at(output.last_hidden_state, score_positions), [DenseMapSource(values) for values in maps]
    with AttentionRecorder(network.encoder, layers) as recorder:
        rewards = network(**batch)
    tokens = UnitTokens.from_units(token_units, mask, units)
    return rewards, _map_sources(network, recorder.records, layers, tokens, longest)


def _map_sources(
    network: PairEncoder, records: list[RecordedAttention], layers: list[int], tokens: UnitTokens, longest: int
) -> list[MapSource]:
    """Maps of recorded layers; `ValueError` for one whose window is shorter than `longest`, the tokens of a row."""
    for record, layer in zip(records, layers, strict=True):
        if record.window is not None and record.window < longest:
            kinds = getattr(network.encoder.config, "layer_types", None) or []
            full = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
            choice = f"Set `teacher_layers` to layers with full attention ({full}), or" if full else "Set"
            raise ValueError(
                f"Teacher layer {layer} attends within a sliding window of {record.window} tokens only, but its rows "
                f"may have {longest}, and a map shows the whole pair. {choice} `teacher_max_length` (`max_length`) to "
                f"{record.window} or less."
            )
    return [RecordedMapSource(record, tokens) for record in records]
