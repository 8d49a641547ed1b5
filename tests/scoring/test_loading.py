"""A reward model is loaded whole or not at all, with the options that it was asked to be loaded with."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.hub import save_adapter
from support.models import build_student, read_weights
from support.tokenizers import tokenizer_of
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_interdistill import RewardScorer

FULL, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def rewrite(path, change) -> None:
    save_file(change(read_weights(path)), path, metadata={"format": "pt"})


def without(*parts):
    return lambda weights: {key: value for key, value in weights.items() if not any(part in key for part in parts)}


def change_config(folder, name="config.json", **changes) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def full(tmp_path):
    build_student().save_pretrained(tmp_path / "rm")
    tokenizer_of("bytes").save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


@pytest.fixture
def adapter(tmp_path):
    return save_adapter(tmp_path / "adapter", tmp_path / "base")


def load(folder, **options) -> RewardScorer:
    return RewardScorer.from_pretrained(str(folder), **options)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("layers.2."), "model.layers.2.input_layernorm.weight.* and 3 more"),
        (without("embed_tokens"), "model.embed_tokens.weight"),
        (without("model.norm"), "model.norm.weight"),
        (
            lambda weights: {key.replace("model.layers", "model.blocks"): v for key, v in weights.items()},
            "model.layers.0",
        ),
        (lambda weights: {key.replace("model.", "encoder."): v for key, v in weights.items()}, "model.embed_tokens"),
        (lambda weights: {**weights, "model.norm.weight": torch.ones(31)}, r"model.norm.weight of shape \(31,\) inst"),
    ],
    ids=["layer", "embeddings", "norm", "renamed", "other prefix", "other shape"],
)
def test_a_part_of_a_model_is_refused(full, change, named):
    load(full)
    rewrite(full / FULL, change)
    with pytest.raises(ValueError, match=rf"rm holds only a part of its model.*{named}.*random, and different.*Copy"):
        load(full)


def test_a_head_for_another_number_of_outputs_is_none(full):
    build_student(num_labels=2).save_pretrained(full)
    with pytest.raises(ValueError, match=r"no trained score head \(score.weight of shape \(2, 32\) instead of"):
        load(full)


def test_shards_that_the_index_forgets_or_that_are_gone(tmp_path):
    build_student().save_pretrained(tmp_path, max_shard_size="80KB")
    tokenizer_of("bytes").save_pretrained(tmp_path)
    index_file = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    lost = index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    weight_map = {key: shard for key, shard in index["weight_map"].items() if shard != lost}
    index_file.write_text(json.dumps({**index, "weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"holds only a part of its model"):
        load(tmp_path)
    index_file.write_text(json.dumps(index))
    load(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(OSError, match=lost):
        load(tmp_path)


def test_a_weight_file_that_is_cut_short_is_named(full):
    content = (full / FULL).read_bytes()
    (full / FULL).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"rm has a weight file that cannot be read.*Copy or download it again"):
        load(full)


def test_weights_without_a_place_are_refused(full):
    change_config(full, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"does not use: model.layers.2.*not the model that was trained"):
        load(full)
    change_config(full, num_hidden_layers=3)
    rewrite(full / FULL, lambda weights: {**weights, "score.bias": torch.ones(1)})
    with pytest.raises(ValueError, match=r"does not use: score.bias"):
        load(full)
    # Parts that a reward model does not read, and buffers that older versions stored.
    more = {"lm_head.weight": torch.ones(2), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(full / FULL, lambda weights: {**without("score.bias")(weights), **more})
    assert load(full)([None], ["hello"])


def test_tied_weights_are_not_missing(tmp_path, tokenizer):
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 900}
    config = AutoConfig.for_model("t5", num_labels=1, pad_token_id=3, eos_token_id=2, **shape)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path)
    stored = read_weights(tmp_path / FULL)
    assert len(stored) < len(model.state_dict())
    tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path).model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def save_adapter_of_embeddings(folder, base, tokens: int | None = None):
    """A LoRA adapter of embeddings and queries, whose base embeddings are no longer those of the base model."""
    import peft
    from support.hub import language_model

    language_model(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    tokenizer = tokenizer_of("bytes")
    if tokens is not None:
        tokenizer.add_tokens([f"[new {number}]" for number in range(tokens - len(tokenizer))])
        model.resize_token_embeddings(tokens)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        model.get_input_embeddings().base_layer.weight.mul_(1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("tokens", [None, 905])
def test_an_adapter_of_embeddings_reads_those_that_it_was_saved_with(tmp_path, tokens):
    model = save_adapter_of_embeddings(tmp_path / "adapter", tmp_path / "base", tokens)
    assert "base_model.model.model.embed_tokens.base_layer.weight" in read_weights(tmp_path / "adapter" / ADAPTER)
    scorer = load(tmp_path / "adapter")
    texts = ["hello", "a longer text", "[new 0] and [new 1]"]
    wanted = []
    for text in texts:
        ids = torch.tensor([scorer.encode(None, text, {})])
        with torch.no_grad():
            wanted.append(float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]))
    assert scorer([None] * 3, texts) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 1e-3
    rewrite(tmp_path / "adapter" / ADAPTER, without("embed_tokens.base_layer"))  # `save_embedding_layers=False`
    assert load(tmp_path / "adapter")([None] * 3, texts) != pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    "foreign", ["model.embed_positions.base_layer", "model.norm.base_layer", "model.layers.0.self_attn.q_proj"]
)
def test_base_weights_in_an_adapter_that_go_nowhere_are_refused(tmp_path, foreign):
    """PEFT would leave them out: the base model has no such layer, or the adapter has the layer inside its own."""
    save_adapter_of_embeddings(tmp_path / "adapter", tmp_path / "base")
    key = f"base_model.model.{foreign}.weight"
    rewrite(tmp_path / "adapter" / ADAPTER, lambda weights: {**weights, key: torch.ones(32, 32)})
    with pytest.raises(ValueError, match=rf"adapter has weights that its model does not use: {key}"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize("part", ["layers.1.self_attn.q_proj.lora_A", "lora_B", "score"])
def test_a_part_of_an_adapter_is_refused(adapter, part):
    load(adapter)
    rewrite(adapter / ADAPTER, without(part))
    message = r"no trained score head \(score.weight" if part == "score" else rf"holds only a part of.*{part}"
    with pytest.raises(ValueError, match=message):
        load(adapter)


def test_a_lost_head_of_an_adapter_is_not_replaced_by_its_bases(adapter, tmp_path):
    """The base model is a reward model itself, so its head is there, but it is not the one that was trained."""
    build_student().save_pretrained(tmp_path / "base")
    load(adapter)
    rewrite(adapter / ADAPTER, without("score"))
    with pytest.raises(ValueError, match=r"adapter holds only a part of.*score.weight"):
        load(adapter)
    change_config(adapter, "adapter_config.json", modules_to_save=None, task_type=None)  # the base's was used
    reward = load(adapter)([None], ["hello"])
    assert reward == load(adapter)([None], ["hello"])


def test_lora_on_a_random_head_is_no_head(tmp_path):
    import peft
    from support.hub import language_model

    language_model(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "score"])).save_pretrained(tmp_path / "rm")
    tokenizer_of("bytes").save_pretrained(tmp_path / "rm")
    assert "base_model.model.score.lora_A.weight" in read_weights(tmp_path / "rm" / ADAPTER)
    with pytest.raises(ValueError, match=r"no trained score head \(score.weight"):
        load(tmp_path / "rm")


def test_an_adapter_needs_its_whole_base_model(adapter, tmp_path):
    base = tmp_path / "base"
    whole = read_weights(base / FULL)
    rewrite(base / FULL, without("layers.1."))
    with pytest.raises(ValueError, match=r"base holds only a part of its model.*layers.1."):
        load(adapter)
    save_file(whole, base / FULL, metadata={"format": "pt"})
    change_config(base, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"adapter has weights that its model does not use.*layers.2"):
        load(adapter)
    build_student(hidden_size=64, head_dim=16).save_pretrained(base)
    with pytest.raises(ValueError, match=r"does not fit its base model .*base.*size mismatch"):
        load(adapter)


def test_adapters_of_adapters_and_of_other_tasks_are_explained(adapter, tmp_path):
    change_config(adapter, "adapter_config.json", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"has `task_type='CAUSAL_LM'`.*Set `task_type='SEQ_CLS'`"):
        load(adapter)
    change_config(adapter, "adapter_config.json", task_type=None)
    unset = load(adapter)([None], ["hello"])
    change_config(adapter, "adapter_config.json", task_type="SEQ_CLS")
    assert load(adapter)([None], ["hello"]) == unset
    shutil.copytree(adapter, tmp_path / "second")
    change_config(tmp_path / "second", "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match=r"trained on .*adapter, which is an adapter itself.*Merge the first one"):
        load(tmp_path / "second")


def test_subfolders_are_read_for_model_adapter_and_tokenizer(full, adapter, tmp_path):
    texts = ["hello", "a longer text"]
    for folder in (full, adapter):
        expected = load(folder)([None, None], texts)
        shutil.copytree(folder, tmp_path / "repository" / folder.name)
        inner = load(tmp_path / "repository", subfolder=folder.name)
        assert inner([None, None], texts) == expected and inner.tokenizer.chat_template


def test_torch_dtype_is_dtype(full):
    assert load(full).model.dtype == torch.float32
    assert load(full, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.warns(FutureWarning, match="`torch_dtype` of RewardScorer.from_pretrained is now `dtype`"):
        assert load(full, torch_dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="`torch_dtype` and `dtype`, which are one field"):
        load(full, torch_dtype=torch.bfloat16, dtype=torch.float32)
