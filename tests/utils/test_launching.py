"""Commands in several processes: which words start them, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config import config_args
from support.datasets import ROOT

from hf_interdistill.cli import LAUNCHED, main
from hf_interdistill.utils import launching
from hf_interdistill.utils.launching import launcher

DDP = str(ROOT / "recipes" / "accelerate_configs" / "ddp.yaml")
START = ("-m", "accelerate.commands.launch")
EMPTY = "Argument --num_processes/--num-processes: expected one argument. Write a value"
PORT = ("--main_process_port", "0")


@pytest.fixture(autouse=True)
def no_own_configuration(tmp_path, monkeypatch):
    """The user's own configuration of accelerate, which `accelerate config` writes; not there."""
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
    return tmp_path / "default_config.yaml"


def test_accelerate_starts_the_processes():
    assert launcher(None, None) == launcher(1, None) == ()
    assert launcher(2, None) == (*START, "--num_processes", "2", *PORT, "--multi_gpu")
    assert launcher(2, DDP) == (*START, "--config_file", DDP, "--num_processes", "2", *PORT)
    assert launcher(None, DDP) == (*START, "--config_file", DDP, *PORT)
    (_, _, _, path, *rest) = launcher(3, "zero3")
    assert path.endswith("trl/accelerate_configs/zero3.yaml") and rest == ["--num_processes", "3", *PORT]


CPU = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 4, "use_cpu": True}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**CPU}, ("--multi_gpu",)),
        ({**CPU, "distributed_type": "NO"}, ("--multi_gpu",)),
        ({**CPU, "mpirun_config": {"mpirun_hostfile": "hosts"}}, ()),
        ({**CPU, "distributed_type": "FSDP", "use_cpu": False}, ()),
    ],
)
def test_the_own_configuration_decides_who_starts_them(config, words, no_own_configuration):
    no_own_configuration.write_text(yaml.safe_dump(config))
    assert launcher(2, None) == (*START, "--num_processes", "2", *PORT, *words)
    path = str(no_own_configuration)
    assert launcher(2, path) == (*START, "--config_file", path, "--num_processes", "2", *PORT, *words)


@pytest.mark.parametrize("config", [None, "single_gpu", {"distributed_type": "NO"}, {"distributed_type": "MULTI_CPU"}])
def test_as_many_processes_run_as_are_asked_for(config, tmp_path):
    """Without a configuration, and with those by which accelerate alone would start one process."""
    path = config
    if isinstance(config, dict):
        path = str(tmp_path / "config.yaml")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CPU, **config}))
    script = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1] + os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])"
    )
    (tmp_path / "rank.py").write_text(script)
    run = subprocess.run([sys.executable, *launcher(2, path), str(tmp_path / "rank.py"), str(tmp_path / "rank")])
    assert run.returncode == 0
    assert {name: (tmp_path / name).read_text() for name in ("rank0", "rank1")} == {"rank0": "2", "rank1": "2"}


@pytest.mark.parametrize("command", LAUNCHED)
@pytest.mark.parametrize("dash", ["--num_processes", "--num-processes"])
def test_a_command_is_started_with_its_other_arguments(command, dash, monkeypatch):
    started = []
    monkeypatch.setattr(launching, "run_child", lambda words: started.append(words) or 7)
    words = ["--model", "a", dash, "2", "--output=b c", f"--accelerate_config={DDP}", "--config", "r.yaml"]
    assert main([command, *words]) == 7
    module = ["-m", "hf_interdistill.cli", command]
    kept = ["--model", "a", "--output=b c", "--config", "r.yaml"]
    assert started == [[sys.executable, *START, "--config_file", DDP, "--num_processes", "2", *PORT, *module, *kept]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_processes", "0"], "`num_processes` is '0', but must be a whole number of at least 1"),
        (["--num_processes", "two"], "`num_processes` is 'two'"),
        (["--num_processes"], EMPTY),
        (
            ["--num_processes", "--max_steps", "3"],
            "Argument --num_processes/--num-processes: expected one argument. Write a value",
        ),
        (
            ["--accelerate_config", "zero4"],
            "`accelerate_config` is 'zero4', but must be a file or one of TRL's configurations: ",
        ),
    ],
)
def test_what_cannot_be_started_is_refused(words, message, monkeypatch):
    monkeypatch.setattr(launching, "run_child", lambda words: pytest.fail("started"))
    with pytest.raises(ValueError, match=message):
        launching.run_launched("reward", words)


def test_processes_start_no_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a launcher has started this command in 2 processes already"):
        launching.run_launched("reward", ["--num_processes", "2"])
    assert launching.run_launched("reward", ["--model", "a"]) is None


def test_other_commands_know_no_such_option(capsys):
    assert main(["score", "--num_processes", "2", "--model", "a", "--input", "b"]) == 2
    assert "Unknown key `num_processes`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reward_model_trains_in_two_processes(tmp_path):
    from support.models import build_student
    from support.tokenizers import tokenizer_of

    build_student("qwen3").save_pretrained(tmp_path / "rm")
    tokenizer_of("bytes").save_pretrained(tmp_path / "rm")
    data = str(ROOT / "recipes" / "demo" / "preferences")
    words = ["--model_name_or_path", str(tmp_path / "rm"), "--dataset_name", data, "--alignment_weight", "0"]
    words += ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--per_device_train_batch_size", "2"]
    words += ["--report_to", "none", "--use_cpu", "true", "--bf16", "false", "--save_steps", "2"]
    assert main(["reward", *words, "--num_processes", "2"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    pairs = len((ROOT / "recipes" / "demo" / "preferences" / "train.jsonl").read_text().splitlines())
    assert state["epoch"] == pytest.approx(2 * 2 * 2 / pairs), "two steps of two pairs in each of two processes"
