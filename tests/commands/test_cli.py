"""The command line: parsing, errors, and each command for real on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.datasets import ROOT
from support.faults import at_step, killed
from support.models import STUDENT_FAMILIES, build_encoder, build_student, needs_liftable_masks
from support.tokenizers import tokenizer_of

from hf_interdistill.cli import main


@pytest.fixture
def folder(tmp_path, rows):
    """Data, a student and an encoder in a folder."""
    (tmp_path / "data").mkdir()
    for name, part in (("train", rows[:24]), ("test", rows[24:32])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / "data" / f"{name}.jsonl").write_text(lines)
    build_student().save_pretrained(tmp_path / "student")
    tokenizer_of("bytes").save_pretrained(tmp_path / "student")
    model, tokenizer = build_encoder()
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path


QUICK = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}


def write(path, **keys) -> str:
    path.write_text(yaml.safe_dump(keys))
    return str(path)


def recipes(folder):
    data = str(folder / "data")
    teacher = write(
        folder / "teacher.yaml",
        dataset_name=data,
        teacher_model=str(folder / "encoder"),
        teacher_max_length=256,
        warm_start_epochs=1,
        num_train_epochs=1,
        output_dir=str(folder / "teacher"),
        **QUICK,
    )
    reward = write(
        folder / "reward.yaml",
        dataset_name=data,
        model_name_or_path=str(folder / "student"),
        bf16=False,
        teacher_model=str(folder / "teacher"),
        output_dir=str(folder / "rm"),
        max_steps=4,
        learning_rate=1.0e-3,
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=2,
        **QUICK,
    )
    return teacher, reward


def test_teacher_reward_and_score(folder, capsys):
    teacher, reward = recipes(folder)
    assert main(["teacher", "--config", teacher]) == 0
    assert (folder / "teacher" / "interaction_teacher.json").exists()
    assert (
        main(
            [
                "reward",
                "--config",
                reward,
                "--alignment_weight",
                "0.5",
                "--student_layers",
                "0",
                "-1",
                "--teacher_layers",
                "-1",
                "-1",
            ]
        )
        == 0
    )
    history = json.loads((folder / "rm" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["step"] == 0 and "interaction/explained" in history[0]
    assert history[1]["interaction/weight"] == 0.5
    assert "eval_accuracy" in (folder / "rm" / "README.md").read_text()
    source = str(folder / "data" / "test.jsonl")
    assert main(["score", "--model", str(folder / "rm"), "--input", source, "--output", str(folder / "o.jsonl")]) == 0
    scored = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert len(scored) == 8 and all({"reward_chosen", "reward_rejected", "prompt"} <= set(row) for row in scored)
    assert "accuracy" in capsys.readouterr().out


@needs_liftable_masks
def test_the_teacher_may_be_a_language_model(folder):
    """Its first layers, by `model_init_kwargs`; then a reward model learns from it with the same tokenizer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    AutoModelForCausalLM.from_config(LlamaConfig(**STUDENT_FAMILIES["llama"])).save_pretrained(folder / "lm")
    tokenizer_of("bytes").save_pretrained(folder / "lm")
    teacher, reward = recipes(folder)
    given = ["--teacher_model", str(folder / "lm"), "--model_init_kwargs", '{"num_hidden_layers": 2}']
    assert main(["teacher", "--config", teacher, *given]) == 0
    saved = json.loads((folder / "teacher" / "config.json").read_text())
    assert saved["is_causal"] is False and saved["num_hidden_layers"] == 2 and saved["model_type"] == "llama"
    assert main(["reward", "--config", reward, "--alignment_weight", "0.5", "--max_steps", "2"]) == 0
    history = json.loads((folder / "rm" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert next(row["interaction/loss"] for row in history if "interaction/loss" in row) > 0
    assert "2404.05961" in (folder / "rm" / "README.md").read_text()  # whom to cite for a decoder that reads both ways


def test_rain(folder, capsys):
    from transformers import AutoModelForCausalLM, LlamaConfig

    AutoModelForCausalLM.from_config(LlamaConfig(**STUDENT_FAMILIES["llama"])).save_pretrained(folder / "lm")
    tokenizer_of("bytes").save_pretrained(folder / "lm")
    (folder / "prompts.jsonl").write_text('{"prompt": "How do I"}\n{"prompt": "Where is"}\n')
    recipe = write(
        folder / "rain.yaml",
        model=str(folder / "lm"),
        prompts=str(folder / "prompts.jsonl"),
        output=str(folder / "answers.jsonl"),
        scorer="reward",
        reward_model=str(folder / "student"),
        rain={"iterations": 3, "candidates": 3},
        generation={"max_new_tokens": 4},
    )
    assert main(["rain", "--config", recipe]) == 0
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and all(0 < len(answer["tokens"]) <= 4 for answer in answers)
    assert main(["rain", "--config", recipe, "--rain", '{"iteration": 3}']) == 2
    assert "nearest is `iterations`" in capsys.readouterr().err
    assert main(["rain", "--config", recipe, "--rain", "{"]) == 2
    assert "must be JSON" in capsys.readouterr().err


def test_score_resumes_where_it_stopped_and_mixes_nothing(folder, capsys):
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": "q ", "completion": f"answer {i}"}) + "\n" for i in range(9)))
    command = ["score", "--model", str(folder / "student"), "--input", str(source)]
    assert main(command) == 0
    target = folder / "in.scored.jsonl"
    whole = target.read_text()
    lines = whole.splitlines(keepends=True)
    target.write_text("".join(lines[:4]) + lines[4][:9])  # killed in the middle of a line
    assert main(command) == 0
    again = [json.loads(line) for line in target.read_text().splitlines()]
    for one, other in zip(again, map(json.loads, lines), strict=True):
        assert one["completion"] == other["completion"] and one["reward"] == pytest.approx(other["reward"], abs=1e-5)
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert "made with other settings (dtype differ). Delete it, or write to another" in capsys.readouterr().err
    source.write_text(source.read_text().replace("answer 2", "another"))
    assert main(command) == 2
    assert "in line 3, but its `completion` has changed since: it was 'answer 2', and is" in capsys.readouterr().err
    source.write_text('{"prompt": "x"}\n')
    assert main([*command, "--output", str(folder / "new.jsonl")]) == 2
    assert "line 1 has the keys ['prompt']" in capsys.readouterr().err


def test_settings_of_score_that_could_not_be_written_leave_nothing_behind(folder, monkeypatch, capsys):
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": "q ", "completion": f"answer {i}"}) + "\n" for i in range(3)))
    command = ["score", "--model", str(folder / "student"), "--input", str(source)]
    original = Path.write_text

    def cut_short(path, text, **options):
        original(path, text[: len(text) // 2], **options)
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_short)
        assert main(command) == 2
    assert "no room" in capsys.readouterr().err and not list(folder.glob("in.scored.jsonl*"))
    assert main(command) == 0
    assert len((folder / "in.scored.jsonl").read_text().splitlines()) == 3


def test_killed_training_resumes_to_the_same_weights(folder, no_pictures):
    _, reward = recipes(folder)
    model, tokenizer = build_encoder()
    from hf_interdistill import InteractionTeacher

    InteractionTeacher(model, tokenizer, max_length=256).save_pretrained(str(folder / "teacher"))
    killed(["reward", "--config", reward], lambda: at_step(3))
    assert (folder / "rm" / "checkpoint-2").exists() and not (folder / "rm" / "model.safetensors").exists()
    assert main(["reward", "--config", reward, "--resume_from_checkpoint", "true"]) == 0
    assert main(["reward", "--config", reward, "--output_dir", str(folder / "whole")]) == 0
    from safetensors.torch import load_file

    resumed, whole = (load_file(folder / name / "model.safetensors") for name in ("rm", "whole"))
    for name, value in whole.items():
        assert (value - resumed[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward", "--alignment_wieght", "1"], "Did you mean `alignment_weight`?"),
        (["teacher", "--teacher-modle=x"], "Did you mean `teacher_model`?"),
        (["teacher", "--dataset_name", "./nowhere", "--teacher_model", "x", "--output_dir", "/tmp"], "is not there"),
        (["teacher", "--dataset_name", "x"], "`teacher_model` is not set"),
        (["score", "--model", "./none", "--input", "./none.jsonl"], "none.jsonl"),
        (["score", "--model", "m"], "The following arguments are required: --input. (`--help` lists all keys.)"),
        (["score", "--model", "m", "--input", "i", "--batch_size", "many"], "invalid int value: 'many'. (`--help`"),
    ],
)
def test_mistakes_are_explained(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--dtype", "flaot32"], "`dtype` is 'flaot32', but must be `auto`, float32, bfloat16, float16 or another"),
        (["--dtype", "nn"], "`dtype` is 'nn', but must be"),  # a name of torch, but no type
        (["--device", "gpu"], "`device` is 'gpu', but torch cannot use such a device here"),
        (["--device", "meta:x"], "`device` is 'meta:x', but torch"),
        (["--batch_size", "0"], "`batch_size` is 0, but must be "),
    ],
)
def test_bad_devices_types_and_sizes_are_explained(folder, option, message, capsys):
    commands = {
        "score": ["--input", str(folder / "data" / "test.jsonl")],
        "diagnose": ["--data", str(folder / "data" / "test.jsonl"), "--output", str(folder / "out")],
        "eval": ["--benchmark", "llmbar", "--data", str(folder / "data"), "--output", str(folder / "out")],
    }
    for command, arguments in commands.items():
        assert main([command, "--model", str(folder / "student"), *arguments, *option]) == 2, command
        assert message in capsys.readouterr().err, command


@pytest.mark.parametrize("key", ["--dtype", "--reward_dtype"])
def test_bad_types_of_jobs_are_explained(key, capsys):
    arguments = ["--prompts", "p", "--output", "o", "--model", "m"]
    commands = {"best-of-n": ["--reward_model", "r"], **({"rain": []} if key == "--dtype" else {})}
    for command, more in commands.items():
        assert main([command, *arguments, *more, key, "float33"]) == 2
        assert f"`{key[2:]}` is 'float33', but must be `auto`" in capsys.readouterr().err


def test_unknown_keys_of_a_file_are_errors(folder, capsys):
    bad = write(folder / "bad.yaml", dataset_name="x", alignement_loss="kl")
    assert main(["reward", "--config", bad]) == 2
    error = capsys.readouterr().err
    assert "Unknown key `alignement_loss` in" in error and "`alignment_loss`" in error
    (folder / "list.yaml").write_text("- a\n")
    assert main(["reward", "--config", str(folder / "list.yaml")]) == 2
    assert "must hold a YAML mapping" in capsys.readouterr().err
    (folder / "broken.yaml").write_text("a: [")
    assert main(["reward", "--config", str(folder / "broken.yaml")]) == 2
    assert "is not valid YAML" in capsys.readouterr().err


def test_missing_split_is_named(folder, capsys):
    teacher, _ = recipes(folder)
    assert main(["teacher", "--config", teacher, "--dataset_train_split", "trian"]) == 2
    assert "has no split `trian`; it has" in capsys.readouterr().err


def test_help_and_version_cost_no_torch():
    code = "import sys; from hf_interdistill.cli import main; main(['--help'])"
    script = f"try:\n    {code}\nexcept SystemExit:\n    print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.stdout.strip().endswith("False") and "teacher" in run.stdout


def test_lora_from_the_command_line(folder):
    pytest.importorskip("peft")
    _, reward = recipes(folder)
    arguments = [
        "--alignment_weight",
        "0",
        "--use_peft",
        "--lora_task_type",
        "SEQ_CLS",
        "--lora_modules_to_save",
        "score",
    ]
    assert main(["reward", "--config", reward, *arguments]) == 0
    assert (folder / "rm" / "adapter_model.safetensors").exists()
    source = str(folder / "data" / "test.jsonl")
    assert main(["score", "--model", str(folder / "rm"), "--input", source, "--output", str(folder / "o.jsonl")]) == 0
