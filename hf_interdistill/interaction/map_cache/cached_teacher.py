"""What the teacher says of each pair, kept on the disk, so that it reads a pair once and not at every visit.

A record holds margin and maps of one pair in one reading order (in both, where each response has a row of its own).
Its key is a hash of the very input that the teacher reads (ids, token types, units, score positions), so reading
order, truncation, both tokenizers and the units are in it, and no two different inputs share a record. Its folder is
named by a hash of all else that the maps depend on: the teacher's weights and config, the layers, the precision it
runs in, and the format in which maps are stored. Another teacher or setting thus finds an empty folder; other seeds,
loss forms, scopes, controls, weights and students with the same tokenizer share what is there.  Where order matters, a
pair is read in both orders when it is first met in a run that will meet it again: the order is a new coin at every
visit, and reading only the order needed would leave the teacher something to do in nearly every batch of the next
epochs. Runs of one epoch, streams (whose end nobody knows) and evaluation (one order always) read that order alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save
from transformers import TrainerCallback

from ..attention.map_sources import MapSource
from ..attention.recorder import resolve_layers
from ..data.teacher_inputs import TeacherInput
from .codec import MapFormat, StoredMap
from .store import RecordStore

if TYPE_CHECKING:
    from ..teacher.teacher import InteractionTeacher

logger = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_SETTINGS_FILE = "settings.json"
# Config entries that say where a model comes from and how it is run, not what it computes.
_NEUTRAL_ENTRIES = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")


def map_keys(rows: Sequence[TeacherInput], units: int, *, is_late: bool) -> list[tuple[int, int]]:
    """The keys of a pair's maps, one for each reading order; the same where each response has a row of its own.

    Args:
        rows: of the pair, as `PairLayout` makes them. units: that they are mapped onto. is_late: as in `PairLayout`.
    """
    return [map_key(rows, units)] * 2 if is_late else [map_key([row], units) for row in rows]


def map_key(rows: Sequence[TeacherInput], units: int) -> tuple[int, int]:
    """128 bits that stand for one teacher input and the units it is mapped onto, as two signed 64-bit numbers."""
    digest = hashlib.blake2b(digest_size=16)
    parts = [part for row in rows for part in (row.ids, row.types, row.units, row.score_positions)]
    for numbers in (*parts, [units]):
        digest.update(np.array([len(numbers), *numbers], dtype="<i8").tobytes())
    first, second = np.frombuffer(digest.digest(), dtype="<i8").tolist()
    return first, second


def teacher_digest(teacher: InteractionTeacher) -> str:
    """A hash of the teacher's weights and config."""
    config = teacher.reader.encoder.config.to_dict()
    config = {name: value for name, value in config.items() if name not in _NEUTRAL_ENTRIES}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(teacher.reader.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class CachedTeacher:
    """A teacher that reads what is not in its cache.

    Rows come from the stored form also when the teacher has just read a pair, so training does not depend on what was
    in the cache when it began.

    Args:
        teacher: frozen; its weights are looked at by `open`.
        folder: of all caches; this one gets a folder in it.
        layers: of the teacher, negative from the end.
        map_format: how maps are stored.
        autocast: precision that the teacher runs in (`no`, `bf16`, `fp16`).
        process_index: of this process.

    Relations: `InteractionDistillationTrainer` makes one where `teacher_cache` is set.
    """

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
        self.pairs_read = 0
        self._store: RecordStore | None = None
        self._name = ""
        self.open()

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on beside the pair."""
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
        """Find the folder that belongs to the teacher as it is now, and what is in it.

        Raises:
            OSError: the folder cannot be made.
        """
        settings = json.dumps(self.settings, indent=2)
        name = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
        if self._store is not None and name == self._name:
            self._store.refresh()
            return
        self._store, self._name = RecordStore(self.folder / name, self.process_index), name
        try:
            with (self.folder / name / _SETTINGS_FILE).open("x", encoding="utf-8") as file:  # for people
                file.write(settings)
        except FileExistsError:  # the folder's name says which settings it holds
            pass
        logger.info(self.summary())

    def refresh(self) -> None:
        """Find what other processes have written since."""
        self._store.refresh()

    def summary(self) -> str:
        """What is kept and what it took, in a sentence."""
        count = len(self._store)
        size = f" of {self._store.stored_bytes / count / 1024:.1f} KiB on average" if count else ""
        return (
            f"Teacher maps in {self._store.folder}: {count} (one a pair and reading order){size}; "
            f"the teacher has read {self.pairs_read} here."
        )

    @torch.no_grad()
    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        keys: torch.Tensor,
        order: torch.Tensor,
        segments: torch.Tensor,
        *,
        is_reading_both: bool,
    ) -> tuple[torch.Tensor, list[MapSource]]:
        """Margins and maps of a batch of pairs, as `InteractionTeacher.read` gives them.

        Args:
            inputs: the teacher's inputs in both orders, `(pairs, 2, ...)`.
            keys: `(pairs, 2, 2)`, of `map_keys`.
            order: `(pairs,)`, the order wanted: 0 chosen first, 1 rejected first.
            segments: `(pairs, units)`, -1 for padding.
            is_reading_both: whether to read what is missing in the other order too, for later visits.

        Returns:
            margins `(pairs,)`, and one source of map rows a layer.
        """
        names = [[_name(order_key) for order_key in pair] for pair in keys.tolist()]
        wanted, sizes = order.tolist(), (segments >= 0).sum(1).tolist()
        found = [self._load(names[pair][side]) for pair, side in enumerate(wanted)]
        missing = [pair for pair, record in enumerate(found) if record is None]
        for pair, record in self._read_missing(inputs, names, {pair: wanted[pair] for pair in missing}, sizes):
            found[pair] = record
        if is_reading_both:
            others = {pair: 1 - side for pair, side in enumerate(wanted) if names[pair][1 - side] not in self._store}
            self._read_missing(inputs, names, others, sizes)
        margins = torch.stack([record["margin"] for record in found]).to(order.device)
        layers = [[_of_layer(record, number) for record in found] for number in range(len(self.layers))]
        return margins, [self.format.expand(maps, segments.shape[1], order.device) for maps in layers]

    def _load(self, name: bytes) -> StoredMap | None:
        payload = self._store.get(name)
        return None if payload is None else load(payload)

    def _read_missing(self, inputs, names, sides: dict[int, int], sizes: list[int]) -> list[tuple[int, StoredMap]]:
        """Have the teacher read some pairs, each in one order, and keep what it says."""
        if not sides:
            return []
        pairs = list(sides)
        batch = {name: tensor[pairs] for name, tensor in inputs.items()}
        length = int(batch["attention_mask"].sum(-1).max())
        batch = {name: tensor if name == "score_positions" else tensor[..., :length] for name, tensor in batch.items()}
        own_sizes = [sizes[pair] for pair in pairs]
        order = torch.tensor([sides[pair] for pair in pairs], device=batch["attention_mask"].device)
        margins, sources = self.teacher.forward(batch, order, self.layers, max(1, *own_sizes))
        self.pairs_read += len(pairs)
        layers = [self.format.compress(source, own_sizes) for source in sources]
        records = []
        for place, pair in enumerate(pairs):
            record = {"margin": margins[place].float().cpu()}
            for number, maps in enumerate(layers):
                record |= {f"{number}.{name}": tensor for name, tensor in maps[place].items()}
            self._store.put(names[pair][sides[pair]], save(record))
            records.append((pair, record))
        return records


class MapCacheUpkeep(TrainerCallback):
    """Looks at the teacher again when training starts, at the other processes' maps at each epoch, and reports."""

    def __init__(self, cached: CachedTeacher):
        self.cached = cached

    def on_train_begin(self, args, state, control, **kwargs):
        self.cached.open()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.cached.refresh()

    def on_epoch_end(self, args, state, control, **kwargs):
        logger.info(self.cached.summary())


def _name(key: list[int]) -> bytes:
    return np.array(key, dtype="<i8").tobytes()


def _of_layer(record: StoredMap, number: int) -> StoredMap:
    prefix = f"{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in record.items() if name.startswith(prefix)}
