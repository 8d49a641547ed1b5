"""What is tracked: little data beside code and prose, and no picture that no page shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.datasets import ROOT

LIMIT = 905_000  # bytes of data, pictures and settings: what is neither code nor prose
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"}
SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_tracked_files_are_small(tracked):
    sizes = {path: path.stat().st_size for path in tracked if path.suffix not in (".py", ".md")}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:10]
    names = ", ".join(f"{path.relative_to(ROOT)} ({sizes[path]:,})" for path in largest)
    assert sum(sizes.values()) < LIMIT, f"{sum(sizes.values()):,} bytes are tracked; the largest files: {names}"


def test_every_picture_is_on_a_page_and_every_page_has_its_pictures(tracked):
    pages = [path for path in tracked if path.suffix == ".md" and "templates" not in path.parts]
    shown = {
        (page.parent / target).resolve()
        for page in pages
        for target in SHOWN.findall(page.read_text(encoding="utf-8"))
        if "://" not in target
    }
    pictures = {path.resolve() for path in tracked if path.suffix in PICTURES}
    assert pictures and pictures == shown
