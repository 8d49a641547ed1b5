"""What cannot be converted is refused with value, rule and fix, and nothing is left behind."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from support.foreign import add_weights, edit_json, random_head, save_policy, save_sequence_classifier, save_value_head
from support.models import build_student, read_weights
from support.tokenizers import tokenizer_of

from hf_interdistill.cli import main
from hf_interdistill.conversion import convert as conversion
from hf_interdistill.conversion.checkpoint import open_checkpoint
from hf_interdistill.conversion.formats import Choices


@pytest.fixture
def source(tmp_path):
    """A language model with a value head that can be converted."""
    save_policy(tmp_path / "source")
    save_value_head(tmp_path / "source", random_head()[0], torch.zeros(1))
    return tmp_path / "source"


@pytest.fixture
def refused(source, capsys):
    def refuse(*options: str, output: str = "converted") -> str:
        before = sorted(path.name for path in source.parent.iterdir())
        target = str(source.parent / output)
        assert main(["convert", "--model", str(source), "--output", target, "--device", "cpu", *options]) == 2
        assert sorted(path.name for path in source.parent.iterdir()) == before
        return capsys.readouterr().err

    return refuse


def head(source, **tensors):
    named = {f"v_head.summary.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, source / "value_head.safetensors")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.full((1, 32), float("nan")), "bias": torch.zeros(1)}, "32 numbers that are not finite"),
        ({"weight": torch.ones(1, 32), "bias": torch.tensor([float("inf")])}, "`v_head.summary.bias`"),
        ({"weight": torch.ones(1, 31), "bias": torch.zeros(1)}, "shape (1, 31)"),
        ({"weight": torch.ones(2, 32), "bias": torch.zeros(2)}, "shape (2, 32)"),
        ({"weight": torch.ones(32), "bias": torch.zeros(1)}, "shape (32,)"),
        ({"weight": torch.ones(1, 32), "bias": torch.zeros(2)}, "shape (2,)"),
        ({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, "is zero"),
        ({"bias": torch.zeros(1)}, "no `v_head.summary.weight`"),
        ({"weight": torch.ones(1, 32), "bias": torch.ones(1)}, "`drop_bias: true`"),
    ],
)
def test_broken_heads(source, refused, tensors, words):
    head(source, **tensors)
    assert words in refused()


@pytest.mark.parametrize("file", ["value_head.safetensors", "model.safetensors"])
def test_files_that_cannot_be_read(source, refused, file):
    (source / file).write_bytes((source / file).read_bytes()[:100])
    assert f"{file} is not a complete safetensors file" in refused()


def test_a_pickle_with_code_is_not_run(source, refused, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    (source / "value_head.safetensors").unlink()
    torch.save({"v_head.summary.weight": Code()}, source / "value_head.bin")
    assert "cannot be read as tensors alone" in refused()
    assert not (tmp_path / "was_run").exists()


def test_missing_files(source, refused):
    weights = read_weights(source / "model.safetensors")
    names = sorted(weights)
    (source / "value_head.safetensors").rename(source.parent / "head")
    assert "has no head that gives a reward" in (error := refused()) and "lm_head.weight" in error
    (source.parent / "head").rename(source / "value_head.safetensors")
    save_file({name: weights[name] for name in names[:10]}, source / "model-00001-of-00002.safetensors")
    (source / "model.safetensors").unlink()
    assert "no weights of the model itself" in refused()
    index = {name: f"model-0000{1 if name in names[:10] else 2}-of-00002.safetensors" for name in names}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "lacks 1 of the 2 files" in (error := refused()) and "model-00002-of-00002.safetensors" in error
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    assert "names no files beside it" in refused()


def test_missing_and_unknown_weights(source, refused):
    weights = read_weights(source / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    for options in ((), ("--dry_run", "true")):
        assert "model.layers.1.mlp.up_proj.weight" in refused(*options)
    add_weights(
        source, **{"model.layers.1.mlp.up_proj.weight": lost, "model.layers.7.mlp.up_proj.weight": lost.clone()}
    )
    assert "does not use: model.layers.7.mlp.up_proj.weight" in refused()


def test_a_backbone_that_is_not_finite(source, refused):
    weights = read_weights(source / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert "not all finite" in refused()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModel": "modeling_own.Own"}}, "code of its own"),
        ({"model_type": "never_heard_of"}, "transformers does not know"),
        (
            {"model_type": "never_heard_of", "auto_map": {"AutoModel": "modeling_own.Own"}},
            "not one of transformers' own",
        ),
        ({"model_type": None}, "`model_type` None"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantized weights"),
        ({"value_head_prefix": "value_head"}, "several formats: value_head, openrlhf"),
    ],
)
def test_configs(source, refused, changes, words):
    edit_json(source / "config.json", **changes)
    assert words in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "trl"), "`format` is 'trl', but must be one of value_head"),
        (("--format", "openrlhf"), "no `value_head.weight`"),
        (("--format", "grm", "--normalize_reward", "true"), "`normalize_reward`"),
        (("--weights", "a=1"), "has one output"),
        (("--positive_label", "1"), "has one output"),
        (("--base_model", "other"), "`base_model` is 'other'"),
        (("--revision", "main"), "`revision` is 'main'"),
        (("--device", "nowhere"), "`device` is 'nowhere'"),
    ],
)
def test_settings(source, refused, options, words):
    assert words in refused(*options)


def test_output_that_is_there(source, refused, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    for name in ("taken", "source", "taken/file"):
        assert "exists already" in refused(output=name)
    assert (tmp_path / "taken" / "file").read_text() == "mine"
    assert "`output` " in (error := refused(output="taken/file/below")) and "cannot be written" in error
    (tmp_path / "empty").mkdir()
    assert main(["convert", "--model", str(source), "--output", str(tmp_path / "empty"), "--device", "cpu"]) == 0
    assert (tmp_path / "empty" / "model.safetensors").exists()


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_models_that_are_not_there(tmp_path, capsys, folder):
    (tmp_path / "empty").mkdir()
    command = ["convert", "--model", str(tmp_path / folder), "--output", str(tmp_path / "converted")]
    assert main(command) == 2
    assert "is not there" in (error := capsys.readouterr().err) or "without a model" in error


def test_no_tokenizer(source, refused):
    for path in source.glob("*token*"):
        path.unlink()
    assert "has no tokenizer" in refused()


@pytest.mark.parametrize("is_raw", [True, False])
def test_a_plain_model_is_said_to_be_one(source, refused, is_raw):
    (source / "value_head.safetensors").unlink()
    build_student().save_pretrained(source)
    if is_raw:
        edit_json(source / "config.json", problem_type="regression")
    error = refused()
    assert "plain reward model with one output already" in error and ("export.py" in error) != is_raw


def test_an_adapter_of_a_plain_model_is_said_to_be_one(source, refused, tmp_path):
    from support.hub import save_adapter

    for path in list(source.iterdir()):
        path.unlink()
    save_adapter(source, tmp_path / "base")
    assert "adapter of a plain reward model already" in refused()


def test_a_value_head_beside_a_score_head(source, refused):
    build_student().save_pretrained(source)
    assert "several formats: value_head, plain" in refused()


def test_grm_with_several_layers(source, refused):
    (source / "value_head.safetensors").unlink()
    layers = {"0_dot_weight": (16, 32), "0_dot_bias": (16,), "2_dot_weight": (1, 16), "2_dot_bias": (1,)}
    named = {f"v_head_dot_summary_dot_{name}": torch.ones(shape) for name, shape in layers.items()}
    add_weights(source, removed="lm_head", **named)
    edit_json(source / "config.json", architectures=["GRewardModel"], vhead_layer_type="mlp")
    assert "2 linear layers with ReLU" in refused()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": 0.5, "std": 0.0}, "std 0.0"),
        ({"mean": 0.5}, "std None"),
        ({"mean": [0.5], "std": 1.0}, "mean [0.5]"),
        ({"mean": float("nan"), "std": 1.0}, "mean nan"),
    ],
)
def test_openrlhf_with_a_broken_normalization(source, refused, changes, words):
    (source / "value_head.safetensors").unlink()
    add_weights(source, value_head_dot_weight=random_head()[0])
    edit_json(source / "config.json", value_head_prefix="value_head", normalize_reward=True, **changes)
    assert words in refused()


def test_a_critic_is_no_reward_model(source, refused):
    (source / "value_head.safetensors").unlink()
    add_weights(source, score_dot_weight=random_head()[0])
    edit_json(source / "config.json", value_head_prefix="score", architectures=["CriticModel"])
    assert "CriticModel" in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "it is undecided which of them is the reward"),
        (("--weights", "helpfull=1"), "Did you mean 'helpful'?"),
        (("--weights", "helpful=many"), "helpful='many'"),
        (("--weights", "helpful=nan"), "NAME=NUMBER"),
        (("--weights", "helpful=1", "helpful=2"), "'helpful' twice"),
        (("--weights", "helpful=1", "0=2"), "the output 0 (helpful) twice"),
        (("--weights", "helpful=0"), "all zero"),
        (("--weights", "3=1"), "names '3'"),
        (("--weights", "nowhere.json"), "`weights` is 'nowhere.json'"),
        (("--positive_label", "helpful"), "which is for two outputs"),
        (("--weights", "0=1", "--drop_bias", "true"), "`drop_bias` is true"),
    ],
)
def test_weights_of_several_outputs(source, refused, options, words):
    (source / "value_head.safetensors").unlink()
    save_sequence_classifier(source, 3, ["helpful", "correct", "verbose"])
    assert words in refused(*options)


def test_rows_of_the_head_count_where_the_config_says_nothing(source, refused):
    (source / "value_head.safetensors").unlink()
    build_student().save_pretrained(source)
    edit_json(source / "config.json", id2label=None, label2id=None, num_labels=None)
    assert "plain reward model" in refused()


@pytest.mark.parametrize("content", ["{", "[1]", '{"helpful": true}', '{"helpful": "x"}', '{"helpful": null}'])
def test_files_of_weights(source, refused, tmp_path, content):
    (source / "value_head.safetensors").unlink()
    save_sequence_classifier(source, 3, ["helpful", "correct", "verbose"])
    (tmp_path / "weights.json").write_text(content)
    assert "`weights`" in refused("--weights", str(tmp_path / "weights.json"))


def test_two_outputs_without_a_word_which_is_better(source, refused):
    (source / "value_head.safetensors").unlink()
    save_sequence_classifier(source, 2, ["bad", "good"])
    error = refused()
    assert "0: bad, 1: good" in error and "--positive_label good" in error and "--weights good=1" in error
    assert "Did you mean 'good'?" in refused("--positive_label", "goods")


def test_a_model_that_has_no_sequence_classifier(tmp_path, capsys):
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=900, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    tokenizer_of("bytes").save_pretrained(tmp_path / "source")
    save_value_head(tmp_path / "source", random_head()[0], torch.zeros(1))
    assert main(["convert", "--model", str(tmp_path / "source"), "--output", str(tmp_path / "converted")]) == 2
    assert "no *ForSequenceClassification" in capsys.readouterr().err


def test_other_rewards_are_not_kept(source, tmp_path, monkeypatch):
    """A fault planted between reading and writing is found by the comparison."""
    checkpoint = open_checkpoint(str(source))
    plan = conversion.plan_conversion(checkpoint, None, Choices())
    assemble = conversion.assemble

    def faulty(*arguments):
        model = assemble(*arguments)
        with torch.no_grad():
            model.score.weight[0, 0] += 0.01
        return model

    monkeypatch.setattr(conversion, "assemble", faulty)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(conversion.ParityError, match=r"Nothing was kept"):
        conversion.convert(plan, tmp_path / "converted")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing(source, tmp_path, monkeypatch):
    plan = conversion.plan_conversion(open_checkpoint(str(source)), None, Choices())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        conversion.convert(plan, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
