"""The study of search strategies: no prompt serves twice, its table is right, and its small form runs and resumes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from support.datasets import ROOT, SHARED_DATA
from support.rain import build_causal
from support.tokenizers import tokenizer_of

from recipes.studies.search_strategies import study, table

STUDY = ROOT / "recipes" / "studies" / "search_strategies"
CONFIG = yaml.safe_load((STUDY / "study.yaml").read_text(encoding="utf-8"))
needs_data = pytest.mark.skipif(not (SHARED_DATA / "hh_harmless").is_dir(), reason="needs ../shared/data")


@needs_data
def test_no_prompt_serves_twice():
    parts = study.split_rows(SHARED_DATA / "hh_harmless", CONFIG["prompts"], CONFIG["pairs"], 0)
    counts = {**CONFIG["prompts"], **CONFIG["pairs"]}
    assert {name: len(rows) for name, rows in parts.items()} == {n: c for n, c in counts.items() if n != "longest"}
    prompts = [json.dumps(row["prompt"]) for rows in parts.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert max(len(json.dumps(row["prompt"])) for row in parts["test"]) <= 500


def test_the_table_pairs_prompts():
    rng = np.random.default_rng(0)
    hardness = rng.normal(size=200)
    measures = {
        name: {
            "steering": (hardness + gain).tolist(),
            "held_out": (hardness + gain / 2).tolist(),
            "nats": [1.5] * 200,
            "forward_tokens": [1000] * 200,
            "seconds": 2.0,
        }
        for name, gain in (("sampling", 0.0), ("beam", 1.0))
    }
    plain, beam = table.results_table(measures, 2000, 0)[0]
    assert plain["minus_sampling"] == 0 and beam["minus_sampling"] == pytest.approx(0.5)
    low, high = beam["minus_sampling_ci95"]
    assert high - low < 1e-9  # every prompt gains the same
    low, high = beam["held_out_ci95"]
    (_, row) = table.differences_table(measures, [["beam", "sampling"]], 2000, 0).strip().rsplit("\n", 1)
    assert row == "| `beam` minus `sampling` | +1.00 (1.00 to 1.00) | +0.50 (0.50 to 0.50) |"
    low, high = beam["held_out_ci95"]
    assert 0.2 < high - low < 0.4 and low < hardness.mean() + 0.5 < high  # 4 / sqrt(200) is 0.28


@needs_data
def test_the_small_study_runs_and_resumes(tmp_path, monkeypatch):
    model, tokenizer = build_causal(num_hidden_layers=2), tokenizer_of("bytes")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = CONFIG | {
        "data": str(SHARED_DATA / "hh_harmless"),
        "language_model": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "runs"),
        "results_dir": str(tmp_path / "results"),
        "prompts": {"test": 3, "tuning": 2, "calibration": 2, "longest": 150},
        "pairs": {"steering": 8, "held_out": 8, "check": 2, "longest": 500},
        "student_layers": 1,
        "dtype": "float32",
        "max_new_tokens": 4,
        "weights": [1.0, 4.0],
    }
    config["systems"] = {
        name: {**system, "candidates": 2}
        for name, system in CONFIG["systems"].items()
        if not name.endswith(("4", "15"))
    }
    config["differences"] = [["args 5", "best_of_n 8"]]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    rows = study.main(["--config", str(tmp_path / "study.yaml")])
    assert [row["system"] for row in rows] == ["greedy", "sampling", *config["systems"]]
    costs = {row["system"]: row["forward_tokens"] for row in rows}
    assert costs["args 5"] > costs["greedy"] > 0
    found = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert set(found["weights"]) == {"args", "rad"} and set(found["weights"].values()) <= {1.0, 4.0}
    text = (tmp_path / "results" / "table.md").read_text()
    assert all(f"| `{row['system']}` | {row['steering']:.2f} (" in text for row in rows)
    monkeypatch.setattr(study, "train_reward", None)  # nothing is trained or answered again
    monkeypatch.setattr(study.Study, "_search", None)
    assert study.main(["--config", str(tmp_path / "study.yaml")]) == rows
    with pytest.raises(ValueError, match=r"was made with .*Choose another `output_dir`"):
        study.Study({**config, "seed": 1})


def test_the_readme_shows_the_table():
    readme, shown = ((STUDY / name).read_text(encoding="utf-8") for name in ("README.md", "table.md"))
    rows = [line for line in shown.splitlines() if line.startswith("| `")]
    assert len(rows) == 2 + len(CONFIG["systems"]) + len(CONFIG["differences"])
    assert all(row in readme for row in rows)
    for figure in re.findall(r"-?\d+\.\d\d \(-?\d+\.\d\d to -?\d+\.\d\d\)", readme):  # in prose too
        assert figure in shown, figure
