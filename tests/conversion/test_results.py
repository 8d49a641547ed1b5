"""What comes out: a folder that everything loads, with tokenizer, license and card, from a folder or the Hub."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from support.foreign import (
    ANSWERS,
    QUESTION,
    add_weights,
    edit_json,
    linear_rewards,
    random_head,
    rows_of,
    save_policy,
    save_value_head,
)
from support.models import build_student
from support.rl import grpo_trainer
from support.serving import served
from support.tokenizers import tokenizer_of
from transformers import AutoTokenizer, pipeline

from hf_interdistill import RemoteRewardScorer, RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.conversion.checkpoint import open_checkpoint
from hf_interdistill.conversion.convert import TOLERANCE
from hf_interdistill.hub.files import stage_model
from hf_interdistill.serving.app import RewardApp

CARD = """---
license: other
license_name: some-license
license_link: https://example.com/license
language: [en, fr]
base_model: some/base
datasets: [some/preferences]
model-index: []
---

# The original
"""


@pytest.fixture
def source(tmp_path):
    """A checkpoint with a value head, a license and a card."""
    folder = tmp_path / "source"
    folder.mkdir()
    save_policy(folder)
    save_value_head(folder, random_head()[0], torch.zeros(1))
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Do as you like.")
    return folder


def converted(source, *options) -> str:
    output = source.parent / "converted"
    assert main(["convert", "--model", str(source), "--output", str(output), "--device", "cpu", *options]) == 0
    return str(output)


def conversation(answer: str) -> list[dict]:
    return [*QUESTION, {"role": "assistant", "content": answer}]


def test_server_pipeline_and_scorer_give_the_original_rewards(source):
    """The original's rewards by plain torch, over HTTP and in the pipeline as users call it."""
    model = save_policy(source.parent / "same")
    tokenizer = tokenizer_of("bytes")
    texts = [tokenizer.apply_chat_template(conversation(answer), tokenize=False) for answer in ANSWERS]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = pytest.approx(linear_rewards(model, rows, random_head()[0]), abs=1e-5)
    output = converted(source)
    scorer = RewardScorer.from_pretrained(output)
    assert scorer([QUESTION] * 3, ANSWERS) == expected
    with served(RewardApp(scorer, "converted")) as url:
        assert RemoteRewardScorer(url)([QUESTION] * 3, ANSWERS) == expected
    classifier = pipeline("text-classification", model=output, device="cpu")
    assert [classifier(text, add_special_tokens=False)[0]["score"] for text in texts] == expected


@pytest.mark.slow
def test_a_converted_model_drives_grpo_over_http(source, tmp_path):
    model = save_policy(tmp_path / "policy", seed=1)
    app = RewardApp(RewardScorer.from_pretrained(converted(source)), "converted")
    seen = []
    with served(app) as url:
        remote = RemoteRewardScorer(url)

        def watched(prompts, completions, **kwargs):
            rewards = remote(prompts, completions, **kwargs)
            seen.extend(zip(prompts, completions, rewards, strict=True))
            return rewards

        sizes = {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6}
        policy = str(tmp_path / "policy")
        trainer = grpo_trainer(tmp_path / "out", policy, [watched], QUESTION, learning_rate=1e-3, **sizes)
        trainer.train()
    tokenizer, original = tokenizer_of("bytes"), save_policy(tmp_path / "same")
    texts = [tokenizer.apply_chat_template(prompt + answer, tokenize=False) for prompt, answer, _ in seen]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = linear_rewards(original, rows, random_head()[0])
    assert len(seen) == 8 and [reward for *_, reward in seen] == pytest.approx(expected, abs=1e-4)
    assert any(
        not torch.equal(a.cpu(), b) for a, b in zip(trainer.model.parameters(), model.parameters(), strict=True)
    )


def test_tokenizer_and_chat_template_are_carried_over(source):
    written = AutoTokenizer.from_pretrained(converted(source))
    original = tokenizer_of("bytes")
    assert written.chat_template == original.chat_template and written.get_vocab() == original.get_vocab()
    assert written.pad_token == "<pad>" and written.eos_token == "</s>" and written.bos_token == "<s>"


def test_card_and_license(source, capsys):
    output = source.parent / "converted"
    converted(source)
    printed = capsys.readouterr().out
    card = ModelCard.load(output / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "some-license")
    assert data["license_link"] == "https://example.com/license" and data["language"] == ["en", "fr"]
    assert data["base_model"] == "some/base" and data["datasets"] == ["some/preferences"]
    assert data["pipeline_tag"] == "text-classification" and "reward-model" in data["tags"]
    assert "value_head" in card.text and str(source) not in card.text and f"tolerance {TOLERANCE:g}" in card.text
    assert (output / "LICENSE").read_text() == "Do as you like."
    assert "parity: 5 texts" in printed and "Written: " in printed
    pushed = {file.path_in_repo for file in stage_model(output, "user/converted")}
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= pushed


def test_tokens_in_the_card_do_not_break_its_table(source):
    tokenizer = tokenizer_of("bytes")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(source)
    converted(source)
    text = (source.parent / "converted" / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| padding"))
    assert "'&lt;pad>'" in row and "'&lt;/s>'" in row and len(re.findall(r"(?<!\\)\|", row)) == 3


def test_a_card_that_is_not_valid_is_left_out_with_a_warning(source, caplog):
    (source / "README.md").write_text("---\nlicense: [\n---\n# x\n")
    converted(source)
    assert "not carried over" in caplog.text
    assert ModelCard.load(source.parent / "converted" / "README.md").data.license is None


def test_a_dry_run_prints_the_plan_and_writes_nothing(source, capsys):
    before = sorted(source.parent.rglob("*"))
    command = ["convert", "--model", str(source), "--output", str(source.parent / "converted")]
    assert main([*command, "--dry_run", "true"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "format: value_head",
        "result: LlamaForSequenceClassification, backbone in float32",
        "head: `v_head.summary`, 1 output(s) on hidden states of 32",
        "constant: none",
        "nothing was written",
    ):
        assert line in printed
    assert sorted(source.parent.rglob("*")) == before


def test_a_stated_format_chooses_among_several_heads(source):
    build_student(seed=0).save_pretrained(source)  # a score head beside the value head
    model = save_policy(source.parent / "same")
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    add_weights(source, removed="model.", **weights)
    scorer = RewardScorer.from_pretrained(converted(source, "--format", "value_head"))
    rows = rows_of(scorer.tokenizer)
    assert scorer.score_ids(rows) == pytest.approx(linear_rewards(model, rows, random_head()[0]), abs=1e-4)


def test_a_critic_is_taken_if_the_format_is_stated(source):
    (source / "value_head.safetensors").unlink()
    weight, _ = random_head()
    add_weights(source, removed="lm_head", score_dot_weight=weight)
    edit_json(source / "config.json", value_head_prefix="score", architectures=["CriticModel"])
    scorer = RewardScorer.from_pretrained(converted(source, "--format", "openrlhf"))
    rows = rows_of(scorer.tokenizer)
    model = save_policy(source.parent / "same")
    assert scorer.score_ids(rows) == pytest.approx(linear_rewards(model, rows, weight), abs=1e-4)


def test_shards_and_no_chat_template(source):
    (source / "model.safetensors").unlink()
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = None
    (source / "chat_template.jinja").unlink()
    model = save_policy(source.parent / "same")
    model.save_pretrained(source, max_shard_size="40KB")
    tokenizer.save_pretrained(source)
    assert len(list(source.glob("model-*.safetensors"))) > 1
    output = converted(source)
    scorer = RewardScorer.from_pretrained(output)
    assert scorer.tokenizer.chat_template is None
    rows = [[*tokenizer(f"Question: why? {answer}")["input_ids"], tokenizer.eos_token_id] for answer in ANSWERS]
    expected = linear_rewards(model, rows, random_head()[0])
    assert scorer(["Question: why? "] * 3, ANSWERS) == pytest.approx(expected, abs=1e-5)


def test_a_hub_name(source, monkeypatch, tmp_path):
    """Of a repository, the files that a conversion needs are downloaded: no pickled weights beside safetensors."""
    from hf_interdistill.conversion import checkpoint

    torch.save({"a": torch.zeros(1)}, source / "pytorch_model.bin")
    there, asked = tmp_path / "there", []
    there.mkdir()

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        for path in source.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy2(path, there)
        return str(there)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    command = ["convert", "--model", "someone/rm", "--revision", "v2", "--output", str(tmp_path / "converted")]
    assert main([*command, "--device", "cpu"]) == 0
    assert asked == [("someone/rm", "v2")] and not (there / "pytorch_model.bin").exists()
    card = ModelCard.load(tmp_path / "converted" / "README.md")
    (source / "model.safetensors").unlink()
    torch.save(save_policy(source.parent / "same").state_dict(), source / "pytorch_model.bin")
    shutil.rmtree(there)
    there.mkdir()
    pickled = ["convert", "--model", "someone/rm", "--output", str(tmp_path / "again"), "--device", "cpu"]
    assert main(pickled) == 0 and (there / "pytorch_model.bin").exists() and len(asked) == 3
    assert card.data.base_model == "someone/rm" and "(https://huggingface.co/someone/rm)" in card.text


def test_names_without_wrappers(source):
    names = open_checkpoint(str(source)).names
    assert {"v_head.summary.weight", "model.norm.weight", "lm_head.weight"} <= names


def test_config_is_of_the_result(source):
    output = source.parent / "converted"
    edit_json(source / "config.json", summary_dropout_prob=0.3)
    converted(source)
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and "summary_dropout_prob" not in config
    assert config["pad_token_id"] == 3 and config["label2id"] == {"reward": 0}
    assert not (output / "value_head.safetensors").exists() and not (output / "generation_config.json").exists()
