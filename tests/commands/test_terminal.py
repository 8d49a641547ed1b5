"""What commands print: names of users as they are, and nothing of third parties before it."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
from support.datasets import ROOT
from support.models import build_student
from support.pipeline import Pipeline
from support.tokenizers import tokenizer_of

from hf_interdistill.cli import main
from hf_interdistill.commands.quiet import known_noise_silenced
from hf_interdistill.commands.tables import print_metrics
from hf_interdistill.reward_benchmarks import BENCHMARKS
from hf_interdistill.reward_benchmarks.analysis import analyze
from hf_interdistill.reward_benchmarks.grids import Report
from hf_interdistill.reward_benchmarks.items import Item, Result
from hf_interdistill.reward_benchmarks.reports import markdown
from hf_interdistill.reward_benchmarks.running import BenchmarkRun

NAMES = ("[chat]", "[/chat]", "[red]hot[/red]", "[link=x]", ":cat:", r"a\[b]")


def save_model(folder) -> str:
    build_student().save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_columns_and_titles_are_printed_as_they_are(name, capsys):
    print_metrics(f"of {name} all", {name: {name: 0.25}})
    title, _, head, _, row, _ = (line.strip() for line in capsys.readouterr().out.splitlines())
    assert title == f"of {name} all"
    assert head.split() == ["┃", "metric", "┃", name, "┃"]
    assert row.split() == ["│", name, "│", "0.25", "│"]


def test_long_names_are_folded_and_not_cut(capsys):
    name = "runs/" + "x" * 300
    print_metrics("t", {name: {"accuracy": 0.5}})
    assert "…" not in (printed := capsys.readouterr().out) and printed.count("x") == 300


def test_eval_prints_the_names_of_sections(tmp_path, capsys):
    model = save_model(tmp_path / "[bold]rm")
    data = str(ROOT / "tests" / "reward_benchmarks" / "samples" / "rm_bench")
    arguments = ["--model", model, "--benchmark", "rm_bench", "--data", data, "--output", str(tmp_path / "[red]o")]
    assert main(["eval", *arguments]) == 0
    printed = capsys.readouterr().out
    for name in ("[easy]", "[normal]", "[hard]", "[bold]rm", "[red]o"):
        assert name in printed, name


def test_score_and_diagnose_print_paths_with_brackets(tmp_path, capsys):
    model = save_model(tmp_path / "[red]rm")
    rows = [{"prompt": f"q{i} ", "chosen": "a good one", "rejected": f"no {i}"} for i in range(3)]
    source = tmp_path / "[red].jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = str(tmp_path / "[out]" / "a.jsonl")
    assert main(["score", "--model", model, "--input", str(source), "--output", output]) == 0
    assert "[out]/a.jsonl" in "".join(capsys.readouterr().out.split())
    output = str(tmp_path / "[i]report")
    assert main(["diagnose", "--model", model, "--data", str(source), "--output", output, "--resamples", "5"]) == 0
    printed = "".join(capsys.readouterr().out.split())
    assert "[red]rm" in printed and "[i]report" in printed


def test_errors_name_paths_with_brackets(tmp_path, capsys):
    missing = str(tmp_path / "[red]no.jsonl")
    assert main(["score", "--model", "x", "--input", missing]) == 2
    assert missing in capsys.readouterr().err


def test_push_lists_files_with_brackets(tmp_path, capsys):
    model = save_model(tmp_path / "rm")
    assert main(["push", "--model", model, "--repo_id", "user/rm", "--dry_run", "true"]) == 0
    assert "model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["hf_interdistill", "recipes"])
def test_no_console_reads_markup(folder):
    calls = 0
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Console":
                calls += 1
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("markup") == given.get("emoji") == "False", path
    assert calls > 0


def test_names_do_not_break_tables_of_markdown():
    items, rewards = [Item("file, line 1", "a|b\nc", [], ("one", "three"), pairs=((0, 1),))], [(1.0, 0.0)]
    benchmark = BENCHMARKS["reward_bench"]
    judged = benchmark.judge(items, rewards, False)
    (name,) = judged
    benchmark = replace(benchmark, combine=lambda cells: Result(cells, {}, cells[name].score))
    analysis = analyze(benchmark, items, {"x|y": rewards})
    run = BenchmarkRun(benchmark.aggregate(items, rewards), 0, tuple(rewards))
    lines = markdown({"bench": Report({"x|y": run}, analysis, {})}).splitlines()
    assert r"| | items | chance | longest | shortest | x\|y |" in lines
    assert any(line.startswith(r"| a\|b c | 1 | 0.5000 | 0.0000 | 1.0000 | 1.0000 (") for line in lines)


NOISE = ("Failed to load CPU gemm_4bit_forward", "is deprecated", "pin_memory", "Warning", "mtime may not be")


def test_the_noise_of_libraries_is_not_shown(tmp_path):
    """A run with LoRA, whose imports say most, in a process of its own: libraries say it once per process."""
    pytest.importorskip("peft")
    pipeline = Pipeline(tmp_path)
    command = pipeline.plain("rm", max_steps=1, save_strategy="no")
    command += ["--use_peft", "--lora_task_type", "SEQ_CLS", "--lora_modules_to_save", "score"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    run = subprocess.run(
        [sys.executable, "-m", "hf_interdistill.cli", *command], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert not [line for line in run.stderr.splitlines() if any(each in line for each in NOISE)]
    assert "Saved to " in run.stdout


def test_only_that_noise_is_silenced_and_only_in_commands(caplog):
    kernels = "Failed to load CPU gemm_4bit_forward from kernels-community: %s"
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with known_noise_silenced():
            for text, category in (
                ("`gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning),
                ("'pin_memory' argument is set as true but no accelerator is found", UserWarning),
                ("`save_steps` is deprecated", FutureWarning),
                ("an answer was cut", UserWarning),
            ):
                warnings.warn(text, category, stacklevel=1)
            logger.warning(kernels, "no module")
            logger.warning("4-bit weights are slow here")
            logger.error(kernels, "broken")
        logger.warning(kernels, "after the command")
    assert [str(each.message) for each in caught] == ["`save_steps` is deprecated", "an answer was cut"]
    shown = [record.getMessage() for record in caplog.records]
    assert shown == ["4-bit weights are slow here", kernels % "broken", kernels % "after the command"]


@pytest.mark.parametrize(("given", "delay"), [({}, 2.0), ({"TQDM_DELAY": "0"}, 0.0)])
def test_bars_of_what_is_short_are_not_shown(given, delay):
    """Bars of loading, tokenizing and writing are tqdm's, which waits; logs of a training are not touched."""
    code = (
        "import io; from hf_interdistill.cli import main; main(['env']); from tqdm.auto import tqdm; "
        "from transformers.utils.logging import tqdm as of_transformers; "
        "from datasets.utils import tqdm as of_datasets; "
        "print([kind([1], file=io.StringIO()).delay for kind in (tqdm, of_transformers, of_datasets)])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DELAY"}
    ran = subprocess.run([sys.executable, "-c", code], env={**environment, **given}, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == str([delay] * 3), ran.stderr
