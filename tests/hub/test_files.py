"""Which files are pushed, and which folders are refused."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from support.datasets import ROOT
from support.hub import TOKEN, card_of, save_adapter, save_full
from support.models import build_encoder, build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import InteractionTeacher
from hf_interdistill.hub.files import stage_model
from hf_interdistill.hub.loading_section import trained_on_messages
from hf_interdistill.hub.merging import merged_model
from hf_interdistill.scoring.attributes import RewardAttributes
from hf_interdistill.scoring.raw_reward import with_raw_reward
from hf_interdistill.utils.privacy import hub_name, public_name, redact


def contents(files) -> dict[str, bytes]:
    return {
        file.path_in_repo: file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        for file in files
    }


def change_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_head(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors")


def only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def as_teacher(folder):
    model, tokenizer = build_encoder()
    InteractionTeacher(model, tokenizer, max_length=256).save_pretrained(str(folder))


def without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def two_outputs(folder):
    build_student(num_labels=2).save_pretrained(folder)


def replace_in_card(folder, old, new):
    (folder / "README.md").write_text((folder / "README.md").read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (as_teacher, "holds an interaction teacher, no reward model"),
        (without_head, "has no score head in model.safetensors: its rewards would be random"),
        (only_pickles, r"has no model.safetensors. It has pytorch_model.bin; pickles are not pushed"),
        (cut_short, "model.safetensors is not a complete safetensors file"),
        (two_outputs, "has 2 outputs, but a reward model has one"),
        (without_tokenizer, "has no tokenizer"),
        (
            lambda folder: (folder / "chat_template.jinja").unlink(),
            "trained on messages, but its tokenizer has no chat",
        ),
        (lambda folder: (folder / "config.json").unlink(), "has the checkpoints checkpoint-3: push one of them"),
        (lambda folder: replace_in_card(folder, "tags:", "tags: ["), "README.md has no valid metadata"),
        (
            lambda folder: replace_in_card(folder, "## Data", f"{ROOT}/data"),
            r"Line \d+ of README.md holds a path of this",
        ),
        (lambda folder: replace_in_card(folder, "## Data", TOKEN), r"Line \d+ of README.md holds .* a token"),
        (
            lambda folder: change_json(folder / "tokenizer_config.json", cache_dir="/home/somebody/cache"),
            "`cache_dir` in tokenizer_config.json holds a path of this machine",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:30]),
)
def test_folders_that_cannot_be_pushed(damage, message, tmp_path):
    folder = save_full(tmp_path / "rm")
    stage_model(folder, "user/rm")
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        stage_model(folder, "user/rm")
    assert str(tmp_path) not in str(error.value) and TOKEN not in str(error.value)


def test_a_lost_shard_is_named(tmp_path):
    folder = save_full(tmp_path / "rm", max_shard_size="80KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    staged = contents(stage_model(folder, "user/rm"))
    assert {*shards, "model.safetensors.index.json"} <= set(staged)
    (folder / shards[0]).unlink()
    with pytest.raises(ValueError, match=f"has no {shards[0]}"):
        stage_model(folder, "user/rm")


def test_adapters_need_a_head_and_a_base_that_others_have(tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base")
    with pytest.raises(ValueError, match=r"which nobody else has, so nobody could load it\. Push it merged") as error:
        stage_model(adapter, "user/rm")
    assert str(tmp_path) not in str(error.value)
    assert str(tmp_path) in (adapter / "README.md").read_text()  # PEFT's doing
    staged = contents(stage_model(adapter, "user/rm", base_model="user/base"))
    assert not [name for name, content in staged.items() if str(tmp_path).encode() in content]
    change_json(adapter / "adapter_config.json", base_model_name_or_path="org/base-on-the-hub")
    card = ModelCard(contents(stage_model(adapter, "user/rm"))["README.md"].decode())
    assert card.data.base_model == "org/base-on-the-hub" and card.data["base_model_relation"] == "adapter"
    headless = save_adapter(tmp_path / "headless", tmp_path / "base", modules_to_save=())
    with pytest.raises(ValueError, match=r"modules_to_save=\['score'\]"):
        stage_model(headless, "user/rm", base_model="user/base")


def test_notes_of_local_folders_are_dropped(tmp_path):
    folder = save_full(tmp_path / "rm")
    change_json(folder / "config.json", _name_or_path=str(tmp_path))
    change_json(folder / "tokenizer_config.json", name_or_path=str(tmp_path))
    staged = contents(stage_model(folder, "user/rm"))
    for name in ("config.json", "tokenizer_config.json"):
        before, after = json.loads((folder / name).read_text()), json.loads(staged[name])
        before = with_raw_reward(before) if name == "config.json" else before
        assert after == {key: value for key, value in before.items() if not key.endswith("name_or_path")}


def test_a_card_of_the_users_own_is_kept_and_completed(tmp_path, caplog):
    folder = save_full(tmp_path / "rm")
    own = "---\nlicense: mit\nlanguage: en\n---\n\n# Mine\n\nTrained with care.\n"
    (folder / "README.md").write_text(own)
    card = ModelCard(contents(stage_model(folder, "user/named"))["README.md"].decode())
    assert "Trained with care." in card.text and card.data.license == "mit" and card.data.language == "en"
    assert card.data.pipeline_tag == "text-classification" and 'from_pretrained("user/named"' in card.text
    assert (folder / "README.md").read_text() == own
    (folder / "README.md").unlink()
    card = ModelCard(contents(stage_model(folder, "user/named"))["README.md"].decode())
    assert trained_on_messages(card.text) and not caplog.records
    (folder / "chat_template.jinja").unlink()
    card = ModelCard(contents(stage_model(folder, "user/named"))["README.md"].decode())
    assert trained_on_messages(card.text) is False and "has no chat template" in caplog.text


def test_a_card_moves_to_its_repository(tmp_path):
    folder = save_full(tmp_path / "rm")
    card_of("rm", metrics={"eval_accuracy": 0.75}, dataset_name="user/data").save(folder / "README.md")
    once = ModelCard(contents(stage_model(folder, "user/first"))["README.md"].decode())
    assert "# first\n" in once.text and 'from_pretrained("user/first"' in once.text and '("rm"' not in once.text
    (result,) = once.data.eval_results
    assert (once.data.model_name, result.metric_value, result.dataset_type) == ("first", 0.75, "user/data")
    once.save(folder / "README.md")
    again = ModelCard(contents(stage_model(folder, "user/second"))["README.md"].decode())
    assert again.content == once.content.replace("first", "second")


def test_public_names_leave_out_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "alice" / "runs" / "rm").mkdir(parents=True)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "alice")
    assert public_name(str(tmp_path / "alice" / "runs" / "rm")) == "runs/rm"
    assert public_name(str(tmp_path / "alice" / "runs")) == "runs"
    (tmp_path / "alice" / "pairs.jsonl").write_text("")
    (tmp_path / "alice" / "runs" / "pairs.jsonl").write_text("")
    assert public_name(tmp_path / "alice" / "runs" / "pairs.jsonl") == "runs/pairs.jsonl"
    assert public_name(str(tmp_path / "alice" / "pairs.jsonl")) == "pairs.jsonl"
    assert public_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert hub_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert hub_name(str(tmp_path)) is hub_name("/not/there") is hub_name(None) is hub_name("../rm") is None
    said = redact(f"Bearer abc.def was refused, and so were {TOKEN} and secret!", "secret!")
    assert said == "Bearer <token> was refused, and so were <token> and <token>"


def test_the_vocabulary_is_not_searched(tmp_path):
    folder = save_full(tmp_path / "rm")
    tokenizer = tokenizer_of("bytes")
    tokenizer.add_tokens(["/home/x/y"])
    tokenizer.save_pretrained(folder)
    assert "tokenizer.json" in contents(stage_model(folder, "user/rm"))


def test_a_merged_model_has_all_that_lies_beside_its_adapter(tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "base")
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tools": "{{ tools }}"}
    tokenizer.save_pretrained(adapter)
    RewardAttributes({"helpful": 0.5}, torch.arange(32.0)[None], torch.ones(1)).save(adapter)
    (adapter / "maps.png").write_bytes(b"picture")
    with (adapter / "README.md").open("a") as card:
        card.write("![maps](maps.png)\n")
    alone = contents(stage_model(adapter, "user/rm", base_model="user/base"))
    with merged_model(adapter) as folder:
        merged = contents(stage_model(folder, "user/rm"))
    weights = {"adapter_config.json", "adapter_model.safetensors"}
    beside = alone.keys() - weights
    assert {"reward_attributes.json", "maps.png", "additional_chat_templates/tools.jinja"} <= beside
    assert merged.keys() == beside | {"config.json", "model.safetensors"}
    assert all(merged[name] == alone[name] for name in ("reward_attributes.json", "maps.png", "chat_template.jinja"))
