"""What RAIN jobs write of each finished prompt, and the progress that they show."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from ...utils.jsonl_jobs import JsonlJob, error_field
from ..engine.engine import Prompt
from ..results.records import RainRecord
from ..results.views import save, to_html
from ..strategies import STRATEGIES
from .inputs import warn_of_empty_answer
from .job_config import RainJobConfig


class JobOutput:
    """Writes records, and shows progress.

    Args:
        config: the job. tokenizer: the model's. work: rows and prompts. append: appends a row of the output.
        bar: the progress bar.
    """

    def __init__(
        self,
        config: RainJobConfig,
        tokenizer,
        work: Sequence[tuple[dict, Prompt]],
        append: Callable[..., None],
        bar: tqdm,
    ):
        self.config, self.tokenizer, self.work, self._append, self._bar = config, tokenizer, work, append, bar

    @classmethod
    @contextmanager
    def opened(
        cls, config: RainJobConfig, tokenizer, job: JsonlJob, work: Sequence[tuple[dict, Prompt]]
    ) -> Iterator[JobOutput]:
        """An output for some prompts of a job."""
        is_shown = PartialState().is_local_main_process
        name = STRATEGIES[config.rain_config().strategy].heading
        with job.appending() as append, tqdm(total=len(work), desc=name, unit="prompt", disable=not is_shown) as bar:
            yield cls(config, tokenizer, work, append, bar)

    def write(self, number: int, record: RainRecord) -> None:
        """Write what there is of a finished prompt.

        Args:
            number: its place in `work`. record: its result.
        """
        row, prompt = self.work[number]
        warn_of_empty_answer(self.tokenizer, prompt.ids, record)
        if self.config.trees is not None:
            _write_tree(Path(self.config.trees), row["id"], record, self.config.tree_format)
        self._append({**row, **_result(record)})
        self._bar.update()

    def show(self, tokens: int, iterations: int) -> None:
        """Show committed tokens and iterations so far."""
        self._bar.set_postfix(tokens=tokens, iterations=iterations, refresh=False)
        self._bar.update(0)  # redraws where it is time to: a prompt can take minutes


def _result(record: RainRecord) -> dict[str, Any]:
    """What a job writes of a record beside the prompt."""
    if record.error is not None:
        return error_field(record.error)
    return {
        "completion": record.text,
        "finish_reason": record.finish_reason,
        "tokens": record.tokens,
        "stats": record.stats,
    }


def _write_tree(folder: Path, name: str | int, record: RainRecord, ending: str) -> Path:
    """Save the tree of a prompt; the file name is made of the prompt's id."""
    folder.mkdir(parents=True, exist_ok=True)
    safe = re.sub(r"[^\w.-]", "_", str(name)).encode()[:80].decode(errors="ignore")  # file systems limit bytes
    is_like_a_number = isinstance(name, str) and name.lstrip("-").isdecimal()  # as ids that are numbers are written
    if safe != str(name) or is_like_a_number:  # different ids may have the same safe name
        safe += "-" + hashlib.blake2b(str(name).encode(), digest_size=4).hexdigest()
    path = folder / f"{safe}.{ending}"
    if ending == "html":
        path.write_text(to_html(record.tree, stats=record.stats), encoding="utf-8")
        return path
    return save(record.tree, path)
