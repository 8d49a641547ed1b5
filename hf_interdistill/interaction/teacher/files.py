"""The files of a saved teacher beside its encoder and tokenizer: the score head, and the state, written last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from ...utils.atomic_io import write_atomically
from .pair_encoder import PairEncoder

_STATE_FILE = "interaction_teacher.json"
_HEAD_FILE = "interaction_teacher.safetensors"


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


def load_head_and_state(name: str, revision: str | None) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Score head and state of a saved teacher; `None` for an encoder that is not one.

    Raises:
        ValueError: a teacher that was not saved completely.
    """
    head, state = (
        cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        for file in (_HEAD_FILE, _STATE_FILE)
    )
    if not head:
        return None
    if not state:
        raise ValueError(
            f"The teacher in {name} was not saved completely: {_STATE_FILE}, written last, is missing. Run the "
            "command that trains it again with `--resume_from_checkpoint true`."
        )
    return load_file(head), json.loads(Path(state).read_text(encoding="utf-8"))
