"""The files of a checkpoint: configs, and weights by name, read one at a time."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from ..utils.privacy import public_name
from ..utils.sources import SourceNotFoundError, loading
from ..utils.whole_models import IncompleteModelError, listed

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_HEADS = ("value_head.safetensors", "value_head.bin")
# TRL puts the value head of a PEFT model into pytorch_model.bin, beside the adapter.
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
WRAPPER = "pretrained_model."  # of TRL's model with a value head, where DeepSpeed's ZeRO-3 saved it
_WRAPPERS = re.compile(r"^(base_model\.model\.|pretrained_model\.)+")
_DOWNLOADED = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "*.txt",
    "value_head.bin",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder.

    Args:
        name: folder or Hub name, as the user wrote it.
        folder: where its files are.
        config: config.json of the model; of an adapter's base model where there is none beside it.
        adapter: adapter_config.json, `None` for a full model.
        files: of each weight, by its name without what wrappers put before it, the file and its name there.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    adapter: dict[str, Any] | None
    files: dict[str, tuple[Path, str]]

    @property
    def names(self) -> set[str]:
        """Names of the weights, without what wrappers put before them."""
        return set(self.files)

    def tensor(self, name: str) -> torch.Tensor:
        """One weight, as it is stored."""
        path, stored = self.files[name]
        if path.suffix == ".bin":
            return _load_bin(path)[stored]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(stored)

    def stored_dtype(self) -> torch.dtype:
        """The data type of the weights of a full model, float32 where there are several."""
        found = set()
        for path in {path for path, _ in self.files.values() if path.name not in _HEADS}:
            if path.suffix == ".bin":
                found |= {tensor.dtype for tensor in _load_bin(path).values() if tensor.is_floating_point()}
                continue
            with safe_open(path, framework="pt") as file:
                slices = (file.get_slice(name).get_dtype() for name in list(file.keys()))
                found |= {_DTYPES[kind] for kind in slices if kind in _DTYPES}
        return found.pop() if len(found) == 1 else torch.float32


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_checkpoint(name: str, *, revision: str | None = None, base_model: str | None = None) -> Checkpoint:
    """Find the files of a checkpoint and the names of its weights.

    Args:
        name: folder or Hub name. revision: of the Hub repository.
        base_model: of an adapter, in place of the one that it names.

    Raises:
        SourceNotFoundError: there is no such folder or repository, or it holds no model.
        IncompleteModelError: a weight file is missing or cannot be read.
    """
    with loading(name, "model"):
        folder = _folder(name, revision)
        adapter = _json(folder / "adapter_config.json")
        config = _json(folder / "config.json")
        if adapter is None and config is None:
            raise OSError(f"{name} has no config.json")
    if adapter is not None:
        adapter = {**adapter, "base_model_name_or_path": base_model or adapter.get("base_model_name_or_path")}
        if not adapter["base_model_name_or_path"]:
            raise ValueError(
                f"The adapter in {public_name(name)} names no base model (`base_model_name_or_path`). Give it with "
                "`base_model`."
            )
        config = _base_config(name, adapter)
    elif base_model is not None:
        raise ValueError(
            f"`base_model` is {base_model!r}, but {public_name(name)} holds a full model, not an adapter. Leave it "
            "out."
        )
    assert config is not None
    files: dict[str, tuple[Path, str]] = {}
    for path in _weight_files(name, folder, adapter is not None):
        for stored in _keys(path):
            files[plain_name(stored)] = (path, stored)
    return Checkpoint(name, folder, config, adapter, files)


def _folder(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"`revision` is {revision!r}, but {public_name(name)} is a folder. Leave it out.")
        return Path(name)
    folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_DOWNLOADED)))
    if not any((folder / file).is_file() for file in (_WHOLE[0], _INDEXES[0])):
        snapshot_download(name, revision=revision, allow_patterns=["*.bin"])  # into the same folder
    return folder


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IncompleteModelError(f"{path.name} is not valid JSON ({error}). Copy or download it again.") from None
    if not isinstance(content, dict):
        raise IncompleteModelError(f"{path.name} holds {type(content).__name__}, but must hold an object.")
    return content


def _base_config(name: str, adapter: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    base = adapter["base_model_name_or_path"]
    try:
        with loading(base, f"base model (of the adapter {name})"):
            return AutoConfig.from_pretrained(base, revision=adapter.get("revision")).to_dict()
    except SourceNotFoundError as error:
        raise SourceNotFoundError(f"{error} Name a copy of it with `base_model`.") from None


def _weight_files(name: str, folder: Path, is_adapter: bool) -> list[Path]:
    heads = [folder / file for file in _HEADS if (folder / file).is_file()][:1]
    if is_adapter:
        found = [folder / file for file in _ADAPTER if (folder / file).is_file()]
        if not any(path.name.startswith("adapter_model") for path in found):
            raise IncompleteModelError(
                f"{public_name(name)} has an adapter_config.json but no adapter_model.safetensors. Copy or download "
                "all of its files."
            )
        return [*found, *heads]
    for file in _INDEXES:
        index = _json(folder / file)
        if index is not None:
            shards = sorted(set(index.get("weight_map", {}).values()))
            if not shards or any(Path(shard).name != shard for shard in shards):
                raise IncompleteModelError(f"{file} in {public_name(name)} names no files beside it. Copy it again.")
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise IncompleteModelError(
                    f"{public_name(name)} lacks {len(missing)} of the {len(shards)} files that {file} names: "
                    f"{listed(missing)}. Copy or download them too."
                )
            return [*(folder / shard for shard in shards), *heads]
    for file in _WHOLE:
        if (folder / file).is_file():
            return [folder / file, *heads]
    raise IncompleteModelError(
        f"{public_name(name)} has no weights of the model itself ({', '.join(_WHOLE)}, or shards with an index)"
        f"{', only ' + heads[0].name if heads else ''}. Copy or download them into the folder."
    )


def _keys(path: Path) -> list[str]:
    if path.suffix == ".bin":
        return list(_load_bin(path))
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise IncompleteModelError(
            f"{path.name} is not a complete safetensors file ({error}). Copy or download it again."
        ) from None


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, whose code is not run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of many kinds: zip, pickle, runtime
        raise IncompleteModelError(
            f"{path.name} cannot be read as tensors alone ({type(error).__name__}: {error!s:.120}). Copy it again, or "
            "save the weights as safetensors."
        ) from None
    if not isinstance(content, dict):
        raise IncompleteModelError(f"{path.name} holds {type(content).__name__}, but must hold tensors by name.")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def plain_name(stored: str) -> str:
    """The name of a weight without what wrappers (PEFT, TRL) put before and into it."""
    name = _WRAPPERS.sub("", stored)
    return name.replace("modules_to_save.default.", "").replace("modules_to_save.", "")
