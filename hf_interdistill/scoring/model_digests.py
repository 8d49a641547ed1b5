"""Digests of models, so that no job continues the results of another model of the same name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ..utils.sources import is_path
from .aggregation import EnsembleFile, is_ensemble

_CONFIGS = ("config.json", "adapter_config.json")
# What decides tokens and how weights are used; a folder may also hold records of a training or of jobs.
_SMALL_FILES = (
    *("config.json", "adapter_config.json", "generation_config.json", "reward_ensemble.json"),
    *("interaction_teacher.json", "*.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template.*", "additional_chat_templates/*.jinja"),
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")
_STATES = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.pt")  # of a training, not a model
_WHOLE = 1 << 25  # bytes of weights that are read whole
_SAMPLES, _SAMPLE = 512, 1 << 14  # how many places of larger files are read, and how many bytes there


def digest_of_model(name: str | os.PathLike, revision: str | None = None) -> str:
    """A digest of a model: of its files, if it is in a folder, else of its commit on the Hub.

    Of a large file of weights the size counts, and the beginning of each tensor and of many places between, so that
    it takes no time to speak of. For an adapter it covers the base model, for an ensemble the members.

    Args:
        name: folder or Hub name of any model, adapter or ensemble, or of a tokenizer alone. revision: on the Hub.
    """
    digest = blake2b(digest_size=8)
    folder = Path(name)
    if folder.is_dir():
        for path in _files(folder, _SMALL_FILES):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        for path in _files(folder, _WEIGHTS):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
            for part in _parts(path):
                digest.update(part)
        if is_ensemble(folder):
            for member in EnsembleFile.read(folder).members:
                digest.update(digest_of_model(member).encode())
        configs = [folder / file for file in _CONFIGS]
    else:
        configs = [Path(found) for file in _CONFIGS if (found := _from_hub(str(name), file, revision)) is not None]
        digest.update(f"{name} {[path.parent.name for path in configs]}".encode())  # the folder's name is the commit
    for path in configs:
        if path.name == "adapter_config.json" and path.is_file():
            digest.update(_digest_of_base(path).encode())
    return digest.hexdigest()


def digests_of_models(
    models: Mapping[str, str | None], tokenizers: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """Settings of a job that its rows depend on: digests of the models and of the tokenizers of served models.

    Args:
        models, tokenizers: names by option; `None` where there is none, or it is loaded elsewhere.
    """
    digests = {f"files of `{option}`": digest_of_model(name) for option, name in models.items() if name is not None}
    for option, name in (tokenizers or {}).items():
        if name is not None:
            digests[f"files of `{option}`"] = digest_of_tokenizer(name)
    return digests


def digest_of_tokenizer(name: str | os.PathLike) -> str:
    """A digest of a tokenizer alone, by folder or Hub name; weights beside it do not count."""
    if not Path(name).is_dir():
        return digest_of_model(name)
    digest = blake2b(digest_size=8)
    for path in _files(Path(name), _SMALL_FILES):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def digest_of_loaded_tokenizer(tokenizer: Any) -> str:
    """A digest of the vocabulary, the special tokens and the chat template of a tokenizer that is loaded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    content = json.dumps([vocabulary, special, getattr(tokenizer, "chat_template", None)], sort_keys=True)
    return blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not any(path.match(pattern) for pattern in _STATES))


def _parts(path: Path) -> Iterator[bytes]:
    """The bytes of a file of weights that count."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            yield file.read()
            return
        places = {number * (size - _SAMPLE) // (_SAMPLES - 1) for number in range(_SAMPLES)}
        if path.suffix == ".safetensors":
            places |= set(_tensors(file.read(8), file))
        for place in sorted(place for place in places if 0 <= place < size):
            file.seek(place)
            yield file.read(_SAMPLE)


def _tensors(length: bytes, file) -> Iterator[int]:
    """Where each tensor of a safetensors file begins."""
    start = int.from_bytes(length, "little")
    try:
        header = json.loads(file.read(start))
        yield from (8 + start + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        return  # what loads the model says what is wrong with the file


def _digest_of_base(config: Path) -> str:
    """The digest of an adapter's base model."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        name, revision = values.get("base_model_name_or_path"), values.get("revision")
    except (ValueError, AttributeError):
        return ""  # what loads the adapter says what is wrong with the file
    is_itself = bool(name) and Path(name).resolve() == config.parent.resolve()
    return "" if not name or is_itself else digest_of_model(name, revision)


def _from_hub(name: str, file: str, revision: str | None) -> str | None:
    """The path of a file of a repository in the cache, loaded if the Hub has it; `None` if there is none."""
    if is_path(name):
        return None
    try:
        return hf_hub_download(name, file, revision=revision)
    except (OSError, ValueError):
        return None
