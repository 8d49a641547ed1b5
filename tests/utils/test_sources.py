"""What is said of files, folders and names that are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError

from hf_interdistill.utils.data import load_preferences
from hf_interdistill.utils.sources import SourceNotFoundError, close_names, is_path, loading, require_file


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder with two models, one of them in `runs`, and a file."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/rm", "runs/teacher"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text("{}")
    return tmp_path


def refused(name: str, kind: str = "model", error: Exception | None = None) -> str:
    with pytest.raises(SourceNotFoundError) as found, loading(name, kind):
        raise error or OSError("We couldn't connect to the Hub.\nCheck your connection.")
    return str(found.value)


@pytest.mark.parametrize("name", ["./rmm", "/abs/nowhere", "../x", "~/models/rm", "runs/rm/checkpoint-3", "a\\b"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(name, runs):
    assert is_path(name)
    with pytest.raises(SourceNotFoundError, match="is not there"), loading(name):
        pytest.fail("nothing may be loaded")


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "runs/rmm", "runs/rm/"])
def test_other_names_may_be_of_the_hub(name, runs):
    assert not is_path(name)


def test_a_name_with_a_slash_that_is_neither(runs):
    message = refused("runs/rmm")
    assert message.startswith(
        f"The model 'runs/rmm' is not a folder here (looked from {runs}). Beside it there is runs/rm."
    )
    assert "As a name on the Hub it was not found either: We couldn't connect to the Hub. Check" in message
    assert "Beside it" not in refused("Qwen/Qwen3-0.6B")


def test_a_missing_folder_on_the_way_is_named(runs):
    assert close_names(Path("rusn/rm")) == " Beside it there is runs."
    assert close_names(Path("elsewhere/rm")) == " There is no folder elsewhere."
    assert close_names(Path("prompts.jsonl/rm")) == " prompts.jsonl is a file."
    assert close_names(runs / "runs" / "techer") == f" Beside it there is {runs}/runs/teacher."
    assert close_names(Path("xyz")) == ""


def test_a_home_that_is_not_expanded(runs, monkeypatch):
    monkeypatch.setenv("HOME", str(runs))
    assert f"`~` is not expanded here: write {runs}/runs/rm." in refused("~/runs/rm")


def test_folders_without_a_model_and_files(runs):
    message = refused("runs", error=OSError("runs does not appear to have a file named config.json."))
    assert message.startswith(
        "The model runs is a folder without a model: it has no config.json and no adapter_config."
    )
    assert message.endswith("These folders in it have one: rm, teacher.")
    assert "must be the folder that holds it: runs/rm." in refused("runs/rm/config.json")


def test_other_errors_stay_as_they_are(runs):
    full = OSError(28, "No space left on device")
    for name in ("runs/rm", "Qwen/Qwen3-0.6B"):
        with pytest.raises(OSError, match="No space left") as found, loading(name):
            raise full
        assert found.value is full
    with pytest.raises(OSError, match="broken weights"), loading("runs/rm"):
        raise OSError("broken weights")
    with pytest.raises(ValueError, match="no head"), loading("Qwen/Qwen3-0.6B"):
        raise ValueError("no head")
    assert "'a b/c'" in refused("a b/c", error=HFValidationError("Repo id must use alphanumeric chars"))


def test_the_inner_name_is_the_one_that_is_named(runs):
    outer, inner = loading("user/adapter"), loading("gone/base", "base model")
    with pytest.raises(SourceNotFoundError, match="The base model 'gone/base'"), outer, inner:
        raise OSError("not found")


def test_files(runs):
    assert require_file("prompts", "prompts.jsonl") == Path("prompts.jsonl")
    with pytest.raises(FileNotFoundError, match=r"`prompts` is 'prompt.jsonl', but there is no .* prompts.jsonl"):
        require_file("prompts", "prompt.jsonl")
    with pytest.raises(SourceNotFoundError, match=r"`input` is 'runs', which is a folder, but must be a file"):
        require_file("input", "runs")
    with pytest.raises(SourceNotFoundError, match=r"It holds config\.json\."):
        require_file("input", "runs/rm")


def test_data_of_names_with_patterns_and_typing_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "[a-b]*"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    assert load_preferences(str(folder))["train"][0] == {"chosen": "a", "rejected": "b"}
    (folder / "te[s]t.jsonl").write_text('{"chosen": "c", "rejected": "d"}\n')
    assert load_preferences(str(folder / "te[s]t.jsonl"))["train"][0] == {"chosen": "c", "rejected": "d"}
    streamed = load_preferences(str(folder / "te[s]t.jsonl"), is_streaming=True)
    assert list(streamed["train"]) == [{"chosen": "c", "rejected": "d"}]
    os.rename(folder, tmp_path / "data")
    for name in ("dat", "data/trains.jsonl", "./dta", "data/x/y"):
        with pytest.raises(FileNotFoundError, match=r"Beside it there is data|There is no folder data/x"):
            load_preferences(name)
