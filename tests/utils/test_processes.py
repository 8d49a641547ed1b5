"""How processes of one job are joined, and that they wait for one another as long as the job takes."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest
import torch
from accelerate import PartialState
from support.processes import forked_ranks

from hf_interdistill.utils import processes
from hf_interdistill.utils.sharded_jobs import run_sharded_job


@pytest.mark.parametrize("uses_device", [True, False])
@pytest.mark.parametrize("has_device", [True, False])
@pytest.mark.parametrize("flag", ["true", "false"])
def test_a_job_without_a_device_is_joined_on_the_cpu(monkeypatch, flag, has_device, uses_device):
    made = []
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_device)
    monkeypatch.setattr(processes, "PartialState", lambda **arguments: made.append(arguments))
    processes.process_state(uses_device)
    assert made == [{"cpu": flag == "true" or not has_device or not uses_device}]


def test_a_process_waits_for_one_that_ends_long_after_it(tmp_path):
    """The default group gives up after eight seconds here, as it does after half an hour."""
    output = tmp_path / "out.jsonl"

    def run():
        PartialState._reset_state()  # that of this process, which is alone
        torch.distributed.distributed_c10d._get_default_timeout = lambda backend: timedelta(seconds=8)

        def work(job, rows):
            time.sleep(12.0 * job._own_file.name.endswith("00001-of-00002"))
            with job.appending() as append:
                append(*({**row, "answer": row["id"]} for row in rows))

        rows = [{"id": number} for number in range(4)]
        run_sharded_job(output, rows, work, settings={}, overwrite=False, uses_device=False)
        print(torch.distributed.get_backend(), torch.distributed.get_world_size())

    assert [printed.split()[-2:] for printed in forked_ranks(2, run)] == [["gloo", "2"]] * 2
    assert [json.loads(line) for line in output.open()] == [{"id": each, "answer": each} for each in range(4)]
    assert not list(tmp_path.glob("*shard*"))


def test_the_barrier_of_a_job_has_its_own_group_and_time(monkeypatch):
    made, waited = [], []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **arguments: made.append(arguments) or "group")
    monkeypatch.setattr(torch.distributed, "barrier", lambda group: waited.append(group))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda group: waited.append(f"end of {group}"))
    state = type("State", (), {"num_processes": 2})()
    with processes.long_barrier(state) as wait:
        wait()
    assert made == [{"backend": "gloo", "timeout": timedelta(days=365)}]
    assert waited == ["group", "end of group"]
