"""The demo's steps: data, student and picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_interdistill import InteractionTeacher, RewardScorer
from hf_interdistill.comparison.result import Comparison
from hf_interdistill.interaction.data.pairs import read_preference
from hf_interdistill.interaction.inspection import pair_maps, plot_maps
from hf_interdistill.interaction.teacher.training import split_by_prompt
from hf_interdistill.utils.data import load_preferences
from hf_interdistill.utils.pictures import save_small_png

NUM_LAYERS = 6  # of the 30 of SmolLM2; enough for a reward model that learns in a minute


def trains_in_bf16() -> bool:
    """Whether models are to be trained and to answer in bfloat16 on the CPU: where it has instructions for that."""
    if torch.accelerator.is_available():
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that is supported
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def make_student(folder: Path, language_model: str) -> None:
    """The first layers of the language model (21M parameters and the embeddings' 28M) with a new score head."""
    set_seed(42)
    model = AutoModelForSequenceClassification.from_pretrained(
        language_model, num_hidden_layers=NUM_LAYERS, num_labels=1
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(language_model).save_pretrained(folder)


def prepare_data(source: str, runs: Path) -> tuple[str, list[dict]]:
    """Folder with a train and a test split, and the test rows; a source without a test split is split by prompt."""
    splits = load_preferences(source)
    if "test" in splits:
        return source, splits["test"].to_list()
    rows = splits["train"].to_list()
    training, held_out = split_by_prompt([read_preference(row) for row in rows], 0.2, seed=42)
    folder = runs / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name, indices in (("train", training), ("test", held_out)):
        lines = "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in indices)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return str(folder), [rows[i] for i in held_out]


def results_of(comparison: Comparison) -> dict:
    """The figures of teacher and models on the held-out rows."""
    (teacher,) = comparison.teachers
    results = {
        name: {
            "accuracy": each.accuracy.value,
            "ci95": [each.accuracy.low, each.accuracy.high],
            "log_loss": each.log_loss,
            "pairs": comparison.pairs,
        }
        for name, each in {"teacher": teacher, **{model.name: model for model in comparison.models}}.items()
    }
    difference = comparison.model("interaction").difference
    ci95 = [difference.low, difference.high]
    return {**results, "interaction_minus_baseline": {"accuracy": difference.value, "ci95": ci95}}


def link_models(comparison: Path, runs: Path) -> None:
    """Short names for the models of a comparison: `runs/baseline` and `runs/interaction`."""
    for name in ("baseline", "interaction"):
        (model,) = (comparison / "runs" / name).iterdir()
        link = runs / name
        if link.is_dir() and not link.is_symlink():  # an earlier version of the demo trained there
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(model.resolve(), target_is_directory=True)


def draw_maps(rows: list[dict], teacher: InteractionTeacher, students: dict[str, RewardScorer], path: Path) -> str:
    """Draw the maps of the first held-out pair that is short enough to read, and say what the students explain."""
    preferences = [read_preference(row) for row in rows]
    lengths = [
        sum(len(content.split()) for text in item.flatten() for content in text.contents) for item in preferences
    ]
    row = next(
        (row for row, length in zip(rows, lengths, strict=True) if 45 <= length <= 65), rows[np.argmin(lengths)]
    )
    maps = pair_maps(row, teacher, students)
    save_small_png(plot_maps(maps), path, dpi=80, colors=64)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in maps.explained.items())
    return f"share of the teacher's map that is explained (1 all, 0 no more than equal attention): {shares}."
