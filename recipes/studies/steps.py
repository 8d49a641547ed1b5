"""Steps of a study that are done once and kept, so that a study that was stopped resumes there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_interdistill.utils.atomic_io import write_atomically

console = Console(markup=False, emoji=False)


class StudySteps:
    """The steps of a study, each a file in `folder / "steps"`.

    Args:
        folder: of the study's outputs; it is made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "steps").mkdir(parents=True, exist_ok=True)

    def once(self, name: str, work: Callable[[], Any], settings: Any = None) -> Any:
        """The result of a step: read if the step was finished before, otherwise computed and kept.

        Args:
            name: of the step. work: computes the result, plain values. settings: what the result depends on.

        Raises:
            ValueError: it was finished with other settings.
        """
        path = self.folder / "steps" / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            console.rule(name)
            start = time.perf_counter()
            kept = {"settings": settings, "result": work(), "seconds": round(time.perf_counter() - start, 1)}
            write_atomically(path, json.dumps(kept))
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] != settings:
            raise ValueError(
                f"{path} was made with {kept['settings']}, but the settings are {settings}. Choose another "
                "`output_dir`, or remove what was made with the old ones."
            )
        return kept["result"]
