"""The judge prompts of this package."""

from __future__ import annotations

from pathlib import Path


def judge_prompts() -> dict[str, str]:
    """YAML by name."""
    folder = Path(__file__).parent / "prompts"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
