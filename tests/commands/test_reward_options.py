"""`interdistill reward`: adapters from end to end, and options that would change nothing."""

from __future__ import annotations

import json

import pytest
from support.hub import language_model
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main


@pytest.fixture
def command(tmp_path, rows):
    """A language model without a head, preferences, and the command that trains on them."""
    language_model(tmp_path / "base")
    tokenizer_of("bytes").save_pretrained(tmp_path / "base")
    lines = "".join(json.dumps(row) + "\n" for row in rows[:12])
    (tmp_path / "train.jsonl").write_text(lines)

    def run(*more: str) -> int:
        keys = {
            **{"dataset_name": tmp_path / "train.jsonl", "model_name_or_path": tmp_path / "base"},
            **{"output_dir": tmp_path / "rm", "alignment_weight": 0, "max_steps": 2, "learning_rate": 1e-2},
            **{"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True},
            **{"per_device_train_batch_size": 4},
        }
        return main(["reward", *(part for key, value in keys.items() for part in (f"--{key}", str(value))), *more])

    return run


def test_an_adapter_is_trained_saved_scored_and_pushed(command, tmp_path, capsys):
    assert command("--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj") == 0
    settings = json.loads((tmp_path / "rm" / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS" and settings["r"] == 4
    scored = str(tmp_path / "scored.jsonl")
    assert (
        main(["score", "--model", str(tmp_path / "rm"), "--input", str(tmp_path / "train.jsonl"), "--output", scored])
        == 0
    )
    row = json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])
    scorer = RewardScorer.from_pretrained(str(tmp_path / "rm"))
    assert row["reward_chosen"] == pytest.approx(scorer([row["prompt"]], [row["chosen"]])[0], abs=1e-5)
    push = ["push", "--model", str(tmp_path / "rm"), "--repo_id", "user/rm", "--dry_run", "true"]
    assert main([*push, "--base_model", "user/base"]) == 0
    assert "adapter_model.safetensors" in capsys.readouterr().out
    assert main([*push, "--merge", "true"]) == 0
    assert "model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora_r", "8"], "`lora_r` is 8, but it changes nothing without `use_peft: true`"),
        (["--use_dora", "true"], "`use_dora` is True, but it changes nothing without `use_peft: true`"),
        (["--bnb_4bit_quant_type", "fp4"], "`bnb_4bit_quant_type` is 'fp4', but it changes nothing without"),
        (["--batch_eval_metrics", "true"], "`batch_eval_metrics` is true, but"),
        (["--use_peft", "true", "--lora_task_type", "TOKEN_CLS"], "has `task_type='TOKEN_CLS'`"),
        (["--model_init_kwargs", '{"num_labels": 2}'], "`num_labels` in `model_init_kwargs` is 2"),
        (["--label_smoothing_factor", "0.7"], "`label_smoothing_factor` is 0.7"),
        (["--dataset_config", "harmless"], "`dataset_config` is 'harmless', but"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_options_that_would_change_nothing_or_the_wrong_thing(options, message, command, capsys):
    assert command(*options) == 2
    assert message in capsys.readouterr().err
