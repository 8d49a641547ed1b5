"""A mistyped name of a model, teacher, data set or file: every command and loader says that it is not there."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from hf_interdistill import (
    InteractionDistillationConfig,
    InteractionDistillationTrainer,
    InteractionTeacher,
    RainConfig,
    RewardScorer,
    diagnose,
)
from hf_interdistill.cli import main
from hf_interdistill.rain.scorers.embedder import TextEncoder

WRONG = "runs/data/tset.jsonl"
ON_CPU = ["--use_cpu", "--bf16", "false"]
SAID = ("is not there", "is not a folder here", "there is no such folder")
KINDS = ("runs/studnet", "./studnet", "ABSOLUTE", "runs/deep/studnet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from support.pipeline import Pipeline

    pipeline = Pipeline(tmp_path_factory.mktemp("names") / "runs")
    pipeline.add_language_model(2)
    return pipeline


@pytest.fixture
def folder(made, monkeypatch):
    """The folder above `runs`, as the current one."""
    monkeypatch.chdir(made.folder.parent)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return made.folder.parent


def commands(model: str, output: str) -> dict[str, list[str]]:
    """The name in every place where a command takes a model, teacher or encoder."""
    data, prompts = "runs/data/test.jsonl", "runs/prompts.jsonl"
    training = ["--dataset_name", "runs/data", "--output_dir", output, *ON_CPU]
    rain = ["--prompts", prompts, "--output", f"{output}/a.jsonl", "--max_new_tokens", "2"]
    sampling = ["--prompts", prompts, "--output", f"{output}/b.jsonl", "--n", "2"]
    tokens = ["--generation", '{"max_new_tokens": 2}']
    return {
        "score": ["--model", model, "--input", data, "--output", f"{output}/s.jsonl"],
        "eval": ["--model", model, "--benchmark", "llmbar", "--data", data, "--output", output],
        "diagnose": ["--model", model, "--data", data, "--output", output],
        "diagnose with gold": [
            *("--model", "runs/student", "--data", data, "--output", output, "--limit", "1", "--resamples", "5"),
            *("--candidates", "runs/candidates.jsonl", "--gold", model),
        ],
        "reward": ["--model_name_or_path", model, "--alignment_weight", "0", *training],
        "reward with teacher": ["--model_name_or_path", "runs/student", "--teacher_model", model, *training],
        "teacher": ["--teacher_model", model, *training],
        "rain": ["--model", model, *rain],
        "rain with reward": ["--model", "runs/lm", "--scorer", "reward", "--reward_model", model, *rain],
        "rain with encoder": ["--model", "runs/lm", "--similarity_model", model, *rain],
        "best-of-n": ["--model", model, "--reward_model", "runs/student", *tokens, *sampling],
        "best-of-n with reward": ["--model", "runs/lm", "--reward_model", model, *tokens, *sampling],
        "push": ["--model", model, "--repo_id", "user/rm", "--dry_run", "true"],
    }


@pytest.mark.parametrize("command", commands("", ""))
def test_commands_say_that_the_model_is_not_there(command, folder, tmp_path, capsys):
    (folder / "runs" / "candidates.jsonl").write_text(
        json.dumps({"prompt": "How?", "completions": [" a", " b"]}) + "\n"
    )
    for number, name in enumerate(KINDS[:1] if " " in command else KINDS):
        name = name.replace("ABSOLUTE", str(folder / "runs" / "studnet"))
        arguments = commands(name, str(tmp_path / str(number)))[command]
        assert main([command.split()[0], *arguments]) == 2
        error = capsys.readouterr().err.rpartition("error: ")[2]
        assert "studnet" in error and any(each in error for each in SAID), error
        if name.startswith("runs/studnet") or os.path.isabs(name):
            assert "Beside it there is" in error and "runs/student" in error, error


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("score", ["--model", "runs/student", "--input", WRONG]),
        (
            "eval",
            ["--model", "runs/student", "--benchmark", "llmbar", "--data", WRONG, "--output", "o"],
        ),
        ("diagnose", ["--model", "runs/student", "--data", WRONG, "--output", "o"]),
        (
            "teacher",
            ["--teacher_model", "runs/encoder", "--dataset_name", WRONG, "--output_dir", "o", *ON_CPU],
        ),
        ("reward", ["--model_name_or_path", "m", "--dataset_name", "runs/dta", "--output_dir", "o", *ON_CPU]),
        ("rain", ["--model", "runs/lm", "--prompts", WRONG, "--output", "o.jsonl"]),
        ("rain", ["--config", WRONG]),
        ("best-of-n", ["--prompts", WRONG, "--output", "o", "--reward_model", "runs/student"]),
        (
            "diagnose",
            [
                *("--model", "runs/student", "--data", "runs/data/test.jsonl", "--output", "o"),
                *("--candidates", WRONG),
            ],
        ),
    ],
)
def test_commands_say_that_data_and_files_are_not_there(command, arguments, folder, capsys):
    assert main([command, *arguments]) == 2
    error = capsys.readouterr().err
    assert "Beside it there is runs/data" in error, error


def test_loaders_of_the_package(folder, tmp_path, dataset):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def trainer(model, teacher=None, **options):
        args = InteractionDistillationConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)
        return InteractionDistillationTrainer(model, args, train_dataset=dataset, teacher=teacher)

    def decode(name):
        model, tokenizer = AutoModelForCausalLM.from_pretrained("runs/lm"), AutoTokenizer.from_pretrained("runs/lm")
        config = RainConfig(similarity_model=name)
        ids = torch.tensor([[5, 6]])
        model.generate(
            ids, strategy="rain", tokenizer=tokenizer, rain_config=config, rain_scorer=len, max_new_tokens=2
        )

    loaders = {
        "scorer": RewardScorer.from_pretrained,
        "teacher": InteractionTeacher.from_pretrained,
        "trainer": lambda name: trainer(name, alignment_weight=0),
        "trainer's teacher": lambda name: trainer("runs/student", teacher=name),
        "diagnose": lambda name: diagnose(name, "runs/data/test.jsonl"),
        "encoder": TextEncoder.from_pretrained,
        "generate": decode,
    }
    for label, load in loaders.items():
        with pytest.raises((OSError, ValueError), match=r"runs/studnet' is not a folder here .* runs/student"):
            load("runs/studnet")
            pytest.fail(label)


def test_a_folder_without_a_tokenizer_and_a_lost_base_model(folder, tmp_path, capsys):
    shutil.copytree("runs/student", tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    arguments = ["--input", "runs/data/test.jsonl", "--output", str(tmp_path / "o.jsonl")]
    assert main(["score", "--model", str(tmp_path / "bare"), *arguments]) == 2
    assert f"{tmp_path}/bare has no tokenizer (tokenizer.json" in capsys.readouterr().err
    assert main(["score", "--model", "runs", *arguments]) == 2
    assert "The reward model runs is a folder without a model" in (error := capsys.readouterr().err)
    assert "These folders in it have one: encoder, lm, student." in error
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained("runs/student")
    config = peft.LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], target_modules=["q_proj"])
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "runs/studnet"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    assert main(["score", "--model", str(tmp_path / "adapter"), *arguments]) == 2
    error = capsys.readouterr().err
    assert f"The base model (of the adapter {tmp_path}/adapter) 'runs/studnet' is not a folder here" in error
    assert "Beside it there is runs/student" in error
