"""Every recipe is parsed by the real parser, every command in the READMEs by the command it calls, and pairs of
recipes differ in the method's keys alone."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from support.datasets import ROOT
from support.models import OWN_ATTENTION, build_student

from hf_interdistill.cli import COMMANDS, LAUNCHED, parse, split_command
from hf_interdistill.commands import rain, reward, teacher
from hf_interdistill.commands.rain_options import with_options
from hf_interdistill.utils.launching import split_launch_options

RECIPES = ROOT / "recipes"
REWARD = sorted(RECIPES.glob("*/reward/*.yaml"))
TEACHER = sorted(RECIPES.glob("*/teacher*.yaml"))
RAIN = sorted(RECIPES.glob("*/rain/*.yaml"))
ACCELERATE = sorted((RECIPES / "accelerate_configs").glob("*.yaml"))
READMES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(path for path in sorted(RECIPES.glob("*/README.md")) if path.parent.name != "studies"),
]
METHOD_KEYS = {"teacher_model", "output_dir"} | {
    f"alignment_{name}" for name in ("weight", "loss", "scope", "schedule", "control")
}
METHOD_KEYS |= {"teacher_max_length", "student_layers", "teacher_layers"}
ON_A_CPU = ("demo", "smollm2-135m", "labels")  # recipes that need no GPU
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


def name_of(path) -> str:
    return "/".join(path.relative_to(RECIPES).parts)


def test_there_are_recipes():
    assert len(REWARD) >= 16 and len(TEACHER) >= 7 and len(RAIN) >= 6
    assert [path.stem for path in ACCELERATE] == ["ddp", "fsdp2", "single_gpu", "zero3"]
    for model in ("smollm2-135m", "qwen3-0.6b", "qwen3-8b", "llama-3.1-8b"):
        assert (RECIPES / model / "README.md").exists()


@pytest.mark.parametrize("path", REWARD, ids=name_of)
def test_reward_recipe_parses(path, tmp_path):
    data, args, model, _ = parse(reward.ARGUMENTS, ["--config", str(path), *ON_CPU, "--output_dir", str(tmp_path)])
    written = yaml.safe_load(path.read_text())
    for key, value in written.items():
        if key in ("output_dir", "bf16"):
            continue
        owner = next(part for part in (data, args, model) if hasattr(part, key))
        read = getattr(owner, key)
        read = getattr(read, "value", read)
        assert read == ([] if value == "none" else value), key


@pytest.mark.parametrize("path", [p for p in REWARD if p.parts[-3] not in ON_A_CPU], ids=name_of)
def test_reward_recipe_fits_its_machine(path, tmp_path):
    """bf16 computation on float32 weights, non-reentrant checkpoints, learning rates of the usual size, a trained
    score head, and an adapter that reaches the queries and keys that are aligned."""
    from trl import get_peft_config, get_quantization_config

    from hf_interdistill.interaction.attention.recorder import resolve_layers
    from hf_interdistill.interaction.validation import require_trainable_below

    _, args, model, _ = parse(reward.ARGUMENTS, ["--config", str(path), *ON_CPU, "--output_dir", str(tmp_path)])
    peft_config, quantization = get_peft_config(model), get_quantization_config(model)
    assert yaml.safe_load(path.read_text())["bf16"] is True
    assert args.gradient_checkpointing and not (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    assert (quantization is not None) == ("qlora" in path.name)
    assert (peft_config is not None) == ("lora" in path.name)
    if quantization is None:
        assert model.dtype == "float32"
    else:
        assert quantization.load_in_4bit and model.dtype == "bfloat16"
    if "llama" in model.model_name_or_path:
        assert args.pad_token == "<|finetune_right_pad_id|>"
    if peft_config is None:
        assert 1e-6 <= args.learning_rate <= 1e-5
        return
    assert 5e-5 <= args.learning_rate <= 2e-4
    assert peft_config.task_type == "SEQ_CLS" and peft_config.modules_to_save == ["score"]
    from peft import get_peft_model

    student = get_peft_model(build_student("qwen3" if "Qwen3" in model.model_name_or_path else "llama"), peft_config)
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert any(".score." in name for name in trained)
    for projection in ("q_proj", "k_proj"):
        assert any(f"layers.2.self_attn.{projection}" in name for name in trained)
    require_trainable_below(student, resolve_layers(args.student_layers, 3, "student_layers"))


@pytest.mark.parametrize("path", TEACHER, ids=name_of)
def test_teacher_recipe_parses(path, tmp_path):
    data, args = parse(teacher.ARGUMENTS, ["--config", str(path), *ON_CPU, "--output_dir", str(tmp_path)])
    written = yaml.safe_load(path.read_text())
    assert data.dataset_name == written["dataset_name"] and args.learning_rate == written["learning_rate"]
    assert args.teacher_max_length == written.get("teacher_max_length")
    assert args.model_init_kwargs == written.get("model_init_kwargs", {})


def published_encoder(name: str):
    """Config of an encoder as published (layers, reach), for what the recipes rely on."""
    from transformers import BertConfig, DebertaV2Config, LlamaConfig, ModernBertConfig, MPNetConfig

    return {
        "sentence-transformers/all-MiniLM-L6-v2": lambda: BertConfig(num_hidden_layers=6),
        "sentence-transformers/all-mpnet-base-v2": lambda: MPNetConfig(num_hidden_layers=12),
        "HuggingFaceTB/SmolLM2-135M-Instruct": lambda: LlamaConfig(num_hidden_layers=30, max_position_embeddings=8192),
        "answerdotai/ModernBERT-base": lambda: ModernBertConfig(num_hidden_layers=22),
        "answerdotai/ModernBERT-large": lambda: ModernBertConfig(num_hidden_layers=28),
        "microsoft/deberta-v3-base": lambda: DebertaV2Config(num_hidden_layers=12, relative_attention=True),
        "microsoft/deberta-v3-large": lambda: DebertaV2Config(num_hidden_layers=24, relative_attention=True),
    }[name]()


@pytest.mark.parametrize("path", [p for p in TEACHER if p.parent.name != "demo"], ids=name_of)
def test_teachers_fit_the_lengths_of_the_recipes(path):
    """The aligned layer (the last) attends to the whole pair; inputs are no longer than the encoder can read."""
    recipe = yaml.safe_load(path.read_text())
    config = published_encoder(recipe["teacher_model"])
    assert recipe["teacher_max_length"] <= config.max_position_embeddings
    assert recipe.get("model_init_kwargs", {}).get("num_hidden_layers", 1) <= config.num_hidden_layers
    if config.model_type == "bert":
        assert config.max_position_embeddings == 512
    elif config.model_type == "modernbert":
        assert config.layer_types[-1] == "full_attention"
    else:
        assert config.model_type in (*OWN_ATTENTION, "llama")


@pytest.mark.parametrize("path", [p for p in REWARD if "baseline" in p.name], ids=name_of)
def test_pairs_differ_in_the_method_alone(path):
    baseline = yaml.safe_load(path.read_text())
    interaction = yaml.safe_load((path.parent / path.name.replace("baseline", "interaction")).read_text())
    different = {key for key in baseline.keys() | interaction.keys() if baseline.get(key) != interaction.get(key)}
    assert {"alignment_weight", "teacher_model", "output_dir"} <= different <= METHOD_KEYS
    assert baseline["alignment_weight"] == 0 < interaction["alignment_weight"]


@pytest.mark.parametrize("path", [p for p in REWARD if "interaction" in p.name], ids=name_of)
def test_interaction_recipes_use_a_teacher_that_a_recipe_trains(path):
    assert path.with_name(path.name.replace("interaction", "baseline")).exists()
    recipe = yaml.safe_load(path.read_text())
    teachers = {known["output_dir"]: known for known in (yaml.safe_load(other.read_text()) for other in TEACHER)}
    assert teachers[recipe["teacher_model"]]["dataset_name"] == recipe["dataset_name"]


def test_no_two_recipes_write_to_one_folder():
    folders = [yaml.safe_load(path.read_text())["output_dir"] for path in [*REWARD, *TEACHER]]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", RAIN, ids=name_of)
def test_rain_recipe_parses(path):
    settings = parse(rain.ARGUMENTS, ["--config", str(path)])
    job = with_options(*settings)
    written = yaml.safe_load(path.read_text())
    assert {key: getattr(job, key) for key in written} == written
    assert job.rain_config().judge == "harmlessness"
    if job.scorer == "reward":
        assert job.reward_model in [yaml.safe_load(other.read_text())["output_dir"] for other in REWARD]


def test_a_recipe_uses_another_strategy():
    beam = with_options(*parse(rain.ARGUMENTS, ["--config", str(RECIPES / "smollm2-135m" / "rain" / "beam.yaml")]))
    config = beam.rain_config()
    assert (config.strategy, config.beams, config.candidates, config.edge_lengths) == ("beam", 2, 4, (8,))
    reward = with_options(*parse(rain.ARGUMENTS, ["--config", str(RECIPES / "smollm2-135m" / "rain" / "reward.yaml")]))
    for name in ("model", "prompts", "generation", "reward_model", "reward_scale", "seed"):
        assert getattr(beam, name) == getattr(reward, name)


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_configs_build_their_plugins(path, monkeypatch):
    """Read by accelerate's own loader; every nested key is an option of `accelerate launch`; the plugin is built."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

    config = load_config_from_file(str(path))
    kind = {"single_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[path.stem]
    assert config.distributed_type == DistributedType(kind) and config.mixed_precision == "bf16"
    assert config.num_processes == (1 if kind == "NO" else 8)
    options = {action.dest for action in launch_command_parser()._actions}
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert nested.keys() <= options
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_DEEPSPEED"))]:
        monkeypatch.delenv(name)
    if kind == "FSDP":
        for key, value in nested.items():
            monkeypatch.setenv(key.upper(), str(value).lower() if isinstance(value, bool) else str(value))
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
        assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
        assert "FULL" in str(plugin.state_dict_type)
    if kind == "DEEPSPEED":
        monkeypatch.setattr("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref", None)
        plugin = DeepSpeedPlugin(
            zero_stage=nested["zero_stage"],
            zero3_init_flag=nested["zero3_init_flag"],
            zero3_save_16bit_model=nested["zero3_save_16bit_model"],
            offload_optimizer_device=nested["offload_optimizer_device"],
            offload_param_device=nested["offload_param_device"],
        )
        zero = plugin.deepspeed_config["zero_optimization"]
        assert zero["stage"] == 3 and zero["stage3_gather_16bit_weights_on_model_save"]


def commands_of(readme) -> list[str]:
    """The shell commands of a README, one a line."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


README_COMMANDS = [
    pytest.param(command, id=f"{readme.parent.name}-{readme.stem}-{number}")
    for readme in READMES
    for number, command in enumerate(commands_of(readme))
    if command.startswith(("interdistill", "accelerate", "python recipes"))
]


@pytest.mark.parametrize("command", README_COMMANDS)
def test_readme_commands_are_real(command, tmp_path, monkeypatch):
    words = shlex.split(command)
    for word in words:
        if word.startswith("recipes/"):
            assert (ROOT / word).exists(), word
    if words[1].startswith("recipes/serving/"):
        monkeypatch.syspath_prepend(str(ROOT / "recipes" / "serving"))
        importlib.import_module(Path(words[1]).stem).argument_parser().parse_args(words[2:])
    if words[0] == "accelerate":
        words = _after_accelerate(words)
    if words[0] != "interdistill":
        return
    name, given = split_command(words[1:])
    arguments = importlib.import_module(f"hf_interdistill.{COMMANDS[name][0]}").ARGUMENTS
    given = [str(ROOT / word) if word.startswith("recipes/") else word for word in given]
    if name in ("teacher", "reward", "compare"):
        given += [*ON_CPU, "--output_dir", str(tmp_path)]
        given += [] if "--config" in given else ["--dataset_name", "any"]
    given = split_launch_options(given)[1] if name in LAUNCHED else given
    settings = parse(arguments, given)
    assert len(settings) == len(arguments)


def _after_accelerate(words: list[str]) -> list[str]:
    """`accelerate launch OPTIONS -m hf_interdistill.cli COMMAND ...` as `interdistill COMMAND ...`."""
    from accelerate.commands.launch import launch_command_parser

    assert words[1] == "launch"
    launched = launch_command_parser().parse_args(words[2:])
    assert launched.module and launched.training_script == "hf_interdistill.cli"
    assert launched.config_file.startswith("recipes/accelerate_configs/")
    return ["interdistill", *launched.training_script_args]


def test_readmes_name_every_recipe():
    """Nobody finds a recipe that no README names."""
    for path in [*REWARD, *TEACHER, *RAIN]:
        readme = RECIPES / path.relative_to(RECIPES).parts[0] / "README.md"
        assert path.name in readme.read_text(encoding="utf-8") or path.stem in readme.read_text(encoding="utf-8")


def test_demo_data_are_honest():
    """At least 300 pairs, no prompt twice, no stock opening, length no clue, no overlap of the splits."""
    splits = {
        name: [
            json.loads(line) for line in (RECIPES / "demo" / "preferences" / f"{name}.jsonl").open(encoding="utf-8")
        ]
        for name in ("train", "test")
    }
    assert len(splits["train"]) >= 300 and len(splits["test"]) >= 60
    rows = splits["train"] + splits["test"]
    prompts = [row["prompt"][-1]["content"] for row in rows]
    assert len(set(prompts)) == len(prompts)
    openings: dict[str, int] = {}
    for row in rows:
        for key in ("chosen", "rejected"):
            opening = " ".join(row[key][0]["content"].lower().split()[:3])
            openings[opening] = openings.get(opening, 0) + 1
    assert max(openings.values()) <= 3
    longer = [len(row["rejected"][0]["content"]) > len(row["chosen"][0]["content"]) for row in rows]
    assert 0.42 < sum(longer) / len(longer) < 0.58
