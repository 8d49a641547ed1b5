"""The study of attention hacking: its modules, and its config made small."""

from __future__ import annotations

import copy
import json
import zlib

import numpy as np
import yaml

from support.datasets import ROOT, read_rows

FOLDER = ROOT / "recipes" / "studies" / "attention_hacking"
NAMES = (
    *("arms", "claims", "comparison", "learnability", "materials", "measures", "objectives", "plots", "preferences"),
    "pretraining",
    *("records", "report", "rotary", "running", "students", "study", "tables"),
)
CONFIG = yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))
SETS = ("hh_harmless", "truthfulqa", "pandalm", "bbq", "anthropic_evals")


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps({key: row[key] for key in ("prompt", "chosen", "rejected")}) + "\n" for row in rows)


def tiny_config(folder, encoder: str) -> dict:
    """The study's own config with everything made small: two steps a run, two conditions, two seeds."""
    config = copy.deepcopy(CONFIG)
    for number, name in enumerate(SETS):
        (folder / "data" / name).mkdir(parents=True)
        for split in ("train", "test"):
            rows = read_rows(split)[10 * number :][:30]
            (folder / "data" / name / f"{split}.jsonl").write_text(lines(rows), encoding="utf-8")
    config |= {
        "data": str(folder / "data"),
        "encoder": encoder,
        "output_dir": str(folder / "runs"),
        "results_dir": str(folder / "results"),
        "max_length": 96,
        "longest_response": 40,
        "validation_pairs": 6,
        "training_pairs": 8,
        "test_pairs": dict.fromkeys(SETS, 8),
    }
    quick = {"use_cpu": True, "disable_tqdm": True}
    config["training"] |= {"per_device_train_batch_size": 4, "logging_steps": 1, **quick}
    config["teacher"] |= {"warm_start_epochs": 0, "per_device_train_batch_size": 4, "eval_fraction": 0.3, **quick}
    config["teacher"] |= {"teacher_max_length": 256, "evals_per_epoch": 1}
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    pretrained = config["students"]["larger"]
    pretrained["shape"] |= tiny
    pretrained["pretraining"] |= {"num_train_epochs": 2, "learning_rate": 1e-2, "warmup_steps": 0, **quick}
    config["diagnosis"]["limit"] = 2
    select = {"student": "minilm", "train": "hh_harmless", "arm": "bradley_terry", "for": "all", "seeds": [100]}
    config["selection"] = [{**select, "candidates": [{"learning_rate": 1e-3}, {"learning_rate": 1e-9}]}]
    grid = {"name": "main", "train": ["hh_harmless"], "student": ["minilm"], "condition": ["clean"]}
    config["grids"] = [{**grid, "arm": ["bradley_terry", "interaction_joint", "uniform"], "seed": [0, 1, 2]}]
    return config


def accuracy(test: dict) -> float:
    """Of a test that a record keeps: ties count half."""
    return sum(int(digit) for digit in test["right"]) / 2 / len(test["right"])


def made_up_outcome(bench, run) -> dict:
    """What `Bench.carry_out` returns, with random rewards in place of a trained model's."""
    draw = np.random.default_rng(zlib.crc32(run.id.encode()))
    names = ["validation", *([] if run.candidate else [*SETS, f"{SETS[0]}+cue"])]
    rewards = {name: draw.normal(size=(8, 2)).astype(np.float32) for name in names}
    bench.keep_rewards(run, rewards)
    own = {"diagnosis": None, "hardware": "none", "seconds": {"training": 1.0}}
    return {**bench.outcome(rewards), **own, "training": {"steps": 2, "last_log": {}}}
