"""The teacher: a bidirectional encoder that reads prompt and both responses as one sequence."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from ..durable import write_whole
from ..hub.privacy import public_name
from .loading import whole_on_each_process
from .maps import DenseRows, RecordedRows, UnitTokens, pool_attention
from .pairs import Preference, read_preference, text_pieces
from .recording import AttentionRecorder, resolve_layers
from .sequences import PackedSequence, PairFormat

logger = logging.getLogger(__name__)

_STATE_FILE = "interaction_teacher.json"
_HEAD_FILE = "interaction_teacher.safetensors"
# Disentangled attention adds position terms to the scores, so queries and keys alone do not give its map.
_EAGER_MODEL_TYPES = ("deberta", "deberta-v2")
_NO_LIMIT = 100_000  # tokenizers say "no limit" with a huge number


class PairReader(nn.Module):
    """An encoder and a score read at the token that closes each response.

    Forward: `input_ids`, `attention_mask` and, if the encoder has them, `token_type_ids`, all `(batch, length)`;
    `closing` `(batch, responses)`. Returns rewards `(batch, responses)`.
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder = encoder
        self.score = nn.Linear(encoder.config.hidden_size, 1)
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.zeros_(self.score.bias)

    def forward(self, input_ids, attention_mask, closing, token_type_ids=None, **kwargs) -> torch.Tensor:
        if token_type_ids is not None and getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            kwargs["token_type_ids"] = token_type_ids
        states = self.encoder(input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        return self.read(states, closing)

    def read(self, states: torch.Tensor, closing: torch.Tensor) -> torch.Tensor:
        """Scores at the closing tokens, float32: `(batch, responses)` from states `(batch, length, hidden)`."""
        closing_states = states.gather(1, closing.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return nn.functional.linear(closing_states.float(), self.score.weight.float(), self.score.bias.float())[..., 0]


class InteractionTeacher:
    """Bidirectional pair encoder whose token-interaction map a reward model learns to simulate.

    Source: the role is that of arXiv 2508.02618; the reading (a score at each response's closing separator) is ours.

    Args:
        model: an encoder of transformers (BERT, RoBERTa, ModernBERT, ELECTRA, DeBERTa-v2/v3, ...).
        tokenizer: its fast tokenizer.
        max_length: tokens of `prompt, chosen, rejected` together; longer inputs lose the oldest prompt tokens.
            Defaults to what the encoder can read.
        metrics: held-out metrics of an earlier `fit`.

    Raises:
        ValueError: a slow tokenizer, or one without padding token or separator; an encoder-decoder or a causal model.

    Relations: `fit` trains it, `InteractionDistillationTrainer(teacher=...)` uses it; it never ships with the model.
    """

    def __init__(self, model: PreTrainedModel, tokenizer, *, max_length: int | None = None, metrics=None):
        is_causal = any(getattr(module, "is_causal", False) is True for module in model.modules())
        if model.config.is_encoder_decoder or is_causal:
            raise ValueError(
                f"The teacher must be a bidirectional encoder, but {type(model).__name__} is "
                f"{'an encoder-decoder' if model.config.is_encoder_decoder else 'a causal decoder'}. "
                "Use BERT, RoBERTa, ModernBERT, ELECTRA, DeBERTa or alike."
            )
        self.name = public_name(model.config._name_or_path) or type(model).__name__
        self.metrics: dict[str, Any] | None = metrics
        self.reader = PairReader(model)
        self.tokenizer = tokenizer
        self.format = PairFormat.from_tokenizer(tokenizer)
        self.max_length = self.check_length(max_length or longest_input(model, tokenizer))

    @classmethod
    def from_pretrained(cls, name: str | PreTrainedModel, tokenizer=None, *, max_length=None, **model_kwargs):
        """Load a saved teacher or any encoder.

        Args:
            name: Hub name or folder (of an encoder, or of a teacher saved by `save_pretrained`), or a loaded model.
            tokenizer: needed with a loaded model only.
            max_length: see the class.
            **model_kwargs: for `AutoModel.from_pretrained` (`revision`, `dtype`, `attn_implementation`, ...).
        """
        if not isinstance(name, str | os.PathLike):
            if tokenizer is None:
                raise ValueError("A loaded teacher model comes without its tokenizer: pass `tokenizer=` too.")
            return cls(name, tokenizer, max_length=max_length)
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
        teacher = cls(model, tokenizer, max_length=max_length)
        if all(files.values()):
            state = json.loads(Path(files[_STATE_FILE]).read_text(encoding="utf-8"))
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
        state = {"name": self.name, "max_length": self.max_length, "metrics": self.metrics}
        write_whole(path / _STATE_FILE, json.dumps(state, indent=2))

    def check_length(self, length: int) -> int:
        """The length itself, or `ValueError` if it is more than the encoder can read, or too little to read a pair."""
        longest = longest_input(self.reader.encoder, self.tokenizer)
        if not 16 <= length <= longest:
            raise ValueError(
                f"A teacher input of {length} tokens was asked for (`max_length`, `teacher_max_length`), but "
                f"{self.name} reads at most {longest}, and a pair needs at least 16."
            )
        return length

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
        from .teacher_training import fit_teacher

        return fit_teacher(self, preferences, output_dir, **kwargs)

    @torch.no_grad()
    def read(self, batch: dict[str, torch.Tensor], layers: Sequence[int], units: int):
        """Rewards and maps of a batch of pairs.

        Args:
            batch: as `PairFormat.collate` makes it.
            layers: numbers of the layers to map, negative from the end.
            units: number of units to map onto (the widest pair's).

        Returns:
            rewards `(batch, 2)` in reading order, and one source of map rows a layer (`maps.Rows`).
        """
        layers = resolve_layers(layers, self.num_layers, "teacher_layers")
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        token_units, mask = batch.pop("units"), batch["attention_mask"].bool()
        if self.reader.encoder.config.model_type in _EAGER_MODEL_TYPES:
            return self._read_eager(batch, layers, token_units, units)
        with AttentionRecorder(self.reader.encoder, layers) as recorder:
            rewards = self.reader(**batch)
        tokens = UnitTokens.from_units(token_units, mask, units)
        return rewards, [
            RecordedRows(self._full_attention(record, layer), tokens)
            for record, layer in zip(recorder.records, layers, strict=True)
        ]

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
        closing = batch.pop("closing")
        if getattr(encoder.config, "type_vocab_size", 0) <= 1:
            batch.pop("token_type_ids", None)
        output = encoder(**batch, output_attentions=True)
        rewards = self.reader.read(output.last_hidden_state, closing)
        return rewards, [
            DenseRows(pool_attention(output.attentions[layer].float().mean(1), token_units, units)) for layer in layers
        ]

    @torch.no_grad()
    def judge(self, preferences: Iterable, *, batch_size: int = 16, is_progress_shown: bool = True) -> torch.Tensor:
        """Reward margins, chosen minus rejected, in each reading order.

        Args:
            preferences: rows of any preference format.

        Returns:
            `(pairs, 2)` float32: margin with the chosen response read first, and with the rejected one read first.
            Average the two to judge a pair.
        """
        items = [item if isinstance(item, Preference) else read_preference(item) for item in preferences]
        packed = [self._pack_both_orders(item) for item in items]
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
            margins[chunk] = reward_margins(rewards.float().cpu())
        self.reader.train(was_training)
        return margins

    def _pack_both_orders(self, preference: Preference) -> list[PackedSequence]:
        prompt, chosen, rejected = text_pieces(self.tokenizer, preference)
        return [
            self.format.pack(prompt, responses, self.max_length)
            for responses in ((chosen, rejected), (rejected, chosen))
        ]


def reward_margins(rewards: torch.Tensor) -> torch.Tensor:
    """Chosen minus rejected, from the rewards of two rows a pair.

    Args:
        rewards: `(2 * pairs, 1)`, chosen and rejected alone; or `(2 * pairs, 2)`, both orders in reading order.

    Returns:
        `(pairs, 1)`, or `(pairs, 2)`: with the chosen response read first, with the rejected one read first.
    """
    if rewards.shape[1] == 1:
        return rewards[0::2] - rewards[1::2]
    return torch.stack([rewards[0::2, 0] - rewards[0::2, 1], rewards[1::2, 1] - rewards[1::2, 0]], dim=1)


def longest_input(model: PreTrainedModel, tokenizer) -> int:
    """Tokens that a model can read at most, by its positions and its tokenizer."""
    positions = getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT
    if getattr(model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= model.config.pad_token_id + 1  # RoBERTa counts positions from after the padding token
    return int(min(positions, tokenizer.model_max_length, _NO_LIMIT))
