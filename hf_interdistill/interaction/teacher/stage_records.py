"""What a stage of a teacher was trained on, kept beside its files: a resumed run continues that and nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from torch import nn

from ...utils.atomic_io import write_atomically
from ..data.teacher_inputs import PairLayout, TokenizedPair
from .config import InteractionTeacherConfig

logger = logging.getLogger(__name__)

_FILE = "trained_on.json"
_SAMPLE = 1024  # values of each weight
_SETTINGS = (
    *("seed", "data_seed", "optim", "optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps"),
    *("label_smoothing_factor", "evals_per_epoch", "early_stopping_patience", "warm_start_epochs"),
)

StageRecord = dict[str, str]


def encoder_digest(encoder: nn.Module) -> str:
    """A digest of an encoder's weights, of evenly spaced values; the pooler, which no teacher uses, does not count."""
    digest = blake2b(digest_size=8)
    for name, weight in sorted(encoder.state_dict().items()):
        if not name.startswith("pooler."):
            values = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLE)].float().cpu().numpy()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    return digest.hexdigest()


def stage_record(
    encoder: str,
    train: Sequence[TokenizedPair],
    held_out: Sequence[TokenizedPair],
    layout: PairLayout,
    args: InteractionTeacherConfig,
) -> StageRecord:
    """What the first stage is trained on: digests of encoder, rows as the teacher reads them, and settings.

    Args:
        encoder: of `encoder_digest`, at the start of `fit`.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "training rows": _rows_digest(train),
        "held-out rows": _rows_digest(held_out),
        "encoder": encoder,
        "tokens per row": str(layout.max_length),
        "pairs per step": str(batch),
        **{name: str(getattr(args, name, None)) for name in _SETTINGS},
    }


def require_same_record(folder: Path, record: StageRecord) -> None:
    """Check that the files of a stage are of a training on the same.

    Raises:
        ValueError: they are not; the message says what differs.
    """
    if not any(folder.glob("best.*")) and not any(folder.glob("checkpoint-*")):
        return
    path = folder / _FILE
    if not path.exists():
        logger.warning(
            f"{folder} does not say what its stage of a teacher was trained on (an earlier version wrote it). It is "
            "resumed as if rows, encoder and settings were these. If they are not, leave `resume_from_checkpoint` out."
        )
        return
    earlier: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in {**earlier, **record} if earlier.get(name) != record.get(name)]
    if differing:
        shown = ", ".join(f"{name} ({earlier.get(name)} there, {record.get(name)} here)" for name in differing)
        raise ValueError(
            f"`resume_from_checkpoint` is set, but {folder} holds a stage of a teacher that was trained otherwise. "
            f"What differs: {shown}. Choose another `output_dir`, or leave `resume_from_checkpoint` out, which trains "
            "again from the start."
        )


def write_record(folder: Path, record: StageRecord) -> None:
    """Keep the record of a stage that begins, or goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _FILE, json.dumps(record, indent=2))


def _rows_digest(pairs: Sequence[TokenizedPair]) -> str:
    digest = blake2b(digest_size=8)
    for pair in pairs:
        ids = [list(text.ids) for text in (pair.prompt, pair.chosen, pair.rejected)]
        digest.update(json.dumps(ids).encode())
    return f"{len(pairs)} pairs, {digest.hexdigest()}"
