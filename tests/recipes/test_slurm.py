"""The scripts for SLURM: their tasks are run on this machine, one a node, by commands that stand for SLURM's.

`tests/trust/test_two_hosts.py` runs them for real on two hosts.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
from accelerate.commands.launch import launch_command_parser
from support.slurm import RECIPES, Slurm

SCRIPTS = sorted(path.name for path in RECIPES.glob("*.sh"))
OPTIONS = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"}
# What a task writes down: its words, and what it was told by the environment.
RECORDING = """#!{python}
import json, os, sys
node = os.environ.get("SLURM_NODEID", "client")
told = {{name: os.environ.get(name) for name in ("VLLM_API_KEY",)}}
with open(f"{folder}/{name}-{{node}}.json", "w") as file:
    json.dump([sys.argv[1:], told], file)
{then}
"""
SERVER = """
import http.server
if node == os.environ.get("BROKEN_NODE"):
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *args):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer((f"127.0.0.{int(node) + 1}", port), Handler).serve_forever()
"""


@pytest.fixture
def slurm(tmp_path):
    slurm = Slurm(tmp_path)
    for name, then in (("accelerate", ""), ("interdistill", "sys.exit(int(os.environ.get('STATUS', 0)))")):
        slurm.add(name, RECORDING.format(python=sys.executable, folder=tmp_path, name=name, then=then))
    slurm.add("vllm", RECORDING.format(python=sys.executable, folder=tmp_path, name="vllm", then=SERVER))
    return slurm


def recorded(tmp_path, name, node):
    return json.loads((tmp_path / f"{name}-{node}.json").read_text())


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name):
    path = RECIPES / name
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    assert os.access(path, os.X_OK)
    found = re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", path.read_text(), re.MULTILINE)
    assert {option for option, _ in found} == OPTIONS
    assert len(found) == path.read_text().count("#SBATCH")
    assert dict(found)["nodes"] == "2" and dict(found)["ntasks-per-node"] == "1"


def test_a_task_of_each_node_starts_its_processes(slurm, tmp_path):
    words = ["reward", "--config", "a recipe.yaml", "--model_init_kwargs", '{"a": "b c"}']
    run = slurm.run("train.sh", *words, PROCESSES_PER_NODE="4", LAUNCH_OPTIONS="--mixed_precision no")
    assert run.returncode == 0, run.stdout
    ports = set()
    for node in range(2):
        (launch, *arguments), _ = recorded(tmp_path, "accelerate", node)
        assert launch == "launch"
        read = launch_command_parser().parse_args(arguments)
        assert (read.num_machines, read.num_processes, read.machine_rank) == (2, 8, node)
        assert (read.main_process_ip, read.mixed_precision) == ("127.0.0.1", "no")
        assert read.config_file == "recipes/accelerate_configs/fsdp2.yaml"
        assert (read.module, read.training_script, read.training_script_args) == (True, "hf_interdistill.cli", words)
        ports.add(read.main_process_port)
    assert len(ports) == 1 and 20000 <= ports.pop() < 40000


def test_a_task_that_fails_ends_the_others(slurm, tmp_path):
    slurm.add("accelerate", "#!/bin/bash\n[[ $SLURM_NODEID == 1 ]] && exit 7\nexec sleep 100\n")
    start = time.monotonic()
    assert slurm.run("train.sh", "reward").returncode != 0
    assert time.monotonic() - start < 60


def test_servers_are_started_asked_and_ended(slurm, tmp_path):
    run = slurm.run("rain.sh", "--prompts", "a b.jsonl", MODEL="models/lm", SERVE_OPTIONS="--max-logprobs 30 --foo")
    assert run.returncode == 0, run.stdout
    keys, ports = set(), set()
    for node in range(2):
        words, told = recorded(tmp_path, "vllm", node)
        assert words[:4] == ["serve", "models/lm", "--served-model-name", "lm"]
        flags = ["--max-logprobs", "64", "--logprobs-mode", "processed_logprobs"]  # of published generation configs
        assert words[-7:] == [*flags, "--max-logprobs", "30", "--foo"]
        ports.add(words[words.index("--port") + 1])
        keys.add(told["VLLM_API_KEY"])
    words, told = recorded(tmp_path, "interdistill", "client")
    (port,) = ports
    assert words == [
        *("rain", "--server", f"http://127.0.0.1:{port}", f"http://127.0.0.2:{port}"),
        *("--model", "lm", "--tokenizer", "models/lm", "--prompts", "a b.jsonl"),
    ]
    assert keys == {told["VLLM_API_KEY"]} and re.fullmatch("[0-9a-f]{32}", keys.pop())
    refused = subprocess.run(["curl", "--silent", f"http://127.0.0.1:{port}/health"], capture_output=True)
    assert refused.returncode == 7  # nothing listens there any more


def test_the_status_is_that_of_the_command_and_commands_may_be_others(slurm, tmp_path):
    run = slurm.run("rain.sh", MODEL="lm", COMMAND="best-of-n", STATUS="2", VLLM_API_KEY="mine")
    assert run.returncode == 2
    words, told = recorded(tmp_path, "interdistill", "client")
    assert words[0] == "best-of-n" and told["VLLM_API_KEY"] == "mine"


def test_servers_that_do_not_start(slurm, tmp_path):
    """One: it is named, and the client leaves it out. All: the job ends."""
    run = slurm.run("rain.sh", MODEL="lm", BROKEN_NODE="1", START_WITHIN="3")
    assert run.returncode == 0
    assert re.search(r"http://127\.0\.0\.2:\d+ has not started within 3 s\.", run.stdout)
    assert sum(word.startswith("http://") for word in recorded(tmp_path, "interdistill", "client")[0]) == 2
    (tmp_path / "interdistill-client.json").unlink()
    slurm.add("vllm", "#!/bin/bash\nexit 3\n")
    run = slurm.run("rain.sh", MODEL="lm")
    assert run.returncode == 1 and "All servers have ended" in run.stdout
    assert not (tmp_path / "interdistill-client.json").exists()
    run = slurm.run("rain.sh")
    assert run.returncode != 0 and "MODEL: set it to the name or folder of the model" in run.stdout
