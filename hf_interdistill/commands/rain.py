"""`interdistill rain`: RAIN over a JSONL of prompts, each finished prompt written at once."""

from __future__ import annotations

from accelerate import PartialState

from ..rain.api.jobs import RainJobConfig, run_rain_job
from .tables import print_metrics

ARGUMENTS = (RainJobConfig,)


def run(config: RainJobConfig) -> dict:
    """Run the job and print what it cost; returns the summary of `run_rain_job`."""
    summary = run_rain_job(config)
    if PartialState().is_main_process:
        print_metrics("RAIN", {"all prompts": summary})
    return summary
