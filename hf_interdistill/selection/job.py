"""Best-of-n over a file of prompts: candidates are written when they are scored; a killed job resumes."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from ..scoring.best_of_n import best_of_n_kl, best_of_n_scores, over_optimization_curve
from ..scoring.formatting import template_kwargs
from ..scoring.model_digests import digests_of_models
from ..scoring.opening import open_scorer
from ..scoring.prompts import TEMPLATE_COLUMNS, check_completions, load_prompts
from ..scoring.remote import RemoteRewardScorer
from ..scoring.reward_apis import tokenizer_of_served
from ..scoring.text_scorer import TextScorer
from ..utils.async_calls import iterate
from ..utils.atomic_io import require_writable_file, write_atomically
from ..utils.causal_models import load_causal_lm
from ..utils.jsonl_jobs import JsonlJob
from ..utils.processes import long_barrier
from ..utils.served_models import warn_of_unknown_weights
from ..utils.server_pool import ModelServers, as_urls
from ..utils.servers import ServerError, is_of_one_request
from ..utils.sharded_jobs import run_sharded_job
from ..utils.sources import load_tokenizer, loading, refuse_same_file
from .candidates import CandidateSampler
from .config import BestOfNConfig
from .curve import picture_of, write_curve
from .rows import scored, with_candidates, with_error
from .rules import selected_rows
from .served_candidates import ServedSampler
from .served_job import Places, finished_rows

_CALLS = 32  # of a served reward model at the same time, for each server


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
    given = () if config.model else ("completions", *(() if config.gold_model else ("gold_rewards",)))
    job, scored = run_sharded_job(
        config.output,
        rows,
        lambda job, share: _sample_and_score(config, job, share),
        settings={**config.result_settings(), **_digests(config)},
        overwrite=config.overwrite,
        compared=("prompt", *TEMPLATE_COLUMNS, *given),
        uses_device=_uses_device(config),
    )
    state = PartialState()
    with long_barrier(state) as wait_for_everyone:
        summary = _summarize(config, job) if state.is_main_process else {}
        wait_for_everyone()
    return {"prompts": len(rows), "scored": scored, **summary}


def _uses_device(config: BestOfNConfig) -> bool:
    """Whether a model is loaded here."""
    is_sampled_here = config.model is not None and config.server is None
    return is_sampled_here or config.reward_server is None or config.gold_model is not None


def _digests(config: BestOfNConfig) -> dict[str, str]:
    """Digests of the models and tokenizers that are loaded here."""
    is_sampled_here, is_scored_here = config.server is None, config.reward_server is None
    models = {
        "model": config.model if is_sampled_here else None,
        "reward_model": config.reward_model if is_scored_here else None,
        "gold_model": config.gold_model,
    }
    tokenizers = {
        "tokenizer": None if is_sampled_here else config.tokenizer or config.model,
        "reward_tokenizer": tokenizer_of_served(config, config.reward_model),
    }
    return digests_of_models(models, tokenizers)


def load_rows(config: BestOfNConfig) -> list[dict[str, Any]]:
    """The prompts, with their completions where there is no model to sample them."""
    given = () if config.model else ("completions", "gold_rewards")
    rows = load_prompts(config.prompts, keep=(*TEMPLATE_COLUMNS, *given))
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
    """Sample and score this process's prompts; each one is written when it is scored."""
    state = PartialState()
    sampler = None if config.model is None else _load_sampler(config, state.device)
    for row in rows if sampler is not None else ():
        try:
            sampler.check(row["prompt"], template_kwargs(row))  # type: ignore[union-attr]
        except ValueError as error:
            raise ValueError(f"Prompt {row['id']!r} of {config.prompts}: {error}") from error
    scorers = _load_scorers(config, state.device)
    told = {key: each.told() for key, each in scorers.items() if isinstance(each, RemoteRewardScorer)}
    if told and state.is_main_process:
        job.require_same_models(told)
    bar = tqdm(total=len(rows), desc="Best of n", unit="prompt", disable=not state.is_local_main_process)
    sampled = 0

    def show(candidates: int) -> None:
        nonlocal sampled
        sampled += candidates
        bar.set_postfix(candidates=sampled)

    with job.appending() as append, bar:
        if isinstance(sampler, CandidateSampler) or (sampler is None and config.reward_server is None):
            finished = _here(config, rows, sampler, scorers, show)
        else:
            finished = _on_servers(config, rows, sampler, scorers, show)
        for row in finished:
            append(row)
            bar.update()


def _here(
    config: BestOfNConfig,
    rows: Sequence[dict],
    sampler: CandidateSampler | None,
    scorers: dict[str, TextScorer],
    show: Callable[[int], None],
) -> Iterator[dict]:
    """Finished rows, a group after the other."""
    for group in _groups(rows, config):
        if sampler is not None:
            group = _with_samples(group, sampler, config.n, show)
        yield from scored(group, scorers)


def _on_servers(
    config: BestOfNConfig,
    rows: Sequence[dict],
    sampler: ServedSampler | None,
    scorers: dict[str, TextScorer],
    show: Callable[[int], None],
) -> Iterator[dict]:
    """Finished rows, in any order; see `finished_rows`."""
    called = {key: each if isinstance(each, RemoteRewardScorer) else _alone(each) for key, each in scorers.items()}
    is_remote = any(isinstance(each, RemoteRewardScorer) for each in scorers.values())
    calls = _CALLS * len(as_urls(config.reward_server)) if is_remote else 1
    places = Places(len(as_urls(config.server)), calls, config.batch_size)

    async def sample(row: dict) -> dict:
        assert sampler is not None
        try:
            candidates = await sampler.sample(row["id"], row["prompt"], config.n, template_kwargs(row))
        except ServerError as error:
            if not is_of_one_request(error):
                raise  # that is the fault of no row
            return with_error(row, error)
        show(config.n)
        return with_candidates(row, candidates)

    async def finished() -> AsyncGenerator[dict, None]:
        own = sample if sampler is not None else None
        items = finished_rows(rows, config.n, own, lambda group: scored(group, called), places)
        async with AsyncExitStack() as stack:
            if sampler is not None:
                await stack.enter_async_context(sampler.client.servers.connected())
            await stack.enter_async_context(aclosing(items))
            async for row in items:
                yield row

    return iterate(finished)


def _alone(scorer: TextScorer) -> Callable[..., list[float]]:
    """A scorer that is loaded here, for one thread at a time."""
    lock = threading.Lock()

    def score(*args: Any, **kwargs: Any) -> list[float]:
        with lock:
            return scorer(*args, **kwargs)

    return score


def _load_sampler(config: BestOfNConfig, device) -> CandidateSampler | ServedSampler:
    name, generation = str(config.model), config.generation_settings()
    if config.server is not None:
        tokenizer_name = config.tokenizer or name
        with loading(tokenizer_name, "tokenizer"):
            tokenizer = load_tokenizer(tokenizer_name)
        servers = ModelServers(config.server, timeout=config.server_timeout)
        warn_of_unknown_weights(name, servers.names)
        return ServedSampler(servers, name, tokenizer, generation, seed=config.seed)
    model, tokenizer = load_causal_lm(name, config.dtype)
    return CandidateSampler(model.to(device), tokenizer, generation, seed=config.seed, batch_size=config.batch_size)


def _load_scorers(config: BestOfNConfig, device) -> dict[str, TextScorer]:
    """What gives each kind of rewards."""
    scorers: dict[str, TextScorer] = {}
    for key, name in (("rewards", config.reward_model), ("gold_rewards", config.gold_model)):
        if key == "rewards" and config.reward_server is not None:
            scorers[key] = RemoteRewardScorer.for_job(
                config.reward_server,
                api=config.reward_api,
                model=config.reward_model,
                tokenizer=config.reward_tokenizer,
                batch_size=config.batch_size,
                timeout=config.server_timeout,
            )
        elif name is not None:
            scorer = open_scorer(name, batch_size=config.batch_size, dtype=config.reward_dtype)
            scorers[key] = scorer.to(device)
    return scorers


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
    return [with_candidates(row, [next(candidates) for _ in range(n)]) for row in rows]


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
        labels = {"proxy": config.reward_model, "gold": config.gold_model or config.prompts, "prompts": len(rewards)}
        write_curve(over_optimization_curve(rewards, gold), Path(config.curve), labels)
    return summary
