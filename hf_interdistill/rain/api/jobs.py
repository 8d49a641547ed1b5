"""Long jobs: RAIN over a file of prompts. Each answer is written when it is finished; a killed job can be resumed.

Prompts are JSONL rows with `prompt` (text or messages) and, optionally, `id`, `tools` and `chat_template_kwargs`.
Every process appends to its own shard. At the end the shards are merged into `output`, in the order of the prompts.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import GenerationConfig
from transformers.generation import StopStringCriteria

from ...scoring.formatting import template_kwargs
from ...scoring.model_digests import digests_of_models
from ...scoring.prompts import TEMPLATE_COLUMNS, columns_of, load_prompts, tokenize_prompt
from ...scoring.reward_apis import tokenizer_of_served
from ...utils.atomic_io import require_writable
from ...utils.causal_models import load_causal_lm
from ...utils.jsonl_jobs import JsonlJob
from ...utils.sharded_jobs import run_sharded_job
from ...utils.sources import refuse_same_file
from ..engine.engine import Prompt, RainEngine
from ..scorers.base import Scorer
from ..scorers.builtin import RewardModelScorer
from ..scorers.cached_reward import CachedRewardScorer
from ..scorers.resolve import as_scorer, scorer_from_config
from .checks import check_tokenizer, warn_of_use_cache
from .decoder import RainDecoder
from .inputs import PreparedGeneration, build_prompts, prepare_generation
from .job_config import RainJobConfig, refuse_settings_of_a_call
from .job_output import JobOutput
from .served_jobs import search_on_server

_SUMS = ("forward_passes", "forward_tokens", "judge_calls", "committed_tokens")


def run_rain_job(config: RainJobConfig) -> dict[str, Any]:
    """Search for every prompt that has no answer yet.

    Args:
        config: the job.

    Returns:
        `output` (path), `prompts` (all), `searched` (by this call, over all processes known to this one), and the
        sums of the answers' `forward_passes`, `forward_tokens`, `judge_calls`, `committed_tokens`.

    Raises:
        ValueError: a bad row (named by its line), a prompt longer than the context, or an output made with other
            settings or of other prompts.
        FailedRowsError: the scorer failed for some prompts, which have a row with `error`; all others are written.
        ServerError: a server failed; finished prompts are written.
    """
    refuse_same_file({"`output`": config.output}, {"`prompts`": config.prompts})
    rows = load_prompts(config.prompts, keep=TEMPLATE_COLUMNS)
    if config.trees is not None:
        require_writable("trees", config.trees, "trees would be lost")

    def work(job: JsonlJob, share: Sequence[dict]) -> None:
        if config.server is not None:
            search_on_server(config, job, rows, share, load_scorer(config))
            return
        model, tokenizer = _load(config, PartialState().device)
        prompts = _prepare(config, model, tokenizer, rows)
        _search(config, job, (model, tokenizer), [(row, prompts[row["id"]]) for row in share])

    is_rewarded_here = config.reward_model is not None and config.reward_server is None
    job, searched = run_sharded_job(
        config.output,
        rows,
        work,
        settings={**config.result_settings(), **_digests(config)},
        overwrite=config.overwrite,
        compared=("prompt", *TEMPLATE_COLUMNS),
        uses_device=config.server is None or is_rewarded_here,
    )
    return {"output": config.output, "prompts": len(rows), "searched": searched, **_sums(job)}


def _digests(config: RainJobConfig) -> dict[str, str]:
    """Digests of the models and tokenizers that are loaded here."""
    encoder = config.rain_config().similarity_model
    models = {
        "model": config.model if config.server is None else None,
        "reward_model": config.reward_model if config.reward_server is None else None,
        "similarity_model": encoder if encoder is not None and Path(encoder).is_dir() else None,
    }
    tokenizers = {
        "tokenizer": None if config.server is None else config.tokenizer or config.model,
        "reward_tokenizer": tokenizer_of_served(config, config.reward_model),
    }
    return digests_of_models(models, tokenizers)


def _load(config: RainJobConfig, device):
    model, tokenizer = load_causal_lm(config.model, config.dtype)
    model = model.to(device).eval()
    check_tokenizer(model, tokenizer)
    return model, tokenizer


def load_scorer(config: RainJobConfig) -> Scorer | Any:
    """The scorer of a job."""
    if config.scorer == "self":
        return scorer_from_config("self", config.rain_config())
    if config.reward_model is not None:  # with `scorer: reward`, and only then
        kind = CachedRewardScorer if config.reward_cache else RewardModelScorer
        return kind(_load_reward(config), scale=config.reward_scale, center=config.reward_center)
    module, separator, name = config.scorer.partition(":")
    try:
        return as_scorer(getattr(importlib.import_module(module), name))
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {error}" if separator else "there is no colon"
        raise ValueError(
            f"`scorer` is {config.scorer!r}, but must be 'self', 'reward', or the 'module:function' of a function "
            f"that can be imported ({reason})."
        ) from error


def _load_reward(config: RainJobConfig) -> Any:
    """The reward model of a job."""
    if config.reward_server is None:
        from ...scoring.opening import open_scorer

        scorer = open_scorer(str(config.reward_model), batch_size=config.batch_size, dtype=config.reward_dtype)
        return scorer.to(PartialState().device)
    from ...scoring.remote import RemoteRewardScorer

    return RemoteRewardScorer.for_job(
        config.reward_server,
        api=config.reward_api,
        model=str(config.reward_model),
        tokenizer=config.reward_tokenizer,
        batch_size=config.batch_size,
        timeout=config.server_timeout,
    )


def _prepare(config: RainJobConfig, model, tokenizer, rows: Sequence[dict]) -> dict[Any, Prompt]:
    """Prompts by id; all of them are checked before the first search."""
    generation_config = GenerationConfig(**config.generation_settings())
    strings = generation_config.stop_strings or model.generation_config.stop_strings
    criteria = [StopStringCriteria(tokenizer, strings)] if strings else []
    warn_of_use_cache(model._prepare_generation_config(generation_config)[0])
    prompts: dict[Any, Prompt] = {}
    seen: Counter[Any] = Counter()
    for row in rows:
        try:
            ids = tokenize_prompt(tokenizer, row["prompt"], template_kwargs(row)).to(model.device)
            full_config, processors = prepare_generation(model, generation_config, ids)
            refuse_settings_of_a_call(full_config.to_dict())
            prepared = PreparedGeneration(full_config, [row["prompt"]], processors, criteria)
            (prompt,) = build_prompts(model, ids, None, prepared)
        except ValueError as error:
            raise ValueError(f"Prompt {row['id']!r} of {config.prompts}: {error}") from error
        # Counted over the whole file, so that a resumed job draws the same tokens as an uninterrupted one.
        prompts[row["id"]] = replace(prompt, occurrence=seen[prompt.ids], columns=columns_of(row))
        seen[prompt.ids] += 1
    return prompts


def _search(config: RainJobConfig, job: JsonlJob, loaded: tuple, work: Sequence[tuple[dict, Prompt]]) -> None:
    """Search for the prompts of this process, and write each answer when it is finished."""
    model, tokenizer = loaded
    decoder = RainDecoder(tokenizer, config.rain_config(), load_scorer(config))
    engine: RainEngine = decoder.build_engine(model, isolates_errors=True)
    engine.start([prompt for _, prompt in work], decoder.seed())
    tokens = finished_iterations = 0
    with JobOutput.opened(config, tokenizer, job, work) as output:
        while not engine.is_finished:
            tokens += sum(len(part) for _, part in engine.step())
            for number, record in engine.take_finished():
                output.write(number, record)
                finished_iterations += int(record.stats["iterations"])
            output.show(tokens, finished_iterations + engine.iterations)


def _sums(job: JsonlJob) -> dict[str, float]:
    """Total costs of the answers."""
    sums: Counter = Counter()
    for row in job.rows():
        sums.update({name: row["stats"][name] for name in _SUMS})
    return {name: sums[name] for name in _SUMS}
