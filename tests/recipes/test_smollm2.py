"""The commands of `recipes/smollm2-135m/README.md`, word for word, with the real chat model and a few steps each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.datasets import ROOT

from hf_interdistill import RewardScorer, embedded

FOLDER = ROOT / "recipes" / "smollm2-135m"
FEW_STEPS = {
    "teacher": "--warm_start_epochs 0 --max_steps 2 --use_cpu true --bf16 false",
    "reward": "--max_steps 2 --eval_strategy no --save_strategy no --logging_steps 1 --use_cpu true",
    "rain": "--prompts {prompts} --max_new_tokens 4 --candidates 2",
    "best-of-n": "--prompts {prompts} --n 2",
    "grpo": "--max_steps 1 --max_completion_length 4 --use_cpu true",
}


def commands() -> list[str]:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    block = next(each for each in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) if "pip install" in each)
    return [line for line in block.splitlines() if line.startswith(("interdistill", "python recipes"))]


def kind_of(command: str) -> str:
    words = command.split()
    return words[1] if words[0] == "interdistill" else words[2]


def test_the_readme_has_a_command_for_each_recipe():
    names = {str(path.relative_to(ROOT)) for path in FOLDER.rglob("*.yaml")}
    assert {word for command in commands() for word in command.split() if word.endswith(".yaml")} == names


@pytest.mark.slow
def test_every_recipe_runs(tmp_path):
    try:
        models = {"SMOLLM2": embedded.language_model(), "MINILM": embedded.encoder("minilm")}
    except ImportError as error:
        pytest.skip(str(error))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text((FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    folder = str(Path(sys.executable).parent)
    environment = {**os.environ, **models, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for command in commands():
        if "$MPNET" in command:  # five more wheels; the teacher is as MiniLM's
            continue
        words = f"{command} {FEW_STEPS[kind_of(command)].format(prompts=prompts)}"
        ended = subprocess.run(["bash", "-c", words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{words}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    runs = tmp_path / "runs" / "smollm2-135m"
    for name in ("baseline", "interaction", "baseline_lora", "interaction_lora"):
        state = json.loads((runs / name / "trainer_state.json").read_text(encoding="utf-8"))
        logs = [log for log in state["log_history"] if "loss" in log]
        assert len(logs) == 2 and all(("interaction/loss" in log) == ("interaction" in name) for log in logs)
        first, other = RewardScorer.from_pretrained(str(runs / name))(["Hi?", "Hi?"], ["Hello.", "Go away."])
        assert first != other
    for judge in ("self", "reward", "beam"):
        (answer,) = map(json.loads, (runs / "rain" / f"{judge}.jsonl").read_text(encoding="utf-8").splitlines())
        assert 1 <= len(answer["tokens"]) <= 4 and answer["stats"]["iterations"] >= 1
    candidates = [json.loads(line) for line in (runs / "best_of_n" / "candidates.jsonl").open(encoding="utf-8")]
    (best,) = map(json.loads, (runs / "best_of_n" / "best.jsonl").open(encoding="utf-8"))
    assert max(candidates[0]["rewards"]) == pytest.approx(best["reward"])
    assert (runs / "grpo" / "model.safetensors").exists()
