"""`--help` by group, `--version` and `env`."""

from __future__ import annotations

import importlib
import re

import pytest

import hf_interdistill
from hf_interdistill.cli import COMMANDS, main
from hf_interdistill.reward_benchmarks import BENCHMARKS
from hf_interdistill.utils.option_groups import option_groups


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_one_group_with_its_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    printed = help_of(command, capsys)
    arguments = importlib.import_module(f"hf_interdistill.{COMMANDS[command][0]}").ARGUMENTS
    lines = printed.splitlines()
    for _, options in option_groups(arguments):
        for each in options:
            (line,) = (line for line in lines if re.match(rf"\s+--{each.name}[ ,]", line))
            assert "(default: None)" not in line
    assert sum(line.strip().startswith("--config ") for line in lines) == 1
    assert f"usage: interdistill {command} [--config recipe.yaml]" in lines[0]


def test_the_methods_options_come_first_and_those_of_trl_last(capsys):
    printed = help_of("reward", capsys)
    titles = [line for line in printed.splitlines() if re.match(r"\w.*:$", line)]
    assert titles[:3] == [
        "General:",
        "Configuration of `InteractionDistillationTrainer`:",
        "Options of the reward loss, with the alignment or without it:",
    ]
    assert titles[-1].startswith("Options of ") and "Options of RewardConfig:" in titles
    assert "--alignment_weight VALUE" in printed and "(default: 0.3)" in printed
    assert re.search(r"--dataset_name VALUE.*\n?.*\(required\)", printed)
    assert re.search(r"one of\s+kl,\s+mse", printed)


def test_eval_lists_the_benchmarks(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    (line,) = (line for line in help_of("eval", capsys).splitlines() if line.strip().startswith("--benchmark "))
    assert all(name in line for name in BENCHMARKS) and len(BENCHMARKS) >= 9


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"hf_interdistill {hf_interdistill.__version__}\n"


def test_env_names_versions_and_devices(capsys, monkeypatch):
    import torch
    import trl

    monkeypatch.setattr(torch, "__version__", torch.__version__.split("+")[0] + "+cu999")  # as torch names its build
    assert main(["env"]) == 0
    found = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found["torch"] == torch.__version__ and found["trl"] == trl.__version__
    assert found["hf_interdistill"] == hf_interdistill.__version__ and "CPU" in found["devices"]
    assert all(found.values())
