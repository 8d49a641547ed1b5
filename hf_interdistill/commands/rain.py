"""`interdistill rain`: RAIN over a JSONL of prompts, each finished prompt written at once."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from ..rain.api.jobs import run_rain_job
from ..rain.strategies import STRATEGIES
from .rain_options import RainOptions, UnmergedRainJob, with_options
from .tables import print_metrics

ARGUMENTS = (UnmergedRainJob, RainOptions)


def run(config: UnmergedRainJob, options: Any) -> dict:
    """Run the job and print what it cost; returns the summary of `run_rain_job`."""
    job = with_options(config, options)
    summary = run_rain_job(job)
    if PartialState().is_main_process:
        print_metrics(STRATEGIES[job.rain_config().strategy].heading, {"all prompts": summary})
    return summary
