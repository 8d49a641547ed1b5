"""The teacher: a bidirectional encoder that reads prompt and both responses together."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from ...training.unsharded import whole_on_each_process
from ...utils.atomic_io import write_whole
from ...utils.context_length import context_length
from ...utils.privacy import public_name
from ..attention.map_sources import DenseRows, RecordedRows
from ..attention.maps import UnitTokens, pool_attention
from ..attention.recorder import AttentionRecorder, resolve_layers
from ..data.orders import select_order
from ..data.pairs import Preference, read_preference, text_pieces
from ..data.teacher_inputs import PairLayout, SequenceFormat
from .late_interaction import pairs_end_to_end
from .pair_encoder import EAGER_MODEL_TYPES, PairReader, resolve_interaction_layers, reward_margins

logger = logging.getLogger(__name__)

_STATE_FILE = "interaction_teacher.json"
_HEAD_FILE = "interaction_teacher.safetensors"
_LONGEST_ROW = 100_000  # tokens, of an encoder that nothing limits


class InteractionTeacher:
    """Bidirectional pair encoder whose token-interaction map a reward model learns to simulate.

    Source: the role is that of arXiv 2508.02618; a score at each response's closing separator is ours.

    Args:
        model: an encoder of transformers (BERT, RoBERTa, ModernBERT, ELECTRA, DeBERTa-v2/v3, ...).
        tokenizer: its fast tokenizer.
        max_length: tokens of a row (the prompt and one response; prompt and both if `interaction_layers` is 0);
            longer rows lose the oldest prompt tokens. Defaults to what the encoder can read.
        interaction_layers: the top layers in which the two responses see each other; below them each is read with the
            prompt alone, as an ordinary reward model reads it, so that what is learnt on single responses serves pairs
            too and no order of reading can matter. 0: prompt and both responses are one row, all layers see
            everything, and the order is random in training. `None`: 1 where the encoder can do it (attention through
            transformers' `AttentionInterface`, `sdpa` or `eager`), else 0.
        metrics: held-out metrics of an earlier `fit`.

    Raises:
        ValueError: a slow tokenizer, or one without padding token or separator; an encoder-decoder or a causal model;
            `interaction_layers` that the encoder does not have or cannot do.

    Relations: `fit` trains it, `InteractionDistillationTrainer(teacher=...)` uses it; it never ships with the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer,
        *,
        max_length: int | None = None,
        interaction_layers: int | None = None,
        metrics=None,
    ):
        is_causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
        if model.config.is_encoder_decoder or is_causal:
            raise ValueError(
                f"The teacher must be a bidirectional encoder, but {type(model).__name__} is "
                f"{'an encoder-decoder' if model.config.is_encoder_decoder else 'a causal decoder'}. "
                "Use BERT, RoBERTa, ModernBERT, ELECTRA, DeBERTa or alike."
            )
        self.name = public_name(model.config._name_or_path) or type(model).__name__
        self.metrics: dict[str, Any] | None = metrics
        self.reader = PairReader(model, resolve_interaction_layers(model, interaction_layers))
        self.tokenizer = tokenizer
        self.format = SequenceFormat.from_tokenizer(tokenizer)
        self.max_length = self.check_length(max_length or self._longest_row)

    @classmethod
    def from_pretrained(
        cls,
        name: str | PreTrainedModel,
        tokenizer=None,
        *,
        max_length: int | None = None,
        interaction_layers: int | None = None,
        **model_kwargs,
    ):
        """Load a saved teacher or any encoder.

        Args:
            name: Hub name or folder (of an encoder, or of a teacher saved by `save_pretrained`), or a loaded model.
            tokenizer: needed with a loaded model only.
            max_length, interaction_layers: see the class; a saved teacher knows its own.
            **model_kwargs: for `AutoModel.from_pretrained` (`revision`, `dtype`, `attn_implementation`, ...).
        """
        if not isinstance(name, str | os.PathLike):
            if tokenizer is None:
                raise ValueError("A loaded teacher model comes without its tokenizer: pass `tokenizer=` too.")
            return cls(name, tokenizer, max_length=max_length, interaction_layers=interaction_layers)
        name = str(name)
        model_kwargs.setdefault("dtype", torch.float32)
        with whole_on_each_process():
            model = AutoModel.from_pretrained(name, **model_kwargs)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(name, revision=model_kwargs.get("revision"))
        files = {
            file: cached_file(
                name,
                file,
                revision=model_kwargs.get("revision"),
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for file in (_STATE_FILE, _HEAD_FILE)
        }
        if files[_HEAD_FILE] and not files[_STATE_FILE]:
            raise ValueError(
                f"The teacher in {name} was not saved to its end: {_STATE_FILE}, written last, is missing. Run the "
                "command that trains it again with `--resume_from_checkpoint true`."
            )
        state = json.loads(Path(files[_STATE_FILE]).read_text(encoding="utf-8")) if all(files.values()) else None
        if state is not None and interaction_layers is None:
            interaction_layers = state.get("interaction_layers", 0)  # teachers saved before there was a choice
        teacher = cls(model, tokenizer, max_length=max_length, interaction_layers=interaction_layers)
        if state is not None:
            teacher.reader.score.load_state_dict(load_file(files[_HEAD_FILE]))
            teacher.metrics = state["metrics"]
            teacher.name = state["name"]
            teacher.max_length = max_length or state["max_length"]
        return teacher

    def save_pretrained(self, folder: str) -> None:
        """Write encoder, tokenizer, score head and metrics; `from_pretrained(folder)` brings them back."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / _STATE_FILE).unlink(missing_ok=True)  # comes last: a folder with a head and without it is half saved
        save_file(
            {k: v.detach().contiguous().cpu() for k, v in self.reader.score.state_dict().items()}, path / _HEAD_FILE
        )
        self.reader.encoder.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        state = {
            "name": self.name,
            "max_length": self.max_length,
            "interaction_layers": self.interaction_layers,
            "metrics": self.metrics,
        }
        write_whole(path / _STATE_FILE, json.dumps(state, indent=2))

    @property
    def _longest_row(self) -> int:
        return context_length(self.reader.encoder, self.tokenizer) or _LONGEST_ROW

    def check_length(self, length: int) -> int:
        """The length itself, or `ValueError` if it is more than the encoder can read, or too little to read a pair."""
        longest = self._longest_row
        if not 16 <= length <= longest:
            raise ValueError(
                f"A teacher input of {length} tokens was asked for (`max_length`, `teacher_max_length`), but "
                f"{self.name} reads at most {longest}, and a pair needs at least 16."
            )
        return length

    @property
    def interaction_layers(self) -> int:
        """Top layers in which the responses see each other; 0: all of them, in one row."""
        return self.reader.interaction_layers

    @interaction_layers.setter
    def interaction_layers(self, value: int) -> None:
        self.reader.interaction_layers = resolve_interaction_layers(self.reader.encoder, value)

    @property
    def reading(self) -> PairLayout:
        """The rows in which it reads a pair."""
        return PairLayout(self.format, self.max_length, is_late=self.interaction_layers > 0)

    @property
    def is_fitted(self) -> bool:
        """Whether it was trained on preferences (here, or before it was saved)."""
        return self.metrics is not None

    @property
    def num_layers(self) -> int:
        return self.reader.encoder.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.reader.score.weight.device

    def to(self, device) -> InteractionTeacher:
        self.reader.to(device)
        return self

    def freeze(self) -> InteractionTeacher:
        """Evaluation mode, no dropout, no gradients."""
        self.reader.eval().requires_grad_(False)
        return self

    def fit(self, preferences, output_dir: str | None = None, **kwargs) -> dict[str, Any]:
        """Train on preferences and freeze; see `teacher_training.fit_teacher` for the arguments and metrics."""
        from .training import fit_teacher

        return fit_teacher(self, preferences, output_dir, **kwargs)

    @torch.no_grad()
    def forward(self, batch: dict[str, torch.Tensor], order: torch.Tensor, layers: Sequence[int], units: int):
        """Margins and maps of a batch of pairs.

        Args:
            batch: two rows a pair, `(pairs, 2, ...)`, as `AlignmentCollator` makes them.
            order: `(pairs,)` which response is read first, 0 chosen, 1 rejected; without meaning where each is read in
                a row of its own.
            layers: numbers of the layers to map, negative from the end.
            units: number of units to map onto (the widest pair's).

        Returns:
            reward margins `(pairs,)`, chosen minus rejected, and one source of map rows a layer (`maps.Rows`).
        """
        layers = self.check_layers(layers)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        if not self.interaction_layers:
            order = order.to(self.device)
            rewards, sources = self._read_one_row(select_order(batch, order), layers, units)
            return (rewards[:, 0] - rewards[:, 1]) * (1 - 2 * order), sources
        token_units, mask = batch.pop("units"), batch["attention_mask"].bool()
        with AttentionRecorder(self.reader.encoder, layers) as recorder:
            rewards = self.reader(**{name: tensor.flatten(0, 1) for name, tensor in batch.items()})
        tokens = UnitTokens.from_units(token_units.flatten(1), mask.flatten(1), units)
        records = [pairs_end_to_end(record) for record in recorder.records]
        return reward_margins(rewards)[:, 0], self._sources(records, layers, tokens)

    def _read_one_row(self, batch: dict[str, torch.Tensor], layers: list[int], units: int):
        """Rewards in reading order, `(pairs, 2)`, and sources, from one row a pair."""
        token_units, mask = batch.pop("units"), batch["attention_mask"].bool()
        if self.reader.encoder.config.model_type in EAGER_MODEL_TYPES:
            return self._read_eager(batch, layers, token_units, units)
        with AttentionRecorder(self.reader.encoder, layers) as recorder:
            rewards = self.reader(**batch)
        return rewards, self._sources(recorder.records, layers, UnitTokens.from_units(token_units, mask, units))

    def _sources(self, records, layers: list[int], tokens: UnitTokens) -> list[RecordedRows]:
        return [
            RecordedRows(self._full_attention(record, layer), tokens)
            for record, layer in zip(records, layers, strict=True)
        ]

    def check_layers(self, layers: Sequence[int]) -> list[int]:
        """The layers counted from 0; `ValueError` for one that is not there or in which the responses do not meet."""
        layers = resolve_layers(layers, self.num_layers, "teacher_layers")
        first = self.num_layers - self.interaction_layers
        if self.interaction_layers and min(layers) < first:
            raise ValueError(
                f"Teacher layer {min(layers)} reads each response alone: in this teacher they meet in layers {first} "
                f"to {self.num_layers - 1} only (`interaction_layers={self.interaction_layers}`). Set "
                "`teacher_layers` to one of those, or fit a teacher with more `interaction_layers` (0: all)."
            )
        return layers

    def _full_attention(self, record, layer):
        if record.window is not None:
            kinds = getattr(self.reader.encoder.config, "layer_types", None) or []
            full = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
            raise ValueError(
                f"Teacher layer {layer} attends within a sliding window of {record.window} tokens only; a map of the "
                f"whole pair needs a layer with full attention: {full}. Set `teacher_layers`."
            )
        return record

    def _read_eager(self, batch, layers, token_units, units):
        encoder = self.reader.encoder
        score_positions = batch.pop("score_positions")
        if getattr(encoder.config, "type_vocab_size", 0) <= 1:
            batch.pop("token_type_ids", None)
        output = encoder(**batch, output_attentions=True)
        rewards = self.reader.read(output.last_hidden_state, score_positions)
        return rewards, [
            DenseRows(pool_attention(output.attentions[layer].float().mean(1), token_units, units)) for layer in layers
        ]

    @torch.no_grad()
    def score_pairs(
        self, preferences: Iterable, *, batch_size: int = 16, is_progress_shown: bool = True
    ) -> torch.Tensor:
        """Reward margins, chosen minus rejected, in each reading order (equal where responses have their own rows).

        Args:
            preferences: rows of any preference format.

        Returns:
            `(pairs, 2)` float32: margin with the chosen response read first, and with the rejected one read first.
            Average the two to judge a pair.
        """
        items = [item if isinstance(item, Preference) else read_preference(item) for item in preferences]
        reading = self.reading
        packed = [reading.rows(*text_pieces(self.tokenizer, item)) for item in items]
        order = sorted(range(len(packed)), key=lambda i: -len(packed[i][0].ids))
        margins = torch.zeros(len(packed), 2)
        was_training = self.reader.training
        self.reader.eval()
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc="Judging pairs", disable=not is_progress_shown):
            chunk = order[start : start + batch_size]
            batch = self.format.collate([row for i in chunk for row in packed[i]])
            batch.pop("units")
            rewards = self.reader(**{name: tensor.to(self.device) for name, tensor in batch.items()})
            margins[chunk] = reward_margins(rewards.float().cpu()).expand(-1, 2)
        self.reader.train(was_training)
        return margins
