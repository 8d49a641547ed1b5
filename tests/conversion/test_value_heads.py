"""Value heads in files, among the weights and beside adapters give the same rewards as by plain torch before."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from support.foreign import (
    add_weights,
    assert_rewards,
    build_policy,
    convert,
    edit_json,
    linear_rewards,
    random_head,
    rows_of,
    save_policy,
    save_value_head,
)
from support.models import read_weights
from support.tokenizers import tokenizer_of

from hf_interdistill.cli import main


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_value_head_in_a_file_of_its_own(source, output, kind):
    model, (weight, _) = save_policy(source), random_head()
    save_value_head(source, weight, torch.zeros(1), kind)
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))


def test_the_constant_of_a_value_head_is_left_out_only_if_told(source, output, capsys):
    model, (weight, bias) = save_policy(source), random_head()
    save_value_head(source, weight, bias)
    assert main(["convert", "--model", str(source), "--output", str(output)]) == 2
    assert f"adds {float(bias):.6g} to every reward" in (error := capsys.readouterr().err) and "drop_bias" in error
    assert not output.exists()
    scorer = convert(source, output, "--drop_bias", "true")
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))
    assert f"{float(bias):.6g}" in (output / "README.md").read_text()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bloom", "stablelm"])
def test_the_constant_is_kept_in_the_bias_of_the_last_norm(source, output, family):
    model, (weight, bias) = save_policy(source, family=family), random_head()
    save_value_head(source, weight, bias)
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight, bias))


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral", "phi3", "qwen2"])
def test_families_of_backbones(source, output, family):
    model, (weight, _) = save_policy(source, family=family), random_head()
    save_value_head(source, weight, torch.zeros(1))
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_trl_keeps_its_value_head_among_the_weights(source, output, file):
    model, (weight, _) = save_policy(source), random_head()
    add_weights(source, v_head_dot_summary_dot_weight=weight, v_head_dot_summary_dot_bias=torch.zeros(1))
    if file.endswith(".bin"):
        torch.save(read_weights(source / "model.safetensors"), source / file)
        (source / "model.safetensors").unlink()
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))


def test_weights_under_trls_wrapper(source, output):
    """As DeepSpeed's ZeRO-3 writes TRL's model, before LLaMA-Factory renames it."""
    model, (weight, _) = save_policy(source), random_head()
    weights = read_weights(source / "model.safetensors")
    renamed = {f"pretrained_model.{name}": tensor for name, tensor in weights.items()}
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.zeros(1)}
    save_file({**renamed, **head}, source / "model.safetensors", metadata={"format": "pt"})
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))


def save_lora(source, base, **changes):
    from peft import LoraConfig, get_peft_model

    save_policy(base, seed=3)
    model = build_policy(seed=3)
    model.config._name_or_path = model.name_or_path = str(base)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False, **changes)
    adapted = get_peft_model(model, lora).eval()
    adapted.save_pretrained(source)
    tokenizer_of("bytes").save_pretrained(source)
    return adapted


@pytest.mark.parametrize("where", ["value_head.safetensors", "pytorch_model.bin", "adapter_model.safetensors"])
def test_an_adapter_beside_a_value_head_is_merged(source, output, tmp_path, where):
    """Whatever task it names: TRL's value head makes a language model a reward model."""
    adapted, (weight, _) = save_lora(source, tmp_path / "base"), random_head()
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.zeros(1)}
    if where == "value_head.safetensors":
        save_value_head(source, weight, torch.zeros(1))
    elif where == "pytorch_model.bin":
        torch.save(head, source / where)
    else:
        wrapped = {f"base_model.model.{name}": tensor for name, tensor in head.items()}
        save_file({**read_weights(source / where), **wrapped}, source / where, metadata={"format": "pt"})
        edit_json(source / "adapter_config.json", task_type="SEQ_CLS", modules_to_save=["v_head"])
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(adapted, rows, weight))
    assert linear_rewards(adapted, rows, weight) != pytest.approx(
        linear_rewards(build_policy(seed=3), rows, weight), abs=0.1
    )
    assert not (output / "adapter_config.json").exists()


def test_an_adapter_with_embeddings_of_new_tokens(source, output, tmp_path):
    from peft import LoraConfig, get_peft_model

    save_policy(tmp_path / "base", seed=3)
    model, tokenizer = build_policy(seed=3), tokenizer_of("bytes")
    model.config._name_or_path = model.name_or_path = str(tmp_path / "base")
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)  # of the chat template
    model.resize_token_embeddings(len(tokenizer))
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["embed_tokens", "lm_head"])
    adapted, (weight, _) = get_peft_model(model, lora).eval(), random_head()
    with torch.no_grad():
        adapted.get_input_embeddings().weight[-1].normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(source)
    tokenizer.save_pretrained(source)
    save_value_head(source, weight, torch.zeros(1))
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert rows[0].count(len(tokenizer) - 1) == 2
    assert_rewards(scorer, rows, linear_rewards(adapted, rows, weight))


def test_the_base_model_of_an_adapter_may_have_moved(source, output, tmp_path, capsys):
    adapted, (weight, _) = save_lora(source, tmp_path / "base"), random_head()
    save_value_head(source, weight, torch.zeros(1))
    (tmp_path / "base").rename(tmp_path / "moved")
    assert main(["convert", "--model", str(source), "--output", str(output)]) == 2
    assert "`base_model`" in capsys.readouterr().err
    scorer = convert(source, output, "--base_model", str(tmp_path / "moved"))
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(adapted, rows, weight))
