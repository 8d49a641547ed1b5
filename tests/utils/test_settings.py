"""Settings of jobs: values of another kind, and files that would overwrite one another, are refused before work."""

from __future__ import annotations

import json
import os

import pytest

from hf_interdistill import BestOfNConfig, run_best_of_n
from hf_interdistill.cli import main
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.utils.fields import require_kinds

PATHS = {"model": "m", "prompts": "p.jsonl", "output": "o.jsonl"}
JOBS = {RainJobConfig: PATHS, BestOfNConfig: {**PATHS, "reward_model": "r"}}


@pytest.mark.parametrize(
    ("kind", "name", "value", "rule"),
    [
        (RainJobConfig, "output", 5, "text"),
        (RainJobConfig, "prompts", None, "text"),
        (RainJobConfig, "model", ["m"], "text"),
        (RainJobConfig, "trees", True, "text or null"),
        (RainJobConfig, "overwrite", "no", "true or false"),
        (RainJobConfig, "overwrite", 1, "true or false"),
        (RainJobConfig, "reward_scale", [1], "number"),
        (RainJobConfig, "seed", 1.5, "whole number or null"),
        (RainJobConfig, "dtype", None, "text"),
        (BestOfNConfig, "seed", "1", "whole number"),
        (BestOfNConfig, "n", True, "whole number"),
        (BestOfNConfig, "threshold", float("nan"), "number or null"),
        (BestOfNConfig, "margin", "x", "number"),
        (BestOfNConfig, "curve", True, "text or null"),
        (BestOfNConfig, "gold_model", 3, "text or null"),
        (BestOfNConfig, "keep", ["pairs"], "text"),
    ],
)
def test_values_of_another_kind_are_refused(kind, name, value, rule):
    with pytest.raises(ValueError, match=rf"`{name}` is .*, but must be a? ?{rule}\."):
        kind(**{**JOBS[kind], name: value})


def test_paths_are_names(tmp_path):
    for kind, settings in JOBS.items():
        config = kind(**{**settings, "prompts": tmp_path / "p.jsonl"})
        assert config.prompts == str(tmp_path / "p.jsonl") and json.dumps(config.result_settings())


def test_numbers_of_either_kind_are_numbers():
    config = BestOfNConfig(**{**JOBS[BestOfNConfig], "selected": "s", "threshold": 1})
    require_kinds(config)
    assert config.threshold == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_scale": 2.0}, "`reward_scale` changes nothing without `scorer: reward`"),
        ({"reward_center": -1.0}, "`reward_center` changes nothing without `scorer: reward`"),
        ({"tree_format": "html"}, "`tree_format` changes nothing without `trees`"),
        ({"scorer": "reward", "reward_model": "r", "reward_scale": 0.0}, "`scale` is 0.0, but must be a positive"),
        ({"scorer": "reward", "reward_model": "r", "reward_center": float("inf")}, "`center` is inf, but must be a"),
    ],
)
def test_settings_of_rewards_and_trees_are_checked_before_a_model_is_loaded(changes, message):
    with pytest.raises(ValueError, match=message):
        RainJobConfig(**PATHS, **changes)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi", "completions": ["a", "b"], "gold_rewards": [1, 2]}\n', encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["prompts.jsonl", "link.jsonl", "hard.jsonl", "sub/../prompts.jsonl"])
def test_an_output_is_never_its_input(prompts, tmp_path, name, capsys):
    before = prompts.read_bytes()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to(prompts)
    os.link(prompts, tmp_path / "hard.jsonl")
    own, other = str(prompts), str(tmp_path / name)
    with pytest.raises(ValueError, match=r"`output` and `prompts` are the same file.* Choose another `output`"):
        run_rain_job(RainJobConfig(**{**PATHS, "prompts": own, "output": other, "overwrite": True}))
    common = {"prompts": own, "reward_model": "r", "overwrite": True}
    with pytest.raises(ValueError, match="`output` and `prompts` are the same file"):
        run_best_of_n(BestOfNConfig(**common, output=other))
    for option in ("selected", "curve"):
        with pytest.raises(ValueError, match=f"`{option}` and `prompts` are the same file"):
            run_best_of_n(BestOfNConfig(**common, output=str(tmp_path / "o"), **{option: other}))
    assert main(["score", "--model", "r", "--input", own, "--output", other]) == 2
    assert "`output` and `input` are the same file" in capsys.readouterr().err
    assert prompts.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selected": "o.jsonl"}, "`selected` and `output` are the same file"),
        ({"selected": "c", "curve": "./c"}, "`curve` and `selected` are the same file"),
        ({"curve": "c.png"}, "the picture of `curve` and `curve` are the same file"),
        ({"curve": "."}, "`curve` is '.', a folder, but must be a file"),
        ({"selected": "sub"}, "`selected` is 'sub', a folder, but must be a file"),
    ],
)
def test_outputs_do_not_overwrite_one_another(prompts, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match=message):
        run_best_of_n(BestOfNConfig(prompts=str(prompts), output="o.jsonl", reward_model="r", **changes))


def test_a_folder_of_trees_that_cannot_be_written_is_named_before_work(prompts, tmp_path):
    (tmp_path / "trees").write_text("")
    settings = {**PATHS, "prompts": str(prompts), "output": str(tmp_path / "o"), "trees": str(tmp_path / "trees")}
    with pytest.raises(PermissionError, match=r"`trees` .* cannot be written"):
        run_rain_job(RainJobConfig(**settings))
