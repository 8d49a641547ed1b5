"""Every recipe is parsed by the real parser, and pairs differ in the method's keys alone."""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import ROOT

from hf_interdistill.cli import parse
from hf_interdistill.commands import reward, teacher

RECIPES = ROOT / "recipes"
REWARD = sorted(RECIPES.glob("*/reward/*.yaml"))
TEACHER = sorted(RECIPES.glob("*/teacher*.yaml"))
METHOD_KEYS = {"teacher_model", "output_dir"} | {
    f"alignment_{name}" for name in ("weight", "loss", "scope", "schedule", "control")
}
METHOD_KEYS |= {"teacher_max_length", "student_layers", "teacher_layers"}
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


def test_there_are_recipes():
    assert len(REWARD) >= 6 and len(TEACHER) >= 3


@pytest.mark.parametrize("path", REWARD, ids=lambda path: "/".join(path.parts[-3:]))
def test_reward_recipe_parses(path, tmp_path):
    data, args, model = parse(reward.ARGUMENTS, ["--config", str(path), *ON_CPU, "--output_dir", str(tmp_path)])
    written = yaml.safe_load(path.read_text())
    for key, value in written.items():
        if key in ("output_dir", "bf16"):
            continue
        owner = next(part for part in (data, args, model) if hasattr(part, key))
        read = getattr(owner, key)
        read = getattr(read, "value", read)
        assert read == ([] if value == "none" else value), key


@pytest.mark.parametrize("path", TEACHER, ids=lambda path: "/".join(path.parts[-2:]))
def test_teacher_recipe_parses(path, tmp_path):
    data, args = parse(teacher.ARGUMENTS, ["--config", str(path), *ON_CPU, "--output_dir", str(tmp_path)])
    assert data.dataset_name and args.learning_rate > 0


@pytest.mark.parametrize(
    "path", [p for p in REWARD if "baseline" in p.name], ids=lambda path: "/".join(path.parts[-3:])
)
def test_pairs_differ_in_the_method_alone(path):
    baseline = yaml.safe_load(path.read_text())
    interaction = yaml.safe_load((path.parent / path.name.replace("baseline", "interaction")).read_text())
    different = {key for key in baseline.keys() | interaction.keys() if baseline.get(key) != interaction.get(key)}
    assert {"alignment_weight", "teacher_model", "output_dir"} <= different <= METHOD_KEYS
    assert baseline["alignment_weight"] == 0 < interaction["alignment_weight"]


@pytest.mark.parametrize(
    "path", [p for p in REWARD if "interaction" in p.name], ids=lambda path: "/".join(path.parts[-3:])
)
def test_interaction_recipes_use_a_teacher_that_a_recipe_trains(path):
    name = yaml.safe_load(path.read_text())["teacher_model"]
    assert name in [yaml.safe_load(other.read_text())["output_dir"] for other in TEACHER]


def test_accelerate_configs_load(tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    for path in sorted((RECIPES / "accelerate_configs").glob("*.yaml")):
        assert load_config_from_file(str(path)).num_processes >= 1


def test_demo_data_are_honest():
    """At least 300 pairs, no prompt twice, no stock opening, length no clue, no overlap of the splits."""
    splits = {
        name: [
            json.loads(line) for line in (RECIPES / "demo" / "preferences" / f"{name}.jsonl").open(encoding="utf-8")
        ]
        for name in ("train", "test")
    }
    assert len(splits["train"]) >= 300 and len(splits["test"]) >= 60
    rows = splits["train"] + splits["test"]
    prompts = [row["prompt"][-1]["content"] for row in rows]
    assert len(set(prompts)) == len(prompts)
    openings: dict[str, int] = {}
    for row in rows:
        for key in ("chosen", "rejected"):
            opening = " ".join(row[key][0]["content"].lower().split()[:3])
            openings[opening] = openings.get(opening, 0) + 1
    assert max(openings.values()) <= 3
    longer = [len(row["rejected"][0]["content"]) > len(row["chosen"][0]["content"]) for row in rows]
    assert 0.42 < sum(longer) / len(longer) < 0.58
