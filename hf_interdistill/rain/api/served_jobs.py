"""RAIN jobs with a model on a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...scoring.prompts import columns_of
from ...utils.jsonl_jobs import JsonlJob
from ...utils.sources import load_tokenizer, loading
from ..engine.engine import Prompt
from .job_config import RainJobConfig, refuse_settings_of_a_call
from .job_output import JobOutput
from .rain_client import RainClient
from .served_generation import ServedGeneration


def search_on_server(
    config: RainJobConfig, job: JsonlJob, rows: Sequence[dict], share: Sequence[dict], scorer: Any
) -> None:
    """Search for the prompts of this process, and write each answer when it is finished.

    Args:
        config: the job. job: where answers are written. rows: all prompts, which are checked first.
        share: those of this process. scorer: as for `RainClient`.
    """
    name = config.tokenizer or config.model
    with loading(name, "tokenizer"):
        tokenizer = load_tokenizer(name)
    client = RainClient(
        config.server or (), config.model, tokenizer, config.rain_config(), scorer, timeout=config.server_timeout
    )
    options = client.resolve(config.generation_settings())
    refuse_settings_of_a_call({"max_time": options.max_time})
    client.check(options)
    prompts = _build_prompts(config, client, options, rows)
    work = [(row, prompts[row["id"]]) for row in share]
    engine = client.build_engine(options, isolates_errors=True)
    with JobOutput.opened(config, tokenizer, job, work) as output:
        engine.on_commit = lambda: output.show(engine.committed_tokens, engine.iterations)
        for number, record in client.search(engine, [prompt for _, prompt in work], options):
            output.write(number, record)


def _build_prompts(
    config: RainJobConfig, client: RainClient, options: ServedGeneration, rows: Sequence[dict]
) -> dict[Any, Prompt]:
    """Prompts by id, numbered among equal ones of the whole file."""
    prompts: dict[Any, Prompt] = {}
    seen: Counter[Any] = Counter()
    build = options.prompt_builder(client.tokenizer, client.client.max_length)
    for row in rows:
        try:
            prompt = build(row["prompt"], columns_of(row))
        except ValueError as error:
            raise ValueError(f"Prompt {row['id']!r} of {config.prompts}: {error}") from error
        prompts[row["id"]] = replace(prompt, occurrence=seen[prompt.ids])
        seen[prompt.ids] += 1
    return prompts
