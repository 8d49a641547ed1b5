"""A teacher whose maps and margins are cached on disk, so that each pair is computed only once.

A record holds margin and maps of one pair in one reading order (in both orders with late interaction). Its key is a
hash of the teacher's input (ids, token types, units, score positions). So it depends on reading order, truncation,
both tokenizers and the units, and no two different inputs share a record. The folder is named by a hash of everything
else that the maps depend on: the teacher's weights and config, the layers, its precision, the format of stored maps.
So another teacher or setting gets a folder of its own. Other seeds, losses, scopes, controls, weights and students
with the same tokenizer share the records.

The reading order is drawn anew at every visit. Where it matters, both orders of a pair are computed at its first visit
in a run that will visit it again: otherwise nearly every batch of the next epochs would need the teacher. Runs of one
epoch, streams (of unknown length) and evaluation (always in one order) compute only the order that they use.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from transformers import TrainerCallback

from ..attention.map_sources import MapSource
from ..attention.recorder import resolve_layers
from ..teacher.teacher import InteractionTeacher
from .codec import MapFormat, StoredMap
from .store import RecordStore

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_SETTINGS_FILE = "settings.json"
# Config entries on which the output of a model does not depend.
_NEUTRAL_ENTRIES = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")


def teacher_digest(teacher: InteractionTeacher) -> str:
    """A hash of the teacher's weights and config."""
    config = teacher.network.encoder.config.to_dict()
    config = {name: value for name, value in config.items() if name not in _NEUTRAL_ENTRIES}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(teacher.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class CachedTeacher:
    """A teacher that runs only on pairs that are not in its cache.

    Maps pass through their stored form even when they were just computed, so training does not depend on what the
    cache held at its start.

    Args:
        teacher: frozen; `open` takes a hash of its weights.
        folder: of all caches; this one has its own folder in it.
        layers: of the teacher, negative from the end.
        map_format: how maps are stored.
        autocast: precision of the teacher (`no`, `bf16`, `fp16`).
        process_index: of this process.

    Attributes:
        pairs_computed: number of times that the teacher ran on a pair in this process.

    Relations: `InteractionDistillationTrainer` makes one where `teacher_cache` is set.
    """

    _store: RecordStore

    def __init__(
        self,
        teacher: InteractionTeacher,
        folder: str,
        layers: Sequence[int],
        map_format: MapFormat,
        *,
        autocast: str = "no",
        process_index: int = 0,
    ):
        self.teacher, self.folder, self.format, self.process_index = teacher, Path(folder), map_format, process_index
        self.layers = resolve_layers(layers, teacher.num_layers, "teacher_layers")
        self.autocast = autocast
        self.pairs_computed = 0
        self._name = ""  # no folder is open
        self.open()

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the maps depend on, except the pair."""
        return {
            "format_version": _FORMAT_VERSION,
            "teacher": teacher_digest(self.teacher),
            "interaction_layers": self.teacher.interaction_layers,
            "layers": self.layers,
            "autocast": self.autocast,
            "precision": self.format.precision,
            "top_k": self.format.top_k,
        }

    def open(self) -> None:
        """Open the folder of the teacher's current weights, and find its records.

        Raises:
            OSError: the folder cannot be made.
        """
        settings = json.dumps(self.settings, indent=2)
        name = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
        if name == self._name:
            self._store.refresh()
            return
        self._store, self._name = RecordStore(self.folder / name, self.process_index), name
        try:
            with (self.folder / name / _SETTINGS_FILE).open("x", encoding="utf-8") as file:  # for human readers
                file.write(settings)
        except FileExistsError:  # with the same settings, since the folder is named by their hash
            pass
        logger.info(self.summary())

    def refresh(self) -> None:
        """Find the records that other processes have written since."""
        self._store.refresh()

    def summary(self) -> str:
        """The number of maps, their size, and the work of the teacher, in a sentence."""
        count = len(self._store)
        size = f" of {self._store.stored_bytes / count / 1024:.1f} KiB on average" if count else ""
        return (
            f"Teacher maps in {self._store.folder}: {count} (one per pair and reading order){size}; "
            f"the teacher computed {self.pairs_computed} in this process."
        )

    @torch.no_grad()
    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        keys: torch.Tensor,
        order: torch.Tensor,
        segments: torch.Tensor,
        *,
        is_caching_both_orders: bool,
    ) -> tuple[torch.Tensor, list[MapSource]]:
        """Margins and maps of a batch of pairs, as from `InteractionTeacher.forward`.

        Args:
            inputs: the teacher's inputs in both orders, `(pairs, 2, ...)`.
            keys: `(pairs, 2, 2)`, of `map_keys`.
            order: `(pairs,)`, the reading order to use: 0 chosen first, 1 rejected first.
            segments: `(pairs, units)`, -1 for padding.
            is_caching_both_orders: whether to compute missing records of the other order too, for later visits.

        Returns:
            margins `(pairs,)`, and one source of map rows per layer.
        """
        key_bytes = [[_key_bytes(order_key) for order_key in pair] for pair in keys.tolist()]
        wanted, sizes = order.tolist(), (segments >= 0).sum(1).tolist()
        loaded = {pair: self._load(key_bytes[pair][side]) for pair, side in enumerate(wanted)}
        records = {pair: record for pair, record in loaded.items() if record is not None}
        missing = {pair: side for pair, side in enumerate(wanted) if pair not in records}
        records |= self._compute(inputs, key_bytes, missing, sizes)
        if is_caching_both_orders:
            others = {pair: 1 - side for pair, side in enumerate(wanted)}
            missing = {pair: side for pair, side in others.items() if key_bytes[pair][side] not in self._store}
            self._compute(inputs, key_bytes, missing, sizes)
        found = [records[pair] for pair in range(len(wanted))]
        margins = torch.stack([record["margin"] for record in found]).to(order.device)
        layers = [[_of_layer(record, number) for record in found] for number in range(len(self.layers))]
        return margins, [self.format.expand(maps, segments.shape[1], order.device) for maps in layers]

    def _load(self, key: bytes) -> StoredMap | None:
        payload = self._store.get(key)
        return None if payload is None else load(payload)

    def _compute(self, inputs, key_bytes, orders: dict[int, int], sizes: list[int]) -> dict[int, StoredMap]:
        """Run the teacher on some pairs, each in one reading order, and store its records.

        Args:
            orders: reading order by number of the pair. The other arguments are of the whole batch.

        Returns:
            the records by number of the pair.
        """
        if not orders:
            return {}
        pairs = list(orders)
        batch = {name: tensor[pairs] for name, tensor in inputs.items()}
        length = int(batch["attention_mask"].sum(-1).max())
        batch = {name: tensor if name == "score_positions" else tensor[..., :length] for name, tensor in batch.items()}
        own_sizes = [sizes[pair] for pair in pairs]
        order = torch.tensor([orders[pair] for pair in pairs], device=batch["attention_mask"].device)
        margins, sources = self.teacher.forward(batch, order, self.layers, max(1, *own_sizes))
        self.pairs_computed += len(pairs)
        layers = [self.format.compress(source, own_sizes) for source in sources]
        records: dict[int, StoredMap] = {}
        for row, pair in enumerate(pairs):
            record = {"margin": margins[row].float().cpu()}
            for number, maps in enumerate(layers):
                record |= {f"{number}.{name}": tensor for name, tensor in maps[row].items()}
            self._store.put(key_bytes[pair][orders[pair]], save(record))
            records[pair] = record
        return records


class MapCacheCallback(TrainerCallback):
    """Reopens the cache when training starts, refreshes it at each epoch, and logs a summary."""

    def __init__(self, cached: CachedTeacher):
        self.cached = cached

    def on_train_begin(self, args, state, control, **kwargs):
        self.cached.open()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.cached.refresh()

    def on_epoch_end(self, args, state, control, **kwargs):
        logger.info(self.cached.summary())


def _key_bytes(key: list[int]) -> bytes:
    return np.array(key, dtype="<i8").tobytes()


def _of_layer(record: StoredMap, number: int) -> StoredMap:
    prefix = f"{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in record.items() if name.startswith(prefix)}
