"""The resumable JSONL job: killed at any write, it loses no finished row and repeats none."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial

import pytest
from accelerate import PartialState
from support.processes import forked, forked_ranks, killed_when

from hf_interdistill.utils.jsonl_jobs import JsonlJob, error_field
from hf_interdistill.utils.sharded_jobs import FailedRowsError, run_sharded_job

ROWS = [{"id": name, "text": f"line {name}\u2028\n"} for name in ("b", "a", 3)]
SETTINGS = {"seed": 1, "model": "m"}
CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def sharded(path, log=None, *, rows=ROWS, overwrite=False, compared=("text",), **changes) -> int:
    """Answer every row that has no answer; `log` notes which were worked on and which were then on the disk."""

    def work(job, missing):
        with job.appending() as append:
            for row in missing:
                _note(log, f"work {row['id']}")
                append({**row, "answer": f"to {row['id']}"})
                _note(log, f"done {row['id']}")

    settings = {**SETTINGS, **changes}
    return run_sharded_job(path, rows, work, settings=settings, overwrite=overwrite, compared=compared)[1]


def in_place(path, log=None) -> None:
    def process(chunk):
        for row in chunk:
            _note(log, f"work {row['id']}")
        return [{**row, "answer": f"to {row['id']}"} for row in chunk]

    with JsonlJob(path) as job:
        job.open(SETTINGS)
        job.complete(ROWS, process, chunk_size=1, total=len(ROWS), disable=True)


def _note(log, line: str) -> None:
    if log is not None:
        with open(log, "a") as file:
            file.write(line + "\n")


def killed_at(step: int, action) -> bool:
    """Run in a process of its own that is killed at its `step`-th call to the disk, half of a write done; whether it
    got so far."""
    process = os.fork()
    if process == 0:
        count = [0]

        def kill_before(original):
            def call(*arguments, **options):
                count[0] += 1
                if count[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, kill_before(getattr(os, name)))
        action()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("run", [sharded, in_place])
def test_a_kill_at_any_step_loses_nothing_and_repeats_nothing(run, tmp_path):
    expected = [{**row, "answer": f"to {row['id']}"} for row in ROWS]
    step = 1
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        output, log = folder / "out.jsonl", folder / "log"
        was_killed = killed_at(step, lambda output=output, log=log: run(output, log))
        for path in folder.glob("out.jsonl*"):  # the row that was being written may be there in part
            if path.suffix != ".json" and path.stat().st_size and was_killed:
                with path.open("a") as file:
                    file.write('{"id": "cut sho')
        run(output, log)
        assert read(output) == expected
        assert sorted(path.name for path in folder.glob("out*")) == ["out.jsonl", "out.jsonl.settings.json"]
        lines = log.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.startswith("done"):
                assert line.replace("done", "work") not in lines[number:]
        assert len([line for line in lines if line.startswith("work")]) <= len(ROWS) + 1
        step += 1
        if not was_killed:
            break
    assert step > 6  # settings, three rows and, with shards, the merge


def test_other_settings_are_named_and_nothing_is_touched(tmp_path):
    output = tmp_path / "out.jsonl"
    assert sharded(output) == 3 and sharded(output) == 0
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(extra, seed differ\)\. Choose another `output`, or set"):
        sharded(output, seed=2, extra=True)
    job = JsonlJob(output)
    with pytest.raises(ValueError, match=r"other settings \(model, seed differ\)\. Delete it, or write to another"):
        job.open({})
    (tmp_path / "out.jsonl.settings.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"\(out\.jsonl\.settings\.json\) are damaged"):
        sharded(output)
    assert output.read_bytes() == before
    assert sharded(output, overwrite=True) == 3


def test_settings_of_a_run_without_rows_do_not_count(tmp_path):
    JsonlJob(tmp_path / "out.jsonl").open({"seed": 5})
    assert sharded(tmp_path / "out.jsonl") == 3


def test_a_foreign_line_is_not_cut_before_the_settings_are_compared(tmp_path):
    (tmp_path / "out.jsonl").write_text("precious, and no line end")
    with pytest.raises(ValueError, match="are missing: it may be no output of a job"):
        in_place(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "precious, and no line end"


def test_damaged_lines_are_named(tmp_path):
    output = tmp_path / "out.jsonl"
    in_place(output)
    lines = output.read_text(encoding="utf-8").split("\n")
    output.write_text("\n".join([lines[0], lines[1][:-4], lines[2], ""]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"out\.jsonl, line 2 is damaged: it is not JSON"):
        in_place(output)


def test_shards_of_another_number_of_processes_are_merged(tmp_path):
    output = tmp_path / "[odd] name*.jsonl"
    for rank, row in enumerate(ROWS[:2]):
        job = JsonlJob(output, rank, 2)
        if rank == 0:
            job.open(SETTINGS)
        with job.appending() as append:
            append({**row, "answer": f"to {row['id']}"})
    assert len(list(tmp_path.glob("*shard-0000?-of-00002"))) == 2
    assert sharded(output) == 1
    assert [row["id"] for row in read(output)] == ["b", "a", 3] and len(list(tmp_path.iterdir())) == 2


def test_overwriting_removes_earlier_rows_with_the_first_new_one(tmp_path):
    output = tmp_path / "out.jsonl"
    sharded(output)
    before, settings = output.read_bytes(), output.with_name("out.jsonl.settings.json").read_bytes()

    def fails(job, missing):
        with job.appending():
            raise OSError("the model is not there")

    for rows, changes in ((ROWS, {"seed": 2}), (ROWS[1:], {})):  # other settings, and other inputs
        with pytest.raises(OSError, match="is not there"):
            run_sharded_job(output, rows, fails, settings={**SETTINGS, **changes}, overwrite=True)
        assert output.read_bytes() == before
        assert output.with_name("out.jsonl.settings.json").read_bytes() == settings
    assert sharded(output) == 0
    assert sharded(output, overwrite=True, seed=2, rows=ROWS[:2]) == 2
    assert [row["id"] for row in read(output)] == ["b", "a"]
    assert json.loads(output.with_name("out.jsonl.settings.json").read_text())["seed"] == 2


def test_a_file_that_no_job_wrote_is_not_overwritten(tmp_path):
    output = tmp_path / "notes.txt"
    output.write_text("my notes\n")
    with pytest.raises(ValueError, match=r"settings \(notes\.txt\.settings\.json\) are missing.* or remove it"):
        sharded(output, overwrite=True)
    assert output.read_text() == "my notes\n" and len(list(tmp_path.iterdir())) == 1


def test_processes_that_share_a_job_overwrite_it_together(tmp_path):
    """No process removes what another one has written, and none removes anything while another one cannot start."""
    output, many = tmp_path / "out.jsonl", [{"id": number, "text": str(number)} for number in range(20)]
    sharded(output)
    before = output.read_bytes()

    def rank_fails(job, missing):
        if os.environ["RANK"] == "1":
            os._exit(0)
        try:
            with job.appending():
                pass
        finally:
            os._exit(0)

    def as_rank(action):
        PartialState._reset_state()  # this process is one alone
        action()

    failing = partial(run_sharded_job, output, many, rank_fails, settings={}, overwrite=True)
    forked_ranks(2, lambda: as_rank(failing), **CPU)
    assert output.read_bytes() == before
    forked_ranks(2, lambda: as_rank(partial(sharded, output, rows=many, overwrite=True, seed=3)), **CPU)
    assert read(output) == [{**row, "answer": f"to {row['id']}"} for row in many]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


def test_a_second_job_with_the_same_output_is_refused(tmp_path):
    output = tmp_path / "out.jsonl"
    with JsonlJob(output) as job:
        job.open(SETTINGS)
        with job.appending() as append:
            append(ROWS[0])
        for run in (sharded, in_place):  # in this process and in another
            with pytest.raises(ValueError, match=r"out\.jsonl is being written by another process.*Wait"):
                run(output)
            status, printed = forked(lambda run=run: run(output))
            assert status == 1 and "is being written by another process" in printed
    in_place(output)
    assert [row["id"] for row in read(output)] == ["b", "a", 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


def test_a_killed_job_leaves_no_lock(tmp_path):
    output = tmp_path / "out.jsonl"

    def waits():
        JsonlJob(output).open(SETTINGS)
        job = JsonlJob(tmp_path / "held.jsonl")
        job.open(SETTINGS)
        (tmp_path / "opened").touch()
        time.sleep(60)

    killed_when((tmp_path / "opened").exists, waits)
    assert (tmp_path / "held.jsonl.lock").exists()
    assert sharded(tmp_path / "held.jsonl") == 3 and not (tmp_path / "held.jsonl.lock").exists()


@pytest.mark.parametrize("given", [{"tools": ["a"]}, {}])
def test_added_and_removed_fields_are_changes(given, tmp_path):
    output = tmp_path / "out.jsonl"
    with JsonlJob(output) as job:
        job.open(SETTINGS)
        with job.appending() as append:
            append({"id": 1, "prompt": "p", "answer": 1, **({} if given else {"tools": ["a"]})})
        message = "it was 'null', and is" if given else r"it was .*, and is 'null' now"
        with pytest.raises(ValueError, match=f"its `tools` has changed since: {message}"):
            job.open(SETTINGS, False, [{"id": 1, "prompt": "p", **given}], compared=("prompt", "tools"))


def test_without_a_file_rows_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = JsonlJob(None)
    job.open(SETTINGS)
    job.complete(iter(ROWS), list, chunk_size=2, disable=True)
    assert list(job.rows()) == ROWS and not list(tmp_path.iterdir())
    job.complete(iter([*ROWS, {"id": "new"}]), list, chunk_size=2, disable=True)
    assert [row["id"] for row in job.rows()] == ["b", "a", 3, "new"]


def test_a_result_counts_more_than_an_error_wherever_they_stand(tmp_path):
    """The shards of another number of processes may come later in the order of names."""
    output = tmp_path / "out.jsonl"
    finished = {**ROWS[0], "answer": "whole"}
    for rank, world_size, row in (
        (0, 4, finished),
        (1, 2, {**ROWS[0], "error": "out"}),
        (0, 2, {**ROWS[1], "error": "out"}),
    ):
        job = JsonlJob(output, rank, world_size)
        if world_size == 4:
            job.open(SETTINGS)
        with job.appending() as append:
            append(row)
    assert JsonlJob(output).finished_ids() == {"b"}
    assert sharded(output) == 2  # the other one with an error, and the one without a row
    assert [row["answer"] for row in read(output)] == ["whole", "to a", "to 3"]


def test_errors_are_counted_and_tried_again(tmp_path):
    output, faults = tmp_path / "out.jsonl", {"a"}

    def work(job, missing):
        with job.appending() as append:
            for row in missing:
                append({**row, **(error_field("half \ud800") if row["id"] in faults else {"answer": 1})})

    for _ in range(2):
        with pytest.raises(FailedRowsError, match=r"1 of 3 rows of .*out.jsonl have an `error`.* id 'a': half .ud800"):
            run_sharded_job(output, ROWS, work, settings=SETTINGS, overwrite=False)
        assert [row["id"] for row in read(output)] == ["b", "a", 3]
    faults.clear()
    assert run_sharded_job(output, ROWS, work, settings=SETTINGS, overwrite=False)[1] == 1
    assert all("error" not in row for row in read(output))


def test_changed_inputs_are_shown_from_where_they_differ(tmp_path):
    output = tmp_path / "out.jsonl"
    sharded(output)
    before = output.read_bytes()
    job = JsonlJob(output)
    long = "x" * 500
    for rows, message in (
        (
            [{**ROWS[0], "text": "line b!"}, *ROWS[1:]],
            r"id 'b', but its `text` has changed since: it was 'line b.*', and",
        ),
        (ROWS[1:], "a result for id 'b', but there is no such row"),
    ):
        with pytest.raises(ValueError, match=message):
            job.open(SETTINGS, overwrite=False, inputs=rows, compared=("text",))
    assert output.read_bytes() == before
    old, new = (list(ROWS), [{**ROWS[0], "text": f"{long}new"}, *ROWS[1:]])
    old[0] = {**ROWS[0], "text": f"{long}old"}
    output.write_text("".join(json.dumps({**row, "answer": 1}) + "\n" for row in old), encoding="utf-8")
    with pytest.raises(ValueError, match=r"it was '\.\.\.x{20}old', and is '\.\.\.x{20}new' now"):
        job.open(SETTINGS, overwrite=False, inputs=new, compared=("text",))
    job.open(SETTINGS, overwrite=True, inputs=new, compared=("text",))
    assert list(job.rows()) == []


def test_rows_in_place_are_compared_with_their_inputs(tmp_path):
    job = JsonlJob(tmp_path / "out.jsonl")
    job.complete(ROWS[:2], list, chunk_size=2, disable=True, compared=("text",))
    changed = [ROWS[0], {**ROWS[1], "text": "other"}, ROWS[2]]
    with pytest.raises(
        ValueError, match=r"a result in line 2, but its `text` has changed since: .* and is 'other' now"
    ):
        job.complete(changed, list, chunk_size=2, disable=True, compared=("id", "text"))
    job.complete(changed, list, chunk_size=2, disable=True, compared=("id",))
    assert read(tmp_path / "out.jsonl") == ROWS


@pytest.mark.parametrize(("before", "after"), [(None, "x"), ("x", None), ("x", "y")])
def test_a_compared_field_that_comes_goes_or_changes_is_a_changed_input(tmp_path, before, after):
    def row(tools):
        return {"id": 1, "text": "a", **({} if tools is None else {"tools": tools})}

    def run(tools):
        def work(job, missing):
            with job.appending() as append:
                append(*({**each, "answer": "b"} for each in missing))

        settings = {"settings": SETTINGS, "overwrite": False, "compared": ("text", "tools")}
        return run_sharded_job(tmp_path / "out.jsonl", [row(tools)], work, **settings)[1]

    assert run(before) == 1 and run(before) == 0
    with pytest.raises(ValueError, match=f"its `tools` has changed since: it was {before!r}?".replace("None", ".*")):
        run(after)
