"""The files of a saved teacher beside its encoder and tokenizer: the score head, and the state, written last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from ...scoring.batching import tolerance
from ...utils.atomic_io import write_atomically
from ...utils.privacy import public_name
from ...utils.whole_models import IncompleteModelError, LoadReport, refuse_missing, refuse_unused
from .pair_encoder import PairEncoder

_STATE_FILE = "interaction_teacher.json"
_HEAD_FILE = "interaction_teacher.safetensors"
_AGAIN = "Run the command that trains it again with `--resume_from_checkpoint true`, or copy all of its files."


def save_teacher(folder: str, network: PairEncoder, tokenizer, state: dict[str, Any]) -> None:
    """Write encoder, tokenizer, score head and state (name, length, layers, metrics) to a folder."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / _STATE_FILE).unlink(missing_ok=True)  # written last: a folder with a head but no state is incomplete
    head = {name: tensor.detach().contiguous().cpu() for name, tensor in network.score.state_dict().items()}
    save_file(head, path / _HEAD_FILE)
    network.encoder.save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_atomically(path / _STATE_FILE, json.dumps(state, indent=2))


def load_head_and_state(name: str, where: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Score head and state of a saved teacher; `None` for an encoder that is not one.

    Args:
        name: folder or Hub name.
        where: options of `from_pretrained` that say where files are (`revision`, `subfolder`, ...).

    Raises:
        ValueError: a teacher that was not saved completely.
    """
    head, state = (
        cached_file(
            name,
            file,
            **where,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        for file in (_HEAD_FILE, _STATE_FILE)
    )
    if not head:
        return None
    if not state:
        raise ValueError(
            f"The teacher in {name} was not saved completely: {_STATE_FILE}, written last, is missing. {_AGAIN}"
        )
    try:
        weights = load_file(head)
    except SafetensorError as error:
        raise IncompleteModelError(
            f"{_HEAD_FILE} of the teacher in {public_name(name)} cannot be read ({error}). {_AGAIN}"
        ) from error
    return weights, json.loads(Path(state).read_text(encoding="utf-8"))


def require_whole_encoder(name: str, encoder, report: LoadReport, *, is_fitted: bool) -> None:
    """Raise `IncompleteModelError` for an incomplete encoder; one that is not a teacher yet may lack its pooler."""
    lost = (shown for key, shown in report.missing.items() if is_fitted or not key.startswith("pooler."))
    refuse_missing(name, lost, _AGAIN if is_fitted else "Copy or download all of its files.")
    if is_fitted:
        parts = {part for part, _ in encoder.named_children()}
        refuse_unused(name, (key for key in report.unused if key.split(".")[0] in parts), _AGAIN)


def load_head(name: str, network: PairEncoder, head: dict[str, torch.Tensor]) -> None:
    """Load the score head; raise `IncompleteModelError` if it is incomplete or has another shape."""
    own = network.score.state_dict()
    lost = (key for key, value in own.items() if key not in head or head[key].shape != value.shape)
    refuse_missing(f"{_HEAD_FILE} of the teacher in {public_name(name)}", lost, _AGAIN)
    network.score.load_state_dict(head)


def require_same_teacher(teacher, reloaded, pairs) -> None:
    """Raise `ValueError` if a saved teacher scores a few pairs differently after loading.

    Args:
        teacher: in memory. reloaded: the one that was loaded.
        pairs: preferences to score.
    """
    expected, found = (each.score_pairs(pairs, is_progress_shown=False).cpu() for each in (teacher, reloaded))
    error = (expected - found).abs().max() / expected.abs().max().clamp(min=1e-8)
    if not error <= tolerance(teacher.network.encoder):
        raise ValueError(
            f"The saved teacher scores pairs differently after loading: margins {found.tolist()} instead "
            f"of {expected.tolist()}. The cause is not in its weights, config and tokenizer: use an "
            "encoder class that `AutoModel` loads, and a tokenizer that `save_pretrained` stores."
        )
