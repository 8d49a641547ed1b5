"""`interdistill best-of-n`: sample or read candidates, score them, keep the best."""

from __future__ import annotations

from accelerate import PartialState

from ..selection.config import BestOfNConfig
from ..selection.job import run_best_of_n
from .tables import print_metrics

ARGUMENTS = (BestOfNConfig,)


def run(config: BestOfNConfig) -> dict:
    """Run the job and print a summary; returns the summary of `run_best_of_n`."""
    summary = run_best_of_n(config)
    if PartialState().is_main_process:
        print_metrics(f"Best of n in {config.output}", {"all prompts": summary})
    return summary
