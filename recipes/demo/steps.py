"""The demo's steps: data, student, comparison and picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_interdistill import InteractionTeacher, RewardScorer
from hf_interdistill.interaction.data.pairs import read_preference
from hf_interdistill.interaction.inspection import pair_maps, plot_maps
from hf_interdistill.interaction.teacher.training import split_by_prompt
from hf_interdistill.utils.data import load_preferences
from hf_interdistill.utils.pictures import save_small_png

NUM_LAYERS = 6  # of the 30 of SmolLM2; enough for a reward model that learns in a minute


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


def margins_of(scorer: RewardScorer, rows: list[dict]) -> np.ndarray:
    preferences = [read_preference(row) for row in rows]
    prompts = [preference.prompt for preference in preferences]
    chosen = scorer(prompts, [preference.chosen for preference in preferences], is_progress_shown=True)
    rejected = scorer(prompts, [preference.rejected for preference in preferences], is_progress_shown=True)
    return np.array(chosen) - np.array(rejected)


def accuracy_with_interval(margins: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Accuracy, ties counted half, and the bounds of its 95 % bootstrap interval."""
    right = np.sign(margins) / 2 + 0.5
    draws = np.random.default_rng(seed).choice(right, (2000, len(right))).mean(1)
    return float(right.mean()), *(float(bound) for bound in np.quantile(draws, [0.025, 0.975]))


def compare(
    rows: list[dict], teacher: InteractionTeacher, scorers: dict[str, RewardScorer]
) -> tuple[dict, Table, str]:
    """Figures of each model on the held-out rows, as a table too, and what they say in one sentence."""
    margins = {"teacher": teacher.score_pairs(rows).mean(1).numpy()}
    margins |= {name: margins_of(scorer, rows) for name, scorer in scorers.items()}
    table = Table(title=f"Accuracy on {len(rows)} held-out pairs (chance 0.5)", title_justify="left")
    for column in ("model", "accuracy", "95 % interval", "log loss, nats", "mean margin", "ties"):
        table.add_column(column, justify="left" if column == "model" else "right")
    results = {}
    for name, values in margins.items():
        accuracy, low, high = accuracy_with_interval(values)
        loss = float(np.logaddexp(0, -values.astype(np.float64)).mean())
        results[name] = {"accuracy": accuracy, "ci95": [low, high], "log_loss": loss, "pairs": len(rows)}
        ties = str(int((values == 0).sum()))
        interval = f"{low:.3f} to {high:.3f}"
        table.add_row(name, f"{accuracy:.3f}", interval, f"{loss:.3f}", f"{values.mean():.3f}", ties)
    difference = np.sign(margins["interaction"]) / 2 - np.sign(margins["baseline"]) / 2
    draws = np.random.default_rng(0).choice(difference, (2000, len(rows))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    results["interaction_minus_baseline"] = {"accuracy": float(difference.mean()), "ci95": [float(low), float(high)]}
    verdict = "a difference" if low > 0 or high < 0 else "no difference that these pairs can show"
    sentence = f"interaction minus baseline: {difference.mean():+.3f} ({low:+.3f} to {high:+.3f}): {verdict}."
    return results, table, sentence


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
    save_small_png(plot_maps(maps), path, dpi=80, colors=128)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in maps.explained.items())
    return f"share of the teacher's map that is explained (1 all, 0 no more than equal attention): {shares}."
