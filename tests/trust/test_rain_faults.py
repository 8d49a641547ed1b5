"""Kills, full disks and failing judges in a RAIN job: no answer is lost, none is written twice."""

from __future__ import annotations

import json
from pathlib import Path

from support import job_scorers
from support.faults import at_call, kill_now, killed, limit_files
from support.processes import forked

from hf_interdistill.cli import main
from hf_interdistill.utils import atomic_io as durable
from hf_interdistill.utils import jsonl_jobs as job_files


def kept(pipeline, output: str = "answers.jsonl") -> list[str]:
    """Ids with an answer, in the output and in its shards, in the order of writing."""
    paths = [pipeline.path(output), *sorted(pipeline.folder.glob(f"{output}.shard-*"))]
    text = "".join(path.read_text() for path in paths if path.is_file())
    rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return [row["id"] for row in rows if "error" not in row]


def test_a_rain_job_killed_anywhere_ends_the_same(pipeline):
    """After an answer, in the middle of one's line, while the output is put together, when its shard is removed."""

    def half_a_line():
        original, calls = job_files.os.fsync, [0]

        def cut(file):
            calls[0] += 1
            if calls[0] == 2:
                shard = next(pipeline.folder.glob("answers.jsonl.shard-*"))
                shard.write_text(shard.read_text()[:-20])
                kill_now()
            return original(file)

        job_files.os.fsync = cut

    command = pipeline.rain()
    # The first file that is removed is the one that shows that the folder can be written.
    moments = {
        "after the third answer": (lambda: at_call(job_files.os, "fsync", 5, is_after=True), 3),
        "in a line": (half_a_line, 4),
        "before the output is there": (lambda: at_call(durable.os, "replace", 1), 7),
        "before the shard is gone": (lambda: at_call(Path, "unlink", 2), 14),
    }
    for moment, (arrange, finished) in moments.items():
        before = set(kept(pipeline))
        killed(command, arrange)
        assert set(kept(pipeline)) >= before, moment
        assert len(kept(pipeline)) == finished, moment  # each answer once; at the end in the output and in its shard
    assert main(command) == 0
    assert pipeline.answers() == pipeline.answers("uninterrupted.jsonl")
    assert not list(pipeline.folder.glob("answers.jsonl.shard-*"))


def test_a_full_disk_in_a_rain_job(pipeline):
    """Half a line may be left; the answers before it count, and are not searched again."""
    size, original = pipeline.path("uninterrupted.jsonl").stat().st_size // 2, job_files.JsonlJob.appending

    def action():
        at_call(job_files.JsonlJob, "appending", 1, lambda files: limit_files(size) or original(files))
        return main(pipeline.rain())

    status, error = forked(action)
    assert status == 2
    assert "File too large. There is no room to write. What was finished is kept" in error
    finished = kept(pipeline)
    assert 1 <= len(finished) < 7
    assert main(pipeline.rain()) == 0
    assert pipeline.answers() == pipeline.answers("uninterrupted.jsonl")


def test_a_judge_that_fails_at_random(pipeline, capsys, monkeypatch):
    """Each call resumes the job; no answer is lost, none is written twice."""
    monkeypatch.setattr(job_scorers.failing_at_random, "calls", 0)
    monkeypatch.setattr(job_scorers.failing_at_random, "odds", 4)  # a text that is refused with others is scored alone
    command = pipeline.rain(scorer="support.job_scorers:failing_at_random")
    failures, before = 0, []
    while main(command) == 2:
        failures += 1
        error = capsys.readouterr().err
        assert "the judge is out" in error and "Run the same command again to try these again" in error
        now = kept(pipeline)
        assert set(before) <= set(now) and len(now) == len(set(now))
        before = now
        assert failures < 200
    assert failures >= 2 and len(before) >= 1
    assert pipeline.answers() == pipeline.answers("uninterrupted.jsonl")
