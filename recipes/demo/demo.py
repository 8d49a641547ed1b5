"""The demo: a teacher, a plain and an interaction-distilled reward model, and a chat model that answers with them.

`python recipes/demo/demo.py [--data FILE_OR_FOLDER]` from the project's root. Everything runs on a CPU and without a
hub (`hf_interdistill.embedded`): the teacher is MiniLM, the students are the first layers of SmolLM2-135M-Instruct,
which as a whole answers the prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from answers import answer_all, table_of
from rich.table import Table
from stages import Stages
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_interdistill import InteractionTeacher, RewardScorer, embedded
from hf_interdistill.cli import main as interdistill
from hf_interdistill.interaction.data.pairs import read_preference
from hf_interdistill.interaction.inspection import pair_maps, plot_maps
from hf_interdistill.interaction.teacher.training import split_by_prompt
from hf_interdistill.utils.data import load_preferences

HERE = Path(__file__).parent
RUNS = Path("runs/demo")
NUM_LAYERS = 6  # of the 30 of SmolLM2; enough for a reward model that learns in a minute


def make_student(folder: Path, language_model: str) -> None:
    """The first layers of the language model (21M parameters and the embeddings' 28M) with a new score head."""
    set_seed(42)
    model = AutoModelForSequenceClassification.from_pretrained(
        language_model, num_hidden_layers=NUM_LAYERS, num_labels=1
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(language_model).save_pretrained(folder)


def prepare_data(source: str) -> tuple[str, list[dict]]:
    """Folder with a train and a test split, and the test rows; a source without a test split is split by prompt."""
    splits = load_preferences(source)
    if "test" in splits:
        return source, splits["test"].to_list()
    rows = splits["train"].to_list()
    training, held_out = split_by_prompt([read_preference(row) for row in rows], 0.2, seed=42)
    folder = RUNS / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name, indices in (("train", training), ("test", held_out)):
        lines = "".join(json.dumps(rows[i], ensure_ascii=False) + "\n" for i in indices)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return str(folder), [rows[i] for i in held_out]


def command(*arguments: str) -> None:
    """Run one `interdistill` command, as on the command line."""
    print("$ interdistill", *arguments, flush=True)
    if interdistill(arguments):
        raise SystemExit(2)


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


def draw_maps(rows: list[dict], teacher: InteractionTeacher, scorers: dict[str, RewardScorer], path: Path) -> None:
    """The maps of the first held-out pair that is short enough to read."""
    preferences = [read_preference(row) for row in rows]
    lengths = [
        sum(len(content.split()) for text in item.flatten() for content in text.contents) for item in preferences
    ]
    row = next(
        (row for row, length in zip(rows, lengths, strict=True) if 45 <= length <= 65), rows[np.argmin(lengths)]
    )
    plot_maps(pair_maps(row, teacher, scorers)).savefig(path, dpi=80, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=str(HERE / "preferences"), help="preference data: JSONL file or folder")
    start, data = time.monotonic(), parser.parse_args().data
    folder, rows = prepare_data(data)
    stages = Stages(RUNS / "demo.log", 6)
    with stages.stage("convert SmolLM2-135M-Instruct (the first time only), take its first layers as the student"):
        language_model, encoder = embedded.language_model(), embedded.encoder("minilm")
        make_student(RUNS / "student", language_model)
    with stages.stage("fit the teacher, MiniLM (22M parameters)"):
        recipe = str(HERE / "teacher.yaml")
        command("teacher", "--config", recipe, "--teacher_model", encoder, "--dataset_name", folder)
    for name, title in (("baseline", "plain"), ("interaction", "interaction-distilled")):
        with stages.stage(f"train the {title} reward model"):
            recipe = str(HERE / "reward" / f"{name}.yaml")
            command("reward", "--config", recipe, "--dataset_name", folder, "--overwrite", "true")
    with stages.stage(f"compare on {len(rows)} held-out pairs, draw the maps"):
        teacher = InteractionTeacher.from_pretrained(str(RUNS / "teacher"))
        scorers = {name: RewardScorer.from_pretrained(str(RUNS / name)) for name in ("baseline", "interaction")}
        results, comparison, sentence = compare(rows, teacher, scorers)
        draw_maps(rows, teacher, scorers, RUNS / "maps.png")
    with stages.stage("answer three prompts: plain, best-of-n and RAIN, by the distilled reward model"):
        answers = answer_all(language_model, scorers["interaction"], RUNS)
        rewards = {"reward": scorers["interaction"], "reward of the plain model": scorers["baseline"]}
        shown, results["answers"] = table_of(answers, rewards)
    (RUNS / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")

    stages.console.print(comparison, sentence, shown, sep="\n")
    stages.console.print(
        "`reward` is what best-of-n and RAIN climb, so it is no measure of quality; the plain model's is "
        "closer to one.\n\n"
        f"Done in {time.monotonic() - start:.0f} s. Look at:\n"
        f"  {RUNS}/maps.png           what the teacher attends to, and what each reward model simulates\n"
        f"  {RUNS}/rain_tree_1.html   the search tree behind RAIN's first answer\n"
        f"  {RUNS}/results.json       all figures; {RUNS}/demo.log has everything the stages printed\n"
        "Next:\n"
        f"  .venv/bin/interdistill score --model {RUNS}/interaction --input {folder}/test.jsonl "
        f"--output {RUNS}/scored.jsonl\n"
        f"  .venv/bin/interdistill diagnose --model {RUNS}/baseline {RUNS}/interaction --data {folder}/test.jsonl "
        f"--output {RUNS}/diagnosis",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
