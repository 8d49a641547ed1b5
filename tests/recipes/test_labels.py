"""The recipes of label forms and robust losses: their data, and that each trains with its option."""

from __future__ import annotations

import json
import re
import sys

import pytest
import yaml
from support.datasets import ROOT
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.interaction.data.attributes import read_scores
from hf_interdistill.interaction.data.labels import check_labels
from hf_interdistill.scoring.attributes import RewardAttributes

FOLDER = ROOT / "recipes" / "labels"
# What only a run with the option logs.
LOGGED = {
    "shares": "label/accuracy",
    "ties": "label/tie_probability",
    "rankings": "label/concordance",
    "label_smoothing": "loss",
    "agreement_margin": "label/accuracy",
    "grm": "regularization/loss",
    "length_penalty": "length/loss",
    "attributes": "attribute/verbosity",
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    sys.modules.pop("rows", None)
    import rows

    rows.write_rows(tmp_path / "data")
    yield tmp_path / "data"
    del sys.modules["rows"]


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_data_have_every_form(data):
    rows = {name: read(data / name / "train.jsonl") for name in ("shares", "ties", "rankings", "attributes")}
    for row in [*rows["shares"], *rows["ties"]]:
        check_labels(row)
    shares = [row["preference_probability"] for row in rows["shares"]]
    assert 0.7 < sum(shares) / len(shares) < 0.9 and min(shares) < 0.5 < max(shares) == 1
    assert 0.1 < sum(row["tie_probability"] for row in rows["ties"]) / 300 < 0.2
    assert {tuple(sorted(row["ranks"])) for row in rows["rankings"]} == {(1, 2, 3)}
    assert len({tuple(row["ranks"]) for row in rows["rankings"]}) == 6
    for row in rows["attributes"]:
        chosen, rejected = read_scores(row, ["helpfulness", "verbosity"])
        assert chosen[0] >= rejected[0] and all(0 <= value <= 4 for value in (*chosen, *rejected))


def test_there_is_a_recipe_for_every_option():
    paths = list((FOLDER / "reward").glob("*.yaml"))
    assert {path.stem for path in paths} == set(LOGGED)
    guide = (ROOT / "docs" / "guides" / "labels.md").read_text(encoding="utf-8")
    options = re.findall(r"^\| `(\w+)` \|", guide.split("## Options")[1].split("## ")[0], flags=re.MULTILINE)
    set_by = [yaml.safe_load(path.read_text(encoding="utf-8")).keys() for path in paths]
    of_others = {"tie_parameter": "tie_model", "regularization_beta": "regularization_weight"}  # with their defaults
    assert len(options) > 8
    for option in options:
        assert any(of_others.get(option, option) in keys for keys in set_by), option
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in paths:
        assert readme.count(f"reward/{path.name}") == 2, "in the table and among the commands"


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGGED)
def test_a_recipe_trains_with_its_option(name, data, tmp_path):
    build_student(tie_word_embeddings=True).save_pretrained(tmp_path / "student")
    tokenizer_of("bytes").save_pretrained(tmp_path / "student")
    path = FOLDER / "reward" / f"{name}.yaml"
    source = yaml.safe_load(path.read_text(encoding="utf-8"))["dataset_name"]
    source = data / source.removeprefix("runs/labels/") if source.startswith("runs/") else ROOT / source
    given = {"model_name_or_path": tmp_path / "student", "dataset_name": source, "output_dir": tmp_path / "rm"}
    given |= {"max_steps": 2, "logging_steps": 1, "use_cpu": "true", "dataloader_pin_memory": "false"}
    arguments = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    assert main(["reward", "--config", str(path), *arguments]) == 0
    state = json.loads((tmp_path / "rm" / "trainer_state.json").read_text(encoding="utf-8"))
    assert any(LOGGED[name] in entry for entry in state["log_history"])
    assert len(RewardScorer.from_pretrained(str(tmp_path / "rm"))(["Why?"], [" Because."])) == 1
    if name == "attributes":
        assert list(RewardAttributes.from_pretrained(tmp_path / "rm").weights) == ["helpfulness", "verbosity"]
