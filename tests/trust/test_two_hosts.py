"""Two hosts on this machine (network namespaces), and the scripts for SLURM on them: the results of one process.

Commands that stand for SLURM's start a task in each namespace; all else is as on a cluster: `accelerate launch` with
a rank for each machine, gloo over the cable between them, servers that listen on addresses of their own.
"""

from __future__ import annotations

import json

import pytest
from support.slurm import two_hosts, why_no_hosts

pytestmark = pytest.mark.slow
KEYS = ("loss", "interaction/loss", "interaction/intra", "interaction/inter", "interaction/explained", "grad_norm")


@pytest.fixture(scope="module")
def hosts():
    if reason := why_no_hosts():
        pytest.skip(reason)


def test_training_on_two_hosts_equals_one_process(pipeline, hosts, tmp_path):
    command = pipeline.reward("rm2", per_device_train_batch_size=4)
    with two_hosts(tmp_path) as slurm:
        slurm.add_module("accelerate", "accelerate.commands.accelerate_cli")
        run = slurm.run(
            "train.sh",
            *command,
            ACCELERATE_CONFIG="recipes/accelerate_configs/ddp.yaml",
            PROCESSES_PER_NODE="1",
            LAUNCH_OPTIONS="--mixed_precision no",
            GLOO_SOCKET_IFNAME="eth0",  # both hosts have this machine's name, which is that of their loopback
        )
    assert run.returncode == 0, run.stdout[-6000:]
    found = pipeline.farthest("rm", "rm2")
    print("weights", found)
    assert found < 1e-6
    for key in KEYS:
        print(key, max(abs(a - b) for a, b in zip(pipeline.log("rm2", key), pipeline.log("rm", key), strict=True)))
        assert pipeline.log("rm2", key) == pytest.approx(pipeline.log("rm", key), rel=1e-5, abs=1e-6), key
    assert {path.name for path in pipeline.path("rm2", "checkpoint-6").glob("rng_state*")} == {
        f"rng_state_{rank}.pth" for rank in range(2)
    }


def test_rain_over_servers_of_two_hosts_equals_one_server(pipeline, hosts, tmp_path):
    words = ["--prompts", str(pipeline.path("prompts.jsonl")), "--scorer", "support.job_scorers:short"]
    words += ["--max_new_tokens", "4", "--iterations", "4", "--candidates", "3", "--rollout_max_tokens", "4"]

    def job(name: str, **environment) -> tuple[list[tuple], str]:
        run = slurm.run(
            "rain.sh",
            *(*words, "--output", str(pipeline.path(name))),
            MODEL=str(pipeline.path("lm")),
            SERVER_LOG=str(tmp_path / name),
            **environment,
        )
        assert run.returncode == 0, run.stdout[-6000:]
        return pipeline.answers(name), run.stdout

    with two_hosts(tmp_path) as slurm:
        slurm.add_module("vllm", "support.run_server")
        slurm.add_module("interdistill", "hf_interdistill.cli")
        both, printed = job("both.jsonl")
        asked = [(tmp_path / f"both.jsonl-{node}").read_text().count("/v1/completions") for node in range(2)]
        print("requests", asked)
        assert min(asked) > 20 and "left out" not in printed
        slurm.add(
            "vllm",
            (slurm.bin / "vllm").read_text().replace("exec", "[[ $SLURM_NODEID == 0 ]] && exec", 1) + "exit 3\n",
        )
        one, printed = job("one.jsonl", START_WITHIN="40")
    assert "http://10.77.0.2:" in printed and "is left out from now on" in printed
    assert len(both) == 7 and both == one
    assert json.loads(pipeline.path("both.jsonl").read_text().splitlines()[0])["stats"]["committed_tokens"] > 0
