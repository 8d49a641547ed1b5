"""Each format, written here, gives the same rewards after conversion as by plain torch before it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from support.foreign import (
    add_weights,
    assert_rewards,
    convert,
    edit_json,
    last_states,
    linear_rewards,
    random_head,
    rows_of,
    save_policy,
    save_sequence_classifier,
    save_value_head,
)
from support.models import build_encoder
from support.tokenizers import tokenizer_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_interdistill.cli import main


def save_openrlhf(source, prefix: str, **config):
    model, (weight, _) = save_policy(source), random_head()
    add_weights(source, removed="lm_head", **{f"{prefix}_dot_weight": weight})
    edit_json(source / "config.json", architectures=["RewardModel"], value_head_prefix=prefix, **config)
    return model, weight


@pytest.mark.parametrize("prefix", ["score", "value_head", "my_head"])
def test_openrlhf_names_its_head_in_the_config(source, output, prefix):
    model, weight = save_openrlhf(source, prefix)
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))
    assert not {"value_head_prefix", "mean", "std"} & json.loads((output / "config.json").read_text()).keys()


@pytest.mark.parametrize(("in_config", "option"), [(True, None), (False, "true"), (True, "false"), (False, None)])
def test_openrlhf_normalizes_if_config_or_user_say_so(source, output, in_config, option):
    model, weight = save_openrlhf(source, "value_head", normalize_reward=in_config, mean=0.75, std=2.5)
    is_normalized = in_config if option is None else option == "true"
    chosen = [] if option is None else ["--normalize_reward", option]
    if is_normalized:
        assert (
            main(["convert", "--model", str(source), "--output", str(output), *chosen]) == 2
        )  # the mean is a constant
        chosen += ["--drop_bias", "true"]
    scorer = convert(source, output, *chosen)
    rows = rows_of(scorer.tokenizer)
    plain = linear_rewards(model, rows, weight)
    assert_rewards(scorer, rows, [reward / 2.5 for reward in plain] if is_normalized else plain)


def test_openrlhf_keeps_the_mean_where_the_last_norm_has_a_bias(source, output):
    model, (weight, _) = save_policy(source, family="gpt2"), random_head()
    add_weights(source, value_head_dot_weight=weight)
    edit_json(
        source / "config.json", architectures=["LLMForSequenceRegression"], normalize_reward=True, mean=1.5, std=0.5
    )
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, [(reward - 1.5) / 0.5 for reward in linear_rewards(model, rows, weight)])


@pytest.mark.parametrize("name", ["v_head.summary", "v_head.summary.0"])
def test_grm_with_one_linear_layer(source, output, name):
    model, (weight, _) = save_policy(source), random_head()
    key = name.replace(".", "_dot_")
    add_weights(source, removed="lm_head", **{f"{key}_dot_weight": weight, f"{key}_dot_bias": torch.zeros(1)})
    edit_json(source / "config.json", architectures=["GRewardModel"], vhead_layer_type="linear", vhead_num_layers=0)
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))
    assert not any(key.startswith("vhead") for key in json.loads((output / "config.json").read_text()))


@pytest.mark.parametrize("outputs", [1, 2])
def test_ms_swift_has_a_score_head_on_a_language_model(source, output, outputs):
    model, (weight, _) = save_policy(source), random_head(outputs)
    add_weights(source, removed="lm_head", score_dot_weight=weight)
    edit_json(source / "config.json", num_labels=outputs)
    scorer = convert(source, output, *(["--weights", "0=-0.5", "1=2"] if outputs == 2 else []))
    rows = rows_of(scorer.tokenizer)
    states = last_states(model, rows) @ weight.T
    expected = states[:, 0] if outputs == 1 else 2 * states[:, 1] - 0.5 * states[:, 0]
    assert_rewards(scorer, rows, expected.tolist())


@torch.no_grad()
def logits_of(model, rows) -> torch.Tensor:
    return torch.stack([model(torch.tensor([row])).logits[0] for row in rows])


@pytest.mark.parametrize(
    ("options", "mix"),
    [
        (["--positive_label", "good"], [-1.0, 1.0]),
        (["--positive_label", "0"], [1.0, -1.0]),
        (["--weights", "good=1"], [0.0, 1.0]),
    ],
)
def test_two_outputs_are_a_difference_or_a_stated_one(source, output, options, mix):
    model = save_sequence_classifier(source, 2, ["bad", "good"])
    scorer = convert(source, output, *options)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, (logits_of(model, rows) @ torch.tensor(mix)).tolist())


@pytest.mark.parametrize("form", ["words", "file", "recipe"])
def test_several_outputs_with_given_weights(source, output, tmp_path, form):
    model = save_sequence_classifier(source, 5, ["helpful", "correct", "coherent", "complex", "verbose"])
    given = {"helpful": 0.7, "correct": 0.5, "verbose": -0.25}
    (tmp_path / "weights.json").write_text(json.dumps(given))
    words = (
        [f"{name}={value}" for name, value in given.items()] if form == "words" else [str(tmp_path / "weights.json")]
    )
    options = ["--weights", *words]
    if form == "recipe":
        (tmp_path / "recipe.yaml").write_text("weights: {helpful: 0.7, correct: 0.5, verbose: -0.25}\n")
        options = ["--config", str(tmp_path / "recipe.yaml")]
    scorer = convert(source, output, *options)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, (logits_of(model, rows) @ torch.tensor([0.7, 0.5, 0.0, 0.0, -0.25])).tolist())
    assert "0.7 x helpful + 0.5 x correct + -0.25 x verbose" in (output / "README.md").read_text()


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_encoders_with_two_outputs_keep_their_bias(source, output, family):
    encoder, tokenizer = build_encoder(family)
    model = AutoModelForSequenceClassification.from_config(encoder.config).eval()
    head = model.get_submodule("classifier.out_proj" if family == "roberta" else "classifier")
    with torch.no_grad():
        head.weight.normal_(std=50.0, generator=torch.Generator().manual_seed(1))
        head.bias.copy_(torch.tensor([0.3, -0.9]))
    model.save_pretrained(source)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    tokenizer.save_pretrained(source)
    scorer = convert(source, output, "--positive_label", "1")
    rows = [tokenizer(text)["input_ids"] for text in ("It is Paris.", "No, it is Lyon, I think.", "Why?")]
    assert_rewards(scorer, rows, (logits_of(model, rows) @ torch.tensor([-1.0, 1.0])).tolist())


def test_armorm_with_weights_in_place_of_its_gate(source, output, capsys):
    model, (weight, _) = save_policy(source), random_head(3)
    add_weights(
        source,
        removed="lm_head",
        regression_layer_dot_weight=weight,
        gating_dot_logit_scale=torch.ones(1),
        gating_dot_layers_dot_0_dot_weight=torch.ones(4, 32),
        reward_transform_matrix=torch.eye(3),
    )
    code = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    edit_json(source / "config.json", architectures=["LlamaForRewardModelWithGating"], auto_map=code, num_labels=3)
    command = ["convert", "--model", str(source), "--output", str(output), "--weights", "0=0.7", "2=0.3"]
    assert main(command) == 2
    assert "code of its own" in capsys.readouterr().err
    scorer = convert(source, output, "--format", "multi_output", "--weights", "0=0.7", "2=0.3")
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, (last_states(model, rows) @ weight.T @ torch.tensor([0.7, 0.0, 0.3])).tolist())
    assert "gating network" in capsys.readouterr().out
    assert "auto_map" not in json.loads((output / "config.json").read_text())


def test_weights_keep_their_data_type(source, output):
    model, (weight, _) = save_policy(source, dtype="bfloat16"), random_head()
    save_value_head(source, weight, torch.zeros(1))
    scorer = convert(source, output)
    from support.models import read_weights

    stored = read_weights(output / "model.safetensors")
    assert {str(tensor.dtype) for name, tensor in stored.items() if name != "score.weight"} == {"torch.bfloat16"}
    assert torch.equal(stored["score.weight"], weight)
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))


def test_embeddings_stored_as_the_tied_lm_head_alone(source, output):
    from support.models import read_weights

    model, (weight, _) = save_policy(source, tie_word_embeddings=True), random_head()
    weights = read_weights(source / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    save_value_head(source, weight, torch.zeros(1))
    scorer = convert(source, output)
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))


@pytest.mark.parametrize("padding", ["</s>", None, "<|end|>"])
def test_a_closing_eos_is_read_also_where_it_was_the_padding(source, output, padding, capsys):
    """The trainers read the last token that the attention mask shows; a sequence classifier reads before padding."""
    tokenizer = tokenizer_of("bytes")
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>\n", "<|end|>")
    tokenizer.pad_token = padding
    vocabulary = len(tokenizer)
    model, (weight, _) = save_policy(source, tokenizer, vocab_size=vocabulary), random_head()
    save_value_head(source, weight, torch.zeros(1))
    scorer = convert(source, output)
    written = AutoTokenizer.from_pretrained(output)
    assert written.pad_token not in (None, padding) and len(written) == vocabulary  # <pad> is in its vocabulary
    rows = rows_of(written)
    assert rows[0][-1] == written.convert_tokens_to_ids("<|end|>") and rows[1][-1] == written.eos_token_id
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))
    assert "padding:" in capsys.readouterr().out


def test_padding_is_added_where_the_vocabulary_has_none(source, output):
    tokenizer = tokenizer_of("bytes")
    data = json.loads(tokenizer.backend_tokenizer.to_str().replace('"<pad>"', '"<other>"'))
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    renamed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="</s>", pad_token="</s>", bos_token="<s>"
    )
    renamed.chat_template = tokenizer.chat_template
    size = len(renamed)
    model, (weight, _) = save_policy(source, renamed, vocab_size=size, pad_token_id=None), random_head()
    save_value_head(source, weight, torch.zeros(1))
    scorer = convert(source, output)
    assert scorer.tokenizer.pad_token == "<|pad|>" and scorer.tokenizer.pad_token_id == size
    rows = rows_of(scorer.tokenizer)
    assert_rewards(scorer, rows, linear_rewards(model, rows, weight))
