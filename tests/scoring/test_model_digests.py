"""Digests of models: they change with whatever changes results, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardEnsemble
from hf_interdistill.scoring import model_digests
from hf_interdistill.scoring.model_digests import digest_of_model, digest_of_tokenizer


def save(folder, seed: int = 0) -> str:
    build_student(seed=seed).save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


def test_a_copy_has_the_same_and_records_beside_it_do_not_count(tmp_path):
    digest = digest_of_model(save(tmp_path / "rm"))
    shutil.copytree(tmp_path / "rm", tmp_path / "copy")
    for name in ("trainer_state.json", "training_args.bin", "optimizer.pt", "README.md", "scores.jsonl"):
        (tmp_path / "copy" / name).write_text("{}")
    os.utime(tmp_path / "copy" / "model.safetensors", (1, 1))
    assert digest_of_model(str(tmp_path / "copy")) == digest
    assert digest_of_model(save(tmp_path / "other", seed=5)) != digest


@pytest.mark.parametrize("whole", [1 << 25, 0])
def test_every_tensor_counts(tmp_path, monkeypatch, whole):
    """Also of a file that is too large to be read whole: few places of it are read beside those of the tensors."""
    monkeypatch.setattr(model_digests, "_WHOLE", whole)
    monkeypatch.setattr(model_digests, "_SAMPLES", 2)
    monkeypatch.setattr(model_digests, "_SAMPLE", 16)
    name = save(tmp_path / "rm")
    weights = load_file(tmp_path / "rm" / "model.safetensors")
    digests = {digest_of_model(name)}
    for key in weights:
        changed = {**weights, key: weights[key] + 1}
        save_file(changed, tmp_path / "rm" / "model.safetensors", metadata={"format": "pt"})
        digests.add(digest_of_model(name))
    assert len(digests) == len(weights) + 1


@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt", "modeling.py"],
)
def test_small_files_count(tmp_path, file):
    name = save(tmp_path / "rm")
    digest = digest_of_model(name)
    with (tmp_path / "rm" / file).open("a") as changed:
        changed.write(" ")
    assert digest_of_model(name) != digest


def test_a_tokenizer_has_its_own(tmp_path):
    name = save(tmp_path / "rm")
    digest = digest_of_tokenizer(name)
    save(tmp_path / "rm", seed=3)
    assert digest_of_tokenizer(name) == digest
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(name)
    assert digest_of_tokenizer(name) != digest


def test_an_adapter_counts_with_its_base_model(tmp_path):
    base = save(tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(build_student(), config)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(tmp_path / "lora")
    name = str(tmp_path / "lora")
    digests = {digest_of_model(name)}
    save(tmp_path / "base", seed=4)
    digests.add(digest_of_model(name))
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(path).items()}, path)
    digests.add(digest_of_model(name))
    assert len(digests) == 3


def test_an_ensemble_counts_with_its_members_and_its_rule(tmp_path):
    members = [save(tmp_path / f"rm{seed}", seed) for seed in range(2)]
    name = str(tmp_path / "ensemble")
    RewardEnsemble.from_pretrained(members, aggregation="worst").save_pretrained(name)
    digests = {digest_of_model(name)}
    save(tmp_path / "rm1", 5)
    digests.add(digest_of_model(name))
    RewardEnsemble.from_pretrained(members, aggregation="mean").save_pretrained(name)
    digests.add(digest_of_model(name))
    assert len(digests) == 3


def test_a_name_on_the_hub_counts_with_its_commit(tmp_path, monkeypatch):
    def repository(commit: str, **files) -> None:
        def download(name, file, revision=None):
            path = tmp_path / "snapshots" / commit / file
            if file not in files:
                raise FileNotFoundError(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(files[file]))
            return str(path)

        monkeypatch.setattr(model_digests, "hf_hub_download", download)

    digests = []
    base = save(tmp_path / "base")
    for commit in ("abc", "def", "abc"):
        repository(commit, **{"config.json": {}})
        digests.append(digest_of_model("user/rm"))
    repository("abc", **{"adapter_config.json": {"base_model_name_or_path": base}})
    digests.append(digest_of_model("user/rm"))
    save(tmp_path / "base", 4)
    digests.append(digest_of_model("user/rm"))
    repository("abc")
    digests.append(digest_of_model("user/rm"))
    assert digests[0] == digests[2] and len(set(digests)) == 5
    assert digest_of_model("user/other") != digests[-1]


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, (10**6).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_damaged_files_are_left_to_what_loads_them(tmp_path, monkeypatch, content):
    monkeypatch.setattr(model_digests, "_WHOLE", -1)
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "adapter_config.json").write_bytes(b"[]")
    assert len(digest_of_model(tmp_path)) == 16
