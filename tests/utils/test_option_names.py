"""Options have one vocabulary: each command takes the others' names for its model, data and output."""

from __future__ import annotations

import importlib

import pytest
import yaml

from hf_interdistill.cli import COMMANDS, main
from hf_interdistill.comparison.arms import RECIPE, read_arms
from hf_interdistill.utils.option_names import field_names, rename_words, short_names, synonyms
from hf_interdistill.utils.parsing import parse

# The option of each command that `--model`, `--data` and `--output` set; `None` where it has no such thing.
MEANT = {
    "teacher": ("teacher_model", "dataset_name", "output_dir"),
    "reward": ("model_name_or_path", "dataset_name", "output_dir"),
    "push": ("model", None, None),
    "rain": ("model", "prompts", "output"),
    "rain push": ("model", None, "output"),
    "eval": ("model", "data", "output"),
    "compare": ("model_name_or_path", "dataset_name", "output"),
    "diagnose": ("model", "data", "output"),
    "best-of-n": ("model", "prompts", "output"),
    "score": ("model", "input", "output"),
    "env": (None, None, None),
    "serve": ("model", None, None),
    "convert": ("model", None, "output"),
}


def arguments_of(command: str) -> tuple[type, ...]:
    return importlib.import_module(f"hf_interdistill.{COMMANDS[command][0]}").ARGUMENTS


@pytest.mark.parametrize("command", COMMANDS)
def test_model_data_and_output_are_options_of_every_command_that_has_one(command):
    known = field_names(arguments_of(command))
    others = synonyms(known)
    found = tuple(name if name in known else others.get(name) for name in ("model", "data", "output"))
    assert found == MEANT[command]


@pytest.mark.parametrize("kind", ["words", "words with =", "dashes", "yaml"])
@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("score", {"model": "m", "data": "d", "output": "o"}),
        ("score", {"model": "m", "prompts": "d", "output_dir": "o"}),
        ("score", {"model_name_or_path": "m", "dataset_name": "d", "output": "o"}),
        ("rain", {"model": "m", "data": "d", "output": "o"}),
        ("rain", {"model_name_or_path": "m", "input": "d", "output_dir": "o"}),
        ("reward", {"model": "m", "data": "d", "output": "o"}),
        ("reward", {"model": "m", "prompts": "d", "output_dir": "o"}),
        ("teacher", {"model": "m", "data": "d", "output": "o"}),
        ("teacher", {"model_name_or_path": "m", "dataset_name": "d", "output": "o"}),
    ],
)
def test_each_name_sets_the_option_of_the_command(command, given, kind, tmp_path):
    words = [word for key, value in given.items() for word in (f"--{key}", value)]
    if kind == "words with =":
        words = [f"--{key}={value}" for key, value in given.items()]
    elif kind == "dashes":
        words = [word.replace("_", "-") for word in words]
    elif kind == "yaml":
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
        words = ["--config", str(tmp_path / "recipe.yaml")]
    parsed = parse(arguments_of(command), words)
    found = {key: getattr(each, key) for each in parsed for key in MEANT[command] if hasattr(each, key)}
    assert found == dict(zip(MEANT[command], ("m", "d", "o"), strict=True))


def test_the_command_line_goes_before_the_recipe_whatever_the_names(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: a\ninput: b\noutput: c\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--data", "d", "--output_dir=e"]
    (found,) = parse(arguments_of("score"), words)
    assert (found.model, found.input, found.output) == ("a", "d", "e")


def test_two_names_of_one_option_are_refused(tmp_path):
    message = "`{}` and `{}` are two names of one option"
    with pytest.raises(ValueError, match=message.format("data", "input")):
        parse(arguments_of("score"), ["--model", "m", "--data", "d", "--input", "d"])
    (tmp_path / "recipe.yaml").write_text("output_dir: c\noutput: c\n")
    with pytest.raises(ValueError, match=message.format("output_dir", "output")):
        parse(arguments_of("score"), ["--config", str(tmp_path / "recipe.yaml"), "--model", "m", "--data", "d"])


def test_values_that_look_like_options_stay():
    known = {"input"}
    assert rename_words(["--data", "data", "-data", "--x=--data"], known) == ["--input", "data", "-data", "--x=--data"]


@pytest.mark.parametrize("command", ["score", "reward", "rain"])
def test_help_names_the_shared_name(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    for own, short in short_names(field_names(arguments_of(command))).items():
        assert [line for line in lines if line.strip().startswith(f"--{own} ") and f"also --{short}." in line]


def test_recipes_of_a_comparison_take_the_names_too(tmp_path):
    recipe = {"model": "m", "data": "d", "teacher_model": "t", "output_dir": "o", "use_cpu": True, "bf16": False}
    for given in (recipe, str(tmp_path / "recipe.yaml")):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        arms = read_arms(given, {}, ["--input", "e"])
        assert {arm.settings["model_name_or_path"] for arm in arms} == {"m"}
        assert {arm.data.dataset_name for arm in arms} == {arm.settings["dataset_name"] for arm in arms} == {"e"}
        assert not {"data", "model", "input"} & set(arms[0].settings) and field_names(RECIPE) >= set(arms[0].settings)


@pytest.mark.parametrize(
    ("words", "content", "message"),
    [
        (
            ["--output_dir", "o", "--output", "c"],
            "model: m\ndata: d\n",
            "`output_dir` is given, but each run has a folder in the comparison's",
        ),
        ([], "model: m\ndata: d\noutput: o\n", "has `output`, which is the comparison's here"),
    ],
)
def test_a_comparison_has_one_folder(words, content, message, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(content)
    assert main(["compare", "--config", str(tmp_path / "recipe.yaml"), *words]) == 2
    assert message in capsys.readouterr().err
