"""What the arms' texts are worth: sentiment by the classifier, variety, fluency, and bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from hf_interdistill.utils.pictures import save_small_png

_BATCH = 64
_DRAWS = 10_000
ARMS = ("vanilla", "best_of_n", "rain_self", "rain_reward")


@torch.no_grad()
def are_positive(folder: Path, texts: Sequence[str]) -> list[bool]:
    """The classifier's verdict on each text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    verdicts: list[bool] = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt")
        verdicts.extend((model(**batch).logits.argmax(-1) == 1).tolist())
    return verdicts


@torch.no_grad()
def perplexity(folder: Path, answers: Sequence[dict]) -> float:
    """Perplexity of the completions (EOS included) after their prompts, over all tokens of all completions.

    Args:
        folder: a language model with the decoder's tokenizer. answers: rows with `prompt` and `tokens`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    loss, count = 0.0, 0
    for answer in answers:
        prompt, tokens = tokenizer(answer["prompt"])["input_ids"], answer["tokens"]
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        loss += torch.nn.functional.cross_entropy(logits.double(), torch.tensor(tokens), reduction="sum").item()
        count += len(tokens)
    return float(np.exp(loss / count))


def distinct_2(texts: Sequence[str]) -> float:
    """Different word pairs over all word pairs, of all texts together."""
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return len(set(pairs)) / max(1, len(pairs))


def bootstrap(statistic, columns: Sequence[Sequence[float]], seed: int) -> list[float]:
    """95 % percentile interval of `statistic(*means)`; prompts are drawn anew, the same ones for all columns.

    Args:
        statistic: of the means of the columns. columns: one value a prompt each. seed: of the draws.
    """
    values = np.asarray(columns, dtype=float)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, values.shape[1], (_DRAWS, values.shape[1]))
    means = values[:, drawn].mean(-1)
    return [round(float(bound), 4) for bound in np.quantile(statistic(*means), [0.025, 0.975])]


def measure(arms: dict[str, list[dict]], classifier: Path, fluency: Path, seed: int) -> list[dict]:
    """One result an arm; `failures_cut` is vanilla's share of texts that are not positive over the arm's.

    Args:
        arms: answers by arm, prompts in the same order. classifier, fluency: folders. seed: of the bootstrap.
    """
    positive = {
        arm: np.array(are_positive(classifier, [row["prompt"] + row["completion"] for row in rows]), dtype=float)
        for arm, rows in arms.items()
    }
    results = []
    for arm, rows in arms.items():
        hits, rivals = positive[arm], positive["best_of_n"]
        results.append(
            {
                "arm": arm,
                "positive_rate": round(float(hits.mean()), 4),
                "ci95": bootstrap(lambda rate: rate, [hits], seed),
                "failures_cut": _over(1 - positive["vanilla"].mean(), 1 - hits.mean()),
                "minus_best_of_n": round(float(hits.mean() - rivals.mean()), 4),
                "minus_best_of_n_ci95": bootstrap(lambda own, rival: own - rival, [hits, rivals], seed),
                "forward_tokens": round(float(np.mean([row["stats"]["forward_tokens"] for row in rows])), 1),
                "judge_calls": round(float(np.mean([row["stats"]["judge_calls"] for row in rows])), 1),
                "tokens": round(float(np.mean([len(row["tokens"]) for row in rows])), 2),
                "distinct_2": round(distinct_2([row["completion"] for row in rows]), 4),
                "perplexity": round(perplexity(fluency, rows), 1),
                "prompts": len(rows),
            }
        )
    return results


def _over(above: float, below: float) -> float | None:
    """A ratio, or `None` where nothing is below the line."""
    return round(float(above / below), 2) if below > 0 else None


def results_table(results: Sequence[dict]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| arm | positive rate | 95 % interval | failures cut | minus best-of-n | forward tokens | judge calls "
        "| tokens | distinct-2 | perplexity |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results:
        low, high = row["ci95"]
        below, above = row["minus_best_of_n_ci95"]
        cut = "no failure left" if row["failures_cut"] is None else f"{row['failures_cut']:.2f} times"
        lines.append(
            f"| `{row['arm']}` | {row['positive_rate']:.3f} | {low:.3f} to {high:.3f} | {cut} | "
            f"{row['minus_best_of_n']:+.3f} ({below:+.3f} to {above:+.3f}) | {row['forward_tokens']:,.0f} | "
            f"{row['judge_calls']:.1f} | {row['tokens']:.1f} | {row['distinct_2']:.3f} | {row['perplexity']:.0f} |"
        )
    return "\n".join(lines)


def plot(results: Sequence[dict], path: Path) -> None:
    """Positive rate against forward tokens a prompt, with intervals."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for row in results:
        low, high = row["ci95"]
        rate = row["positive_rate"]
        # A percentile interval holds the mean but for rounding; error bars may not be negative.
        bars = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
        axes.errorbar(row["forward_tokens"], rate, yerr=bars, fmt="o", capsize=4, label=row["arm"])
    axes.set_xscale("log")
    axes.set_xlabel("forward tokens a prompt (search and judge)")
    axes.set_ylabel("positive rate, independent classifier")
    axes.set_title(f"{results[0]['prompts']} prompts, 95 % bootstrap intervals", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_small_png(figure, path)
    plt.close(figure)


def read_answers(path: Path) -> list[dict]:
    """Rows of an arm's output."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
