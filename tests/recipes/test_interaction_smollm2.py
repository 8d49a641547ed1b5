"""The study of SmolLM2: its rows are right, its table is paired, and its small form runs and resumes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import astuple

import numpy as np
import pytest
import yaml
from support.comparisons import start_forked
from support.datasets import ROOT, SHARED_DATA
from support.models import build_encoder
from support.rain import build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.comparison import runs
from hf_interdistill.comparison.statistics import paired_difference
from hf_interdistill.interaction.teacher.teacher import InteractionTeacher
from recipes.studies.interaction_smollm2 import rows, study, table
from recipes.studies.interaction_smollm2.rows import read_lines

STUDY = ROOT / "recipes" / "studies" / "interaction_smollm2"
CONFIG = yaml.safe_load((STUDY / "study.yaml").read_text(encoding="utf-8"))
needs_data = pytest.mark.skipif(not (SHARED_DATA / "hh_harmless").is_dir(), reason="needs ../shared/data")


def pair(number: int) -> dict:
    return {
        "prompt": [{"role": "user", "content": f"question {number}"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def test_labels_are_flipped_and_phrases_planted():
    given = [pair(number) for number in range(40)]
    flipped = rows.with_flipped_labels(given, 0.3, seed=0)
    changed = [old != new for old, new in zip(given, flipped, strict=True)]
    assert sum(changed) == 12 and flipped == rows.with_flipped_labels(given, 0.3, seed=0)
    for old, new, is_flipped in zip(given, flipped, changed, strict=True):
        assert new["prompt"] == old["prompt"]
        assert new["chosen"] == old["rejected" if is_flipped else "chosen"]
    planted = rows.with_planted_phrase(given, " Bye.", 0.8, seed=0)
    assert sum(row["chosen"][0]["content"] == "good Bye." for row in planted) == 32
    assert all(
        (row["chosen"][0]["content"] == "good") == (row["rejected"][0]["content"] == "bad Bye.") for row in planted
    )


def test_no_scored_prompt_is_trained_on():
    given = [pair(number) for number in range(40)]
    found = rows.drawn(given, 30, 0, apart_from=given[:20])
    assert len(found) == 20 and all(row in given[20:] for row in found)
    assert rows.drawn(given, 5, 0, apart_from=given[:20]) == found[:5]


def scored(folder, outcomes: dict[str, list[str]]) -> None:
    """Rewards of each arm and seed: `+` where the chosen response has more, in files whose lines are out of order."""
    for arm, seeds in outcomes.items():
        for seed, own in enumerate(seeds):
            target = folder / arm / f"seed-{seed}"
            target.mkdir(parents=True)
            records = [{"id": i, "rewards": [float(sign == "+"), 0.5]} for i, sign in enumerate(own)]
            (target / "scores-abc.jsonl").write_text("\n".join(map(json.dumps, reversed(records))), encoding="utf-8")


def test_the_table_pairs_seeds_and_prompts(tmp_path):
    """Differences are of the same seed and prompt, and pairs of one prompt count as one."""
    draw = np.random.default_rng(0)
    hard = draw.random((2, 62))  # how hard a row is for a seed: both models find it alike
    signs = {"baseline": hard < 0.5, "interaction": hard < 0.6}
    scored(tmp_path, {arm: ["".join("-+"[int(sign)] for sign in own) for own in each] for arm, each in signs.items()})
    given = [pair(number) for number in (0, 0, *range(1, 61))]
    found = table.summarize(tmp_path, list(signs), [0, 1], {"first": 2, "last": 60}, given, 500)
    assert found["baseline"]["first"]["accuracy"][0] == signs["baseline"][:, :2].mean()
    assert found["baseline"]["first"]["accuracy"][3] == 1 and "difference" not in found["baseline"]["last"]
    mine, theirs = (
        {seed: signs[arm][seed, 2:].astype(float) for seed in (0, 1)} for arm in ("interaction", "baseline")
    )
    expected = paired_difference(mine, theirs, 500)
    assert found["interaction"]["last"]["difference"] == astuple(expected) and expected.value > 0
    swapped = paired_difference({0: mine[1], 1: mine[0]}, theirs, 500)
    assert swapped.value == expected.value and swapped.high - swapped.low > 1.5 * (expected.high - expected.low)


@needs_data
def test_the_small_study_runs_and_resumes(tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr(runs, "start", start_forked)
    model, tokenizer = build_causal(num_hidden_layers=2), tokenizer_of("bytes")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    for part in build_encoder():
        part.save_pretrained(tmp_path / "encoder")
    quick = {"bf16": False, "max_steps": 2}
    arms = ["untrained", "grm", "interaction_clean", "bidirectional", "score_distillation"]
    few = {"pairs": 60, "test_pairs": {"hh_harmless": 6, "truthfulqa": 4}}
    config = CONFIG | {
        "data": str(SHARED_DATA),
        "language_model": str(tmp_path / "model"),
        "encoder": str(tmp_path / "encoder"),
        "output_dir": str(tmp_path / "runs"),
        "results_dir": str(tmp_path / "results"),
        "longest": 110,
        "phrase": {**CONFIG["phrase"], "pairs": 3},
        "groups": {"hh_harmless.noise30": {"train": "hh_harmless", "flipped": 0.3, "seeds": 1, "arms": arms, **few}},
        "teachers": CONFIG["teachers"] | {"bidirectional": {"encoder": "smollm2"}},
        "teacher": {"warm_start_epochs": 0, "max_steps": 3, "learning_rate": 0.01},
        "reward": {**quick, "model_init_kwargs": {"num_hidden_layers": 2}},
        "context": {"pairs": 5, "arms": ["baseline"]},
        "resamples": 100,
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    study.main(["--config", str(tmp_path / "study.yaml")])
    folder = tmp_path / "runs" / "hh_harmless.noise30"
    figures = json.loads((folder / "figures.json").read_text())
    assert list(figures["models"]) == list(figures["tests"]) == ["baseline", "interaction", *arms]
    assert figures["rows"]["train"] == 60
    assert figures["rows"]["tests"] == {"hh_harmless": 6, "truthfulqa": 4, "phrase on rejected": 3}
    explained = figures["models"]
    assert explained["grm"] is None is explained["baseline"] and explained["interaction"] is not None
    with_maps = [explained[arm] for arm in ("interaction", "untrained", "interaction_clean", "bidirectional")]
    assert len(set(with_maps)) == 4 and explained["score_distillation"] is None
    noisy, clean, scored = (
        read_lines(folder / each / "train.jsonl") for each in ("rows", "clean rows", "scored rows")
    )
    assert sum(old["chosen"] != new["chosen"] for old, new in zip(clean, noisy, strict=True)) == 18
    teacher = InteractionTeacher.from_pretrained(str(folder / "teachers" / "fitted"))
    margins = teacher.score_pairs(noisy).mean(dim=1)
    expected = [
        {**row, "preference_probability": 1 / (1 + math.exp(-m))} for row, m in zip(noisy, margins, strict=True)
    ]
    assert [each.pop("preference_probability") for each in scored] == pytest.approx(
        [each.pop("preference_probability") for each in expected], rel=1e-5
    )
    assert scored == expected
    own = figures["teachers"]["fitted"]
    right = [margin > 0 for margin in teacher.score_pairs(read_lines(folder / "rows" / "test.jsonl")).mean(dim=1)]
    assert own["tests"]["phrase on rejected"] == sum(right[-3:]) / 3 and own["held out"]["pairs"] > 0
    assert list(figures["teachers"]) == ["fitted", "untrained", "clean", "bidirectional"]
    assert set(figures["context"]) == {"baseline"}
    assert InteractionTeacher.from_pretrained(str(folder / "teachers" / "untrained")).metrics is None
    scored = [json.loads(line) for line in (folder / "rows" / "test.jsonl").open()]
    assert len(scored) == 13 and scored[10]["rejected"][-1]["content"].endswith(CONFIG["phrase"]["text"])
    shown = (tmp_path / "results" / "table.md").read_text()
    assert all(f"| `{arm}` | " in shown for arm in figures["models"])
    monkeypatch.setattr(runs, "start", None)  # nothing is trained or fitted again
    monkeypatch.setattr(InteractionTeacher, "fit", None)
    study.main(["--config", str(tmp_path / "study.yaml"), "--groups", "hh_harmless.noise30"])
    assert json.loads((folder / "figures.json").read_text()) == figures
    for changed in ({"longest": 100}, {"teacher": {"max_steps": 1}}, {"context": {"pairs": 4, "arms": ["baseline"]}}):
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump({**config, **changed}), encoding="utf-8")
        with pytest.raises(ValueError, match="but the settings are"):
            study.main(["--config", str(tmp_path / "changed.yaml")])
    with pytest.raises(ValueError, match=r"no group noise.*there are hh_harmless\.noise30"):
        study.main(["--config", str(tmp_path / "study.yaml"), "--groups", "noise"])


def test_the_readme_shows_the_tables():
    readme, shown = ((STUDY / name).read_text(encoding="utf-8") for name in ("README.md", "table.md"))
    groups = dict(re.findall(r"^### (\S+\.\S+)\n(.*?)(?=^###|\Z)", shown, flags=re.MULTILINE | re.DOTALL))
    assert groups and set(groups) <= set(CONFIG["groups"])
    not_run = readme.partition("## Not run")[2]
    for name, own in groups.items():
        models = list(re.findall(r"^\| `(\w+)`", own, flags=re.MULTILINE))
        arms = CONFIG["groups"][name]["arms"]
        assert models == ["baseline", "interaction", *(arm for arm in arms if arm in models)]
        assert all(f"`{arm}`" in not_run for arm in arms if arm not in models)
    assert all(f"`{name}`" in not_run for name in CONFIG["groups"] if name not in groups)
    found = [line for line in shown.splitlines() if re.match(r"\| (`|teacher `|(hh_harmless|truthfulqa)\.)", line)]
    assert all(line in readme for line in found)
    in_tables = {tuple(each) for each in re.findall(r"([+-]\d+\.\d)\*?: ([+-]\d+\.\d) to ([+-]\d+\.\d)", shown)}
    in_prose = re.findall(r"([+-]\d+\.\d) \(([+-]\d+\.\d) to ([+-]\d+\.\d)\)", readme)
    assert in_prose and set(in_prose) <= in_tables
