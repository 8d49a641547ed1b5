"""What jobs over files of prompts share: prompts in, one durable shard a process, one merged output."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ..scoring.formatting import Text, is_messages
from .atomic_io import mend_lines, write_whole


def process_state() -> PartialState:
    """This process among those of its launch.

    Without an accelerator accelerate joins processes only if it is told that they run on the CPU; else each would take
    itself for the only one, and all would do the whole job into the same files.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def read_prompt_rows(path: str | Path, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows with `prompt` (text or messages), `id` (the line's number if not given), and the keys of `keep` they have.

    Raises:
        ValueError: a row that is no JSON object, has no or an empty prompt, or an id that another row has; or no row.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`prompts` is {str(path)!r}, but there is no such file.")
    rows, seen = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse(line)
        where = f"Line {number} of {path}"
        if not isinstance(row, dict):
            raise ValueError(f'{where} is no JSON object. Write rows like {{"prompt": "..."}}.')
        prompt = row.get("prompt")
        if not (isinstance(prompt, str) or is_messages(prompt)) or not prompt:
            raise ValueError(f"{where} needs a `prompt` that is a text or a list of messages, not {prompt!r}.")
        name = row.get("id", number)
        if not isinstance(name, str | int) or name in seen:
            raise ValueError(f"{where} has the id {name!r}, but ids must be texts or numbers, each used once.")
        seen.add(name)
        rows.append({"id": name, "prompt": prompt, **{key: row[key] for key in keep if key in row}})
    if not rows:
        raise ValueError(f"{path} holds no prompts.")
    return rows


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def encode_prompt(tokenizer, prompt: Text) -> torch.Tensor:
    """Token ids `(1, length)` of a text, or of messages with the generation prompt."""
    if not is_messages(prompt):
        return torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.long)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "The prompts are messages, but the tokenizer has no chat template. Use prompts of plain text, or a model "
            "with a chat template."
        )
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=torch.long)


class JobFiles:
    """The output of a job and what belongs to it.

    Args:
        output: the merged file. rank: this process. processes: how many there are.
    """

    def __init__(self, output: Path, rank: int = 0, processes: int = 1):
        self.output = output
        self.state = output.with_name(output.name + ".job.json")
        self.shard = output.with_name(f"{output.name}.shard-{rank:05d}-of-{processes:05d}")

    def open_job(self, settings: dict[str, Any], is_overwriting: bool) -> None:
        """Note the settings, or compare them with those of the job to go on with; mend shards cut short by a kill.

        Raises:
            ValueError: the output was made with other settings.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))
        before = _parse(self.state.read_text(encoding="utf-8")) if self.state.is_file() else None
        if before is None and (self.output.exists() or self._shards()) and not is_overwriting:
            raise ValueError(
                f"{self.output} exists, but its settings ({self.state.name}) are not there, so it cannot be gone on "
                "with. Choose another `output`, or set `overwrite: true`."
            )
        if before is not None and before != settings:
            if not is_overwriting:
                changed = sorted(name for name in settings if before.get(name) != settings[name])
                raise ValueError(
                    f"{self.output} was made with other settings ({', '.join(changed)} differ). Choose another "
                    "`output`, or set `overwrite: true` to start anew."
                )
            before = None
        if before is None:
            for path in (self.output, *self._shards()):
                path.unlink(missing_ok=True)
            write_whole(self.state, json.dumps(settings, indent=2))
        for shard in self._shards():
            mend_lines(shard)

    def _shards(self) -> list[Path]:
        return sorted(self.output.parent.glob(f"{_escape(self.output.name)}.shard-*-of-*"))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything that is written, of the output and of all shards."""
        for path in (self.output, *self._shards()):
            if path.is_file():
                for line in path.read_text(encoding="utf-8").split("\n"):
                    row = _parse(line)
                    if row is not None:
                        yield row

    def finished_ids(self) -> set:
        """Ids that have an answer, in the output or in any shard."""
        return {row["id"] for row in self.rows()}

    @contextmanager
    def appending(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A function that appends a row to this process's shard and returns when it is on the disk."""
        with self.shard.open("a", encoding="utf-8") as file:

            def append(row: dict[str, Any]) -> None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

            yield append

    def merge(self, order: Sequence) -> None:
        """Write all rows to the output, in order, and remove the shards; a kill in between loses nothing."""
        rows = {row["id"]: row for row in self.rows()}
        text = "".join(json.dumps(rows[name], ensure_ascii=False) + "\n" for name in order if name in rows)
        write_whole(self.output, text)
        for shard in self._shards():
            shard.unlink()


def _escape(name: str) -> str:
    """A file name for `glob`."""
    return re.sub(r"([*?\[])", r"[\1]", name)
