"""A resumable JSONL job whose rows are shared by the processes of a launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from .errors import RunError
from .jsonl_jobs import ERROR, JsonlJob, Row
from .processes import long_barrier, process_state


class FailedRowsError(RunError):
    """Some rows of a job have an error instead of a result."""


def run_sharded_job(
    output: str | Path,
    rows: Sequence[Row],
    work: Callable[[JsonlJob, Sequence[Row]], None],
    *,
    settings: dict[str, Any],
    overwrite: bool,
    compared: Sequence[str] = ("prompt",),
    uses_device: bool = True,
) -> tuple[JsonlJob, int]:
    """Run a job over the rows that have no result yet, shared by the processes of this launch, and merge the results.

    Args:
        output: the file. rows: all rows, each with an `id`. settings, overwrite, compared: as in
            `JsonlJob.open`.
        work: appends a result with the same `id` for each row of this process, with the row's fields. A failed row
            gets an `error` instead, and the job continues. It is not called if nothing is missing.
        uses_device: as in `process_state`.

    Returns:
        The job, and for how many rows results were missing.

    Raises:
        FailedRowsError: rows have an error instead of a result; the next run tries them again. All others are written.
    """
    state = process_state(uses_device)
    with (
        JsonlJob(output, state.process_index, state.num_processes) as job,
        long_barrier(state) as wait_for_everyone,
    ):
        if state.num_processes > 1:
            job.share(wait_for_everyone)
        ids: list[Any] = []
        if state.is_main_process:
            job.open(settings, overwrite, rows, compared)
            finished = job.finished_ids()
            ids = [row["id"] for row in rows if row["id"] not in finished]
        (ids,) = broadcast_object_list([ids])  # what the main process has read before any other writes
        wanted = set(ids)
        missing = [row for row in rows if row["id"] in wanted]
        if missing:
            work(job, missing[state.process_index :: state.num_processes])
        wait_for_everyone()
        if state.is_main_process:
            job.merge([row["id"] for row in rows])
        wait_for_everyone()
    failed = [row for row in job.rows() if ERROR in row]
    if failed:
        raise FailedRowsError(
            f"{len(failed)} of {len(rows)} rows of {output} have an `error` instead of a result; the first is id "
            f"{failed[0]['id']!r}: {failed[0][ERROR]} The others are written. Run the same command again to try these "
            "again."
        )
    return job, len(missing)
