"""Best-of-n over a file of prompts: candidates are written when they are scored; a killed job resumes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from ..scoring.best_of_n import best_of_n_kl, best_of_n_scores, over_optimization_curve
from ..scoring.formatting import template_kwargs
from ..scoring.prompts import check_completions, load_prompts
from ..scoring.scorer import RewardScorer
from ..utils.atomic_io import require_writable_file, write_atomically
from ..utils.causal_models import load_causal_lm
from ..utils.dtypes import check_dtype
from ..utils.fields import as_mapping, require_kinds, require_positive
from ..utils.jsonl_jobs import JsonlJob, error_field, run_sharded_job
from ..utils.sources import refuse_same_file
from .candidates import CandidateSampler, check_generation
from .curve import picture_of, write_curve
from .rules import selected_rows

# Candidates and their scores depend on these; the other settings can be changed for a finished job.
_RESULT_SETTINGS = (
    "prompts",
    "reward_model",
    "gold_model",
    "model",
    "n",
    "generation",
    "seed",
    "dtype",
    "reward_dtype",
)
_TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class BestOfNConfig:
    """Settings of `interdistill best-of-n`.

    Args:
        prompts: JSONL file with `prompt` (text or messages) and, if wanted, `id`, `tools`, `chat_template_kwargs`.
            Without `model` each row brings its candidates as `completions`, and maybe their `gold_rewards`.
        output: JSONL file to write: `id`, `prompt`, `completions`, `rewards`, `gold_rewards` if there are any, and
            `finish_reasons` of sampled ones.
        reward_model: the reward model to choose by: name or folder, of a full model or an adapter.
        model: name or folder of a causal LM to sample from.
        n: candidates per prompt to sample.
        generation: fields of `GenerationConfig` (`max_new_tokens`, `temperature`, ...).
        selected: JSONL file for what is kept.
        keep: `completions` or `pairs` (best against worst); see `rules.selected_rows`.
        top_k: completions to keep per prompt. threshold: the least reward of kept completions.
        margin: the reward difference that pairs must exceed.
        gold_model: a reward model that counts as the truth, for the curve.
        curve: JSON file for the over-optimization curve; the picture is written beside it.
        batch_size: completions per forward pass, in sampling and scoring.
        seed: of the samples.
        dtype, reward_dtype: of the causal LM and of the reward models, as in `from_pretrained`.
        overwrite: start again where `output` was made with other settings.
    """

    prompts: str = field(metadata={"help": "JSONL of prompts, without `model` with `completions`."})
    output: str = field(metadata={"help": "JSONL to write: all candidates with rewards."})
    reward_model: str = field(metadata={"help": "Reward model to choose by."})
    model: str | None = field(default=None, metadata={"help": "Causal LM to sample from."})
    n: int = field(default=16, metadata={"help": "Candidates per prompt to sample."})
    generation: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Fields of GenerationConfig; JSON."}
    )
    selected: str | None = field(default=None, metadata={"help": "JSONL for what is kept."})
    keep: str = field(default="completions", metadata={"help": "completions or pairs."})
    top_k: int = field(default=1, metadata={"help": "Completions to keep per prompt."})
    threshold: float | None = field(default=None, metadata={"help": "Least reward of kept completions."})
    margin: float = field(default=0.0, metadata={"help": "Reward difference that pairs must exceed."})
    gold_model: str | None = field(default=None, metadata={"help": "Reward model that counts as the truth."})
    curve: str | None = field(default=None, metadata={"help": "JSON for the over-optimization curve."})
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the causal LM."})
    reward_dtype: str = field(default="float32", metadata={"help": "Data type of the reward models."})
    overwrite: bool = field(default=False, metadata={"help": "Start again where settings differ."})

    def __post_init__(self):
        require_kinds(self)
        object.__setattr__(self, "generation", as_mapping("generation", self.generation))
        check_generation(self.generation_settings())
        for name in ("dtype", "reward_dtype"):
            check_dtype(name, getattr(self, name))
        for name in ("n", "top_k", "batch_size"):
            require_positive(name, getattr(self, name))
        if self.keep not in ("completions", "pairs"):
            raise ValueError(f"`keep` is {self.keep!r}, but must be `completions` or `pairs`.")
        if self.model is None and self.generation:
            raise ValueError("`generation` is set, but no `model` to sample from. Set `model`, or leave it out.")
        chosen = {"top_k": self.top_k != 1, "threshold": self.threshold is not None, "margin": self.margin != 0}
        unused = [name for name, is_set in chosen.items() if is_set and (name == "margin") != (self.keep == "pairs")]
        if unused:
            raise ValueError(
                f"`{unused[0]}` changes nothing with `keep: {self.keep}`: `top_k` and `threshold` choose completions, "
                "`margin` chooses pairs."
            )
        if self.selected is None and (any(chosen.values()) or self.keep != "completions"):
            raise ValueError("There is a choice of what to keep, but no file for it. Set `selected`.")

    def generation_settings(self) -> dict[str, Any]:
        """`generation` as a dictionary."""
        return as_mapping("generation", self.generation)

    def result_settings(self) -> dict[str, Any]:
        """The settings that the candidates and their scores depend on."""
        values = asdict(self)
        return {name: values[name] for name in _RESULT_SETTINGS}


def run_best_of_n(config: BestOfNConfig) -> dict[str, Any]:
    """Sample and score what is missing, then choose.

    Returns:
        `prompts`, `candidates`, `scored` (prompts of this call), `mean_reward` (mean over prompts of their candidates'
        mean), `best_reward` (mean of each prompt's best), `kl` (of best-of-n, nats, where all prompts have the same
        number of candidates), `selected` (rows kept).

    Raises:
        ValueError: a bad row (named by its line or id), or an output made with other settings or of other prompts.
        FailedRowsError: some prompts could not be scored, and have a row with `error`; all others are written. What is
            kept is chosen when all are scored.
    """
    for option in ("selected", "curve"):  # written at the end
        if getattr(config, option) is not None:
            require_writable_file(option, getattr(config, option), "it is written at the end of the job")
    written = {f"`{option}`": getattr(config, option) for option in ("output", "selected", "curve")}
    picture = None if config.curve is None else picture_of(config.curve)
    refuse_same_file({**written, "the picture of `curve`": picture}, {"`prompts`": config.prompts})
    rows = load_rows(config)
    job, scored = run_sharded_job(
        config.output,
        rows,
        lambda job, share: _sample_and_score(config, job, share),
        settings=config.result_settings(),
        overwrite=config.overwrite,
    )
    state = PartialState()
    summary = _summarize(config, job) if state.is_main_process else {}
    state.wait_for_everyone()
    return {"prompts": len(rows), "scored": scored, **summary}


def load_rows(config: BestOfNConfig) -> list[dict[str, Any]]:
    """The prompts, with their completions where there is no model to sample them."""
    given = () if config.model else ("completions", "gold_rewards")
    rows = load_prompts(config.prompts, keep=(*_TEMPLATE_COLUMNS, *given))
    for row in rows if config.model is None else ():
        where = f"Prompt {row['id']!r} of {config.prompts}"
        if not row.get("completions"):
            raise ValueError(f"{where} has no list of `completions`. Give it some, or set `model` to sample them.")
        completions, gold = check_completions(row, where, at_least=1), row.get("gold_rewards")
        if gold is not None and not (isinstance(gold, list) and all(map(_is_number, gold))):
            raise ValueError(f"{where} has `gold_rewards` {gold!r:.120}, but they must be a list of finite numbers.")
        if gold is not None and len(gold) != len(completions):
            raise ValueError(f"{where} has {len(completions)} completions, but {len(gold)} `gold_rewards`.")
        if gold is not None and config.gold_model is not None:
            raise ValueError(f"{where} has `gold_rewards`, but `gold_model` is set too. Use one of them.")
    if config.curve is not None and config.gold_model is None and any(row.get("gold_rewards") is None for row in rows):
        raise ValueError(
            "`curve` needs scores that count as the truth: set `gold_model`, or give every row `gold_rewards`."
        )
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sample_and_score(config: BestOfNConfig, job: JsonlJob, rows: Sequence[dict]) -> None:
    """Sample and score this process's prompts, a group at a time; each prompt is written when it is scored."""
    state, sampler = PartialState(), None
    if config.model is not None:
        model, tokenizer = load_causal_lm(config.model, config.dtype)
        sampler = CandidateSampler(
            model.to(state.device),
            tokenizer,
            config.generation_settings(),
            seed=config.seed,
            batch_size=config.batch_size,
        )
        for row in rows:
            try:
                sampler.check(row["prompt"], template_kwargs(row))
            except ValueError as error:
                raise ValueError(f"Prompt {row['id']!r} of {config.prompts}: {error}") from error
    scorers = {
        key: RewardScorer.from_pretrained(name, batch_size=config.batch_size, dtype=config.reward_dtype).to(
            state.device
        )
        for key, name in (("rewards", config.reward_model), ("gold_rewards", config.gold_model))
        if name is not None
    }
    bar = tqdm(total=len(rows), desc="Best of n", unit="prompt", disable=not state.is_local_main_process)
    sampled = 0

    def show(candidates: int) -> None:
        nonlocal sampled
        sampled += candidates
        bar.set_postfix(candidates=sampled)

    with job.appending() as append, bar:
        for group in _groups(rows, config):
            if sampler is not None:
                group = _with_samples(group, sampler, config.n, show)
            for row in _scored(group, scorers):
                append(row)
                bar.update()


def _groups(rows: Sequence[dict], config: BestOfNConfig) -> Iterator[list[dict]]:
    """Whole prompts, as many as fill a batch with their candidates."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += config.n if config.model is not None else len(row["completions"])
        if size >= config.batch_size:
            yield group
            group, size = [], 0
    if group:
        yield group


def _with_samples(rows: list[dict], sampler: CandidateSampler, n: int, on_batch: Callable[[int], None]) -> list[dict]:
    requests = [(row["id"], row["prompt"], number) for row in rows for number in range(n)]
    kwargs = [template_kwargs(row) for row in rows for _ in range(n)]
    candidates = iter(sampler(requests, kwargs, on_batch))
    sampled = []
    for row in rows:
        own = [next(candidates) for _ in range(n)]
        reasons = [candidate.finish_reason for candidate in own]
        sampled.append({**row, "completions": [candidate.text for candidate in own], "finish_reasons": reasons})
    return sampled


def _scored(rows: list[dict], scorers: dict[str, RewardScorer]) -> list[dict]:
    """Rows with scores; one that cannot be scored gets an error, whatever it is, and the others are scored."""
    try:
        return _with_scores(rows, scorers)
    except Exception as error:
        if len(rows) == 1:
            return [{**rows[0], **error_field(f"{type(error).__name__}: {_named(error)}")}]
        return [scored for row in rows for scored in _scored([row], scorers)]


def _named(error: Exception) -> str:
    """The scorer's message on one prompt, whose rows are the candidates; the error's row has the prompt's id."""
    return re.sub(r"^Row (\d+): ", r"Candidate \1: ", str(error))


def _with_scores(rows: list[dict], scorers: dict[str, RewardScorer]) -> list[dict]:
    prompts = [row["prompt"] for row in rows for _ in row["completions"]]
    completions = [completion for row in rows for completion in row["completions"]]
    columns: dict[str, Any] = {
        key: [row.get(key) for row in rows for _ in row["completions"]] for key in _TEMPLATE_COLUMNS
    }
    values = {key: scorer(prompts, completions, **columns) for key, scorer in scorers.items()}
    for key, each in values.items():
        if not all(map(math.isfinite, each)):
            raise ValueError(f"`{key}` are {each}: a broken model, or one that needs another dtype.")
    scores = {key: iter(each) for key, each in values.items()}
    return [{**row, **{key: [next(own) for _ in row["completions"]] for key, own in scores.items()}} for row in rows]


def _summarize(config: BestOfNConfig, job: JsonlJob) -> dict[str, Any]:
    """The summary of the scored candidates; the selected rows and the curve are written."""
    rewards, gold, kept = [], [], []
    for row in job.rows():
        rewards.append(row["rewards"])
        if row.get("gold_rewards") is not None:
            gold.append(row["gold_rewards"])
        if config.selected is not None:
            kept += selected_rows(row, config.keep, config.top_k, config.threshold, config.margin)
    summary: dict[str, Any] = {
        "candidates": sum(map(len, rewards)),
        "mean_reward": sum(best_of_n_scores(each, each, 1) for each in rewards) / len(rewards),
        "best_reward": sum(map(max, rewards)) / len(rewards),
    }
    if len(sizes := set(map(len, rewards))) == 1:
        summary["kl"] = best_of_n_kl(sizes.pop())
    if config.selected is not None:
        Path(config.selected).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(config.selected), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        summary["selected"] = len(kept)
    if config.curve is not None:
        if len(gold) < len(rewards):
            raise ValueError(
                f"`curve` needs scores that count as the truth, but {len(rewards) - len(gold)} of {len(rewards)} rows "
                f"of {config.output} have no `gold_rewards`: they were scored before their prompts had any. Delete "
                "it, and run again."
            )
        labels = {"proxy": config.reward_model, "gold": config.gold_model or config.prompts, "prompts": len(rewards)}
        write_curve(over_optimization_curve(rewards, gold), Path(config.curve), labels)
    return summary
