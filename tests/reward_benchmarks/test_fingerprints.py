"""The key that a model's rewards are kept by changes with all that they depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.hub import save_adapter
from support.models import build_student
from support.serving import served
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardEnsemble, RewardScorer
from hf_interdistill.commands import eval as eval_command
from hf_interdistill.serving.app import RewardApp


def save(folder, seed: int = 0) -> str:
    build_student(seed=seed).save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Puts a folder into the cache of the Hub as the newest commit of a repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def publish(folder, name: str, commit: str) -> None:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        folder = Path(folder)
        shutil.copytree(folder, repository / "snapshots" / commit)
        for file in {"config.json", "adapter_config.json"} - {path.name for path in folder.iterdir()}:
            known = repository / ".no_exist" / commit / file  # as the client notes what it has asked for in vain
            known.parent.mkdir(parents=True, exist_ok=True)
            known.touch()
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)

    return publish


def write_ensemble(folder, *members: str) -> str:
    folder.mkdir()
    (folder / "reward_ensemble.json").write_text(json.dumps({"members": members}))
    return str(folder)


def key_of(name: str) -> str:
    kind = RewardEnsemble if name.endswith("ensemble") else RewardScorer
    return eval_command.key_of(name, kind.from_pretrained(name), dtype="float32")


def test_a_new_commit_of_a_member_or_a_model_is_another_key(publish, tmp_path):
    publish(save(tmp_path / "one", 1), "user/rm", "a" * 40)
    ensemble = write_ensemble(tmp_path / "ensemble", "user/rm", save(tmp_path / "local", 3))
    old = [key_of(ensemble), key_of("user/rm")]
    assert old == [key_of(ensemble), key_of("user/rm")]
    publish(save(tmp_path / "two", 2), "user/rm", "b" * 40)
    assert not set(old) & {key_of(ensemble), key_of("user/rm")}


def test_so_is_that_of_an_adapter_and_of_its_base_model(publish, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "user/base"}))
    publish(tmp_path / "base", "user/base", "a" * 40)
    publish(adapter, "user/rm", "b" * 40)
    ensemble = write_ensemble(tmp_path / "ensemble", "user/rm", save(tmp_path / "local", 3))
    models = [ensemble, "user/rm", str(adapter)]
    old = list(map(key_of, models))
    assert old == list(map(key_of, models))
    publish(adapter, "user/rm", "c" * 40)
    newer = list(map(key_of, models))
    assert not set(old[:2]) & set(newer) and newer[2] == old[2]  # the folder is the same
    publish(tmp_path / "base", "user/base", "d" * 40)
    assert not set(newer) & set(map(key_of, models))


def test_a_base_model_in_a_folder_is_part_of_it(tmp_path):
    adapter = str(save_adapter(tmp_path / "adapter", tmp_path / "base"))
    ensemble = write_ensemble(tmp_path / "ensemble", adapter, save(tmp_path / "local", 3))
    old = [key_of(adapter), key_of(ensemble)]
    assert old == [key_of(adapter), key_of(ensemble)]
    build_student(seed=5).save_pretrained(tmp_path / "base")
    assert not set(old) & {key_of(adapter), key_of(ensemble)}


def test_of_a_served_member_the_name_and_the_digest_are_known(tmp_path):
    member, local = RewardScorer.from_pretrained(save(tmp_path / "served", 1)), save(tmp_path / "local")
    apps = [RewardApp(member, name) for name in ("first", "first")]
    with served(apps[0]) as url, served(apps[1]) as other:
        names = [write_ensemble(tmp_path / f"{n}-ensemble", each, local) for n, each in enumerate((url, other))]
        old = list(map(key_of, names))
        assert old == list(map(key_of, names))
        assert len({key.rpartition("@")[2] for key in old}) == 2
        apps[0]._formats.model_name = "second"
        assert [key == key_of(name) for key, name in zip(old, names, strict=True)] == [False, True]
        apps[1]._formats.digest = "of other weights"
        assert key_of(names[1]) != old[1]
