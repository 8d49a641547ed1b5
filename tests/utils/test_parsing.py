"""Options of a command line and a recipe: `none` unsets an optional one, and is a word everywhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from trl import RewardConfig

from hf_interdistill.commands import best_of_n, diagnose, score
from hf_interdistill.utils.parsing import given_values, parse

NEEDED = {
    best_of_n: ["--prompts", "p", "--output", "o", "--reward_model", "r", "--selected", "s"],
    score: ["--model", "m", "--input", "i"],
    diagnose: ["--model", "m", "--data", "d", "--output", "o"],
}


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        (best_of_n, "threshold", 0.5),
        (best_of_n, "curve", "c.json"),
        (best_of_n, "reward_server", ["http://a:1", "http://b:1"]),
        (score, "max_length", 9),
        (score, "device", "cpu"),
        (score, "reward_server", ["http://a:1"]),
        (diagnose, "limit", 3),
    ],
)
def test_none_unsets_the_option_of_a_recipe(command, name, value, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({name: value}))
    words = [*NEEDED[command], "--config", str(recipe)]
    assert getattr(parse(command.ARGUMENTS, words)[0], name) == value
    for none in ("none", "None"):
        assert getattr(parse(command.ARGUMENTS, [*words, f"--{name}", none])[0], name) is None
    recipe.write_text(yaml.safe_dump({name: "none"}))
    assert getattr(parse(command.ARGUMENTS, words)[0], name) is None
    assert given_values(command.ARGUMENTS, [f"--{name}", "none"]) == {name: None}


@dataclass
class Options:
    """Options of a test."""

    word: str = field(default="w")
    maybe: str | None = field(default="m")
    numbers: list[int] | None = field(default=None)
    switch: bool | None = field(default=None)
    mapping: dict[str, Any] | str | None = field(default=None)


def test_values_that_are_not_none_are_read_as_before(monkeypatch):
    monkeypatch.setattr("hf_interdistill.utils.none_values.is_ours", lambda kind: kind is Options)
    words = ["--word", "none", "--maybe", "nonesuch", "--numbers", "1", "2", "--switch", "false"]
    assert parse([Options], words) == (Options("none", "nonesuch", [1, 2], False),)
    assert parse([Options], ["--mapping", '{"a": 1}', "--maybe", "none"]) == (Options(maybe=None, mapping='{"a": 1}'),)
    with pytest.raises(ValueError, match="Argument --numbers: invalid int value: 'many'"):
        parse([Options], ["--numbers", "many"])
    with pytest.raises(ValueError, match="Argument --numbers: `none` stands alone, but is one of 2 values here"):
        parse([Options], ["--numbers", "1", "none"])


def test_options_of_trl_keep_their_own_none():
    (found,) = parse(
        [RewardConfig], ["--output_dir", "o", "--report_to", "none", "--use_cpu", "true", "--bf16", "false"]
    )
    assert found.report_to in ("none", [], ["none"])
