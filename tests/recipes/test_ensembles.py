"""The study of ensembles: its small form runs and resumes, its noise is exact, and its README shows its results."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from support.datasets import ROOT, SHARED_DATA
from support.models import build_encoder

STUDY = ROOT / "recipes" / "studies" / "ensembles"
needs_data = pytest.mark.skipif(not (SHARED_DATA / "sst2").is_dir(), reason="needs ../shared/data")
RULES = {"ensemble_size": 2, "uncertainty_weight": 0.5, "largest_drop": 0.2, "resamples": 40, "seed": 0}


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    names = ("curves", "study", "training")  # other studies have modules of these names
    before = {name: sys.modules.pop(name, None) for name in names}
    import curves
    import study
    import training

    yield SimpleNamespace(curves=curves, study=study, training=training)
    for name in names:
        del sys.modules[name]
        if before[name] is not None:
            sys.modules[name] = before[name]


def test_exactly_the_share_of_labels_is_flipped(modules):
    texts = [{"prompt": f"{p} ", "completions": [f"{p} {i}" for i in range(6)]} for p in range(40)]
    gold = np.random.default_rng(0).normal(size=(40, 6)).tolist()
    pairs = modules.training.noisy_pairs(texts, gold, 2, 0.25, seed=1)
    score = {text: value for row, own in zip(texts, gold, strict=True) for text, value in
             zip(row["completions"], own, strict=True)}  # fmt: skip
    flipped = sum(score[pair["chosen"]] < score[pair["rejected"]] for pair in pairs)
    assert len(pairs) == 80 and flipped == 20
    assert pairs == modules.training.noisy_pairs(texts, gold, 2, 0.25, seed=1)


def test_the_curves_find_a_hack_that_one_member_has(modules):
    """Gold is what all members see; one of them also loves a few texts that gold hates."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(30, 64))
    rewards = np.stack([gold + 0.1 * rng.normal(size=gold.shape) for _ in range(2)])
    hacked = rng.random(gold.shape) < 0.05
    gold = np.where(hacked, -3.0, gold)
    rewards[0] = np.where(hacked, 6.0, rewards[0])
    rewards[1] = np.where(hacked, -3.0, rewards[1])
    found = modules.curves.figures(rewards.tolist(), gold.tolist(), RULES, [0.5, 0.5])["arms"]
    assert found["worst"]["mean_drop"] < 0.05 and found["worst"]["over_optimized"] == 0
    assert found["single"]["mean_drop"] > 0.5
    assert found["worst"]["minus_single"] > 0.5 and found["uncertainty"]["minus_single"] > 0.5
    low, high = found["mean"]["gold_ci"]
    assert all(a <= b <= c for a, b, c in zip(low, found["mean"]["gold"], high, strict=True))


@needs_data
def test_the_small_study_runs_and_resumes(modules, tmp_path, monkeypatch):
    config = yaml.safe_load((STUDY / "study.yaml").read_text(encoding="utf-8"))
    encoder, tokenizer = build_encoder()
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    data = tmp_path / "sst2"
    data.mkdir()
    for name in ("train", "dev"):
        rows = (SHARED_DATA / "sst2" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:60]
        (data / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    config |= {
        "sentiment": str(data),
        "writer": str(SHARED_DATA / "stories260k"),
        "encoder": str(tmp_path / "encoder"),
    }
    config |= {"output_dir": str(tmp_path / "runs"), "results_dir": str(tmp_path / "results"), "members": 2}
    config |= {"ensemble_size": 2, "resamples": 5, "prompts": {"training": 6, "test": 3, "tokens": 14}}
    config |= {"samples": {"training": 8, "test": 8}}
    config["member"]["arguments"]["num_train_epochs"] = 1
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = modules.study.main(["--config", str(tmp_path / "study.yaml")])
    assert result["ns"] == [1, 2, 4, 8] and set(result["arms"]) == {"single", "mean", "worst", "uncertainty"}
    assert json.loads((tmp_path / "runs" / "results.json").read_text()) == result
    table = (tmp_path / "results" / "table.md").read_text()
    assert f"| 8 | 1.20 | {result['arms']['single']['gold'][-1]:.2f} (" in table and "| `worst` |" in table
    monkeypatch.setattr(modules.study, "train_member", None)  # nothing is trained again
    assert modules.study.main(["--config", str(tmp_path / "study.yaml")]) == result
    config["flipped"] = 0.0
    with pytest.raises(ValueError, match="holds a study with other settings"):
        modules.study.Study(config)


def test_the_readme_shows_the_table():
    readme, table = ((STUDY / name).read_text(encoding="utf-8") for name in ("README.md", "table.md"))
    rows = [line for line in table.splitlines() if re.match(r"\| `\w+` \|", line)]
    assert len(rows) == 4 and all(row in readme for row in rows)
