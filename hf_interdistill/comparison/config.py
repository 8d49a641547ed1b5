"""Settings of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..reward_benchmarks import BENCHMARKS
from ..utils.fields import require_kinds, require_positive
from ..utils.launching import find_accelerate_config
from ..utils.sources import require_file

# Names of what a comparison trains: the baseline, and the recipe, with alignment or without.
BASELINE, INTERACTION, UNALIGNED = "baseline", "interaction", "recipe"
OVERLAP_CHOICES = ("refuse", "drop")


@dataclass(frozen=True)
class CompareConfig:
    """How reward models are compared. What is trained is in recipes of `interdistill reward`.

    Args:
        output: folder for the page (`index.html`), `comparison.json`, the log, and a folder for each run. Finished
            runs that it holds are not trained again.
        seeds: how many seeds each model is trained with: the recipe's `seed` and those after it.
        recipes: further recipes to compare, each as NAME=FILE.
        teacher_config: recipe of `interdistill teacher`, where the recipe's `teacher_model` is an encoder that is yet
            to be fitted. Without it the teacher is fitted with the defaults.
        held_out: share of the pairs that is held out for scoring, by whole prompts, where the data have no test split;
            by default a fifth.
        overlap: what happens if scored prompts are also trained on: `refuse` (an error), or `drop` (those
            pairs are not scored, and the page counts them).
        benchmark: published benchmarks to score as well; `--help` lists them.
        benchmark_data: for each benchmark a file or folder in its published format; by default that of the Hub.
        diagnosis_pairs: pairs on which `diagnose` looks at each model's first seed; 0: no diagnosis.
        resamples: bootstrap resamples behind each interval.
        batch_size: texts per forward pass in scoring.
        device: where scoring runs (`cpu`, `cuda`, ...); by default a GPU if there is one.
        num_processes: processes of each training, which accelerate starts; one, or as many as `accelerate_config`
            says, if not given.
        accelerate_config: configuration of accelerate for these processes.
        overwrite: train again what an earlier comparison in `output` trained with other settings or data.
    """

    output: str = field(metadata={"help": "Folder for the page, the log and all runs."})
    seeds: int = field(default=3, metadata={"help": "How many seeds each model is trained with."})
    recipes: list[str] | None = field(default=None, metadata={"help": "Further recipes, each as NAME=FILE."})
    teacher_config: str | None = field(
        default=None, metadata={"help": "Recipe of `interdistill teacher`, for a teacher that is yet to be fitted."}
    )
    held_out: float | None = field(
        default=None, metadata={"help": "Share of pairs held out where there is no test split; default: a fifth."}
    )
    overlap: str = field(
        default="refuse",
        metadata={"help": "What happens to scored prompts that are trained on.", "choices": list(OVERLAP_CHOICES)},
    )
    benchmark: list[str] | None = field(default=None, metadata={"help": f"Benchmarks: {', '.join(BENCHMARKS)}."})
    benchmark_data: list[str] | None = field(
        default=None, metadata={"help": "A file or folder per benchmark; default: the Hub."}
    )
    diagnosis_pairs: int = field(default=200, metadata={"help": "Pairs for the diagnosis; 0: none."})
    resamples: int = field(default=2000, metadata={"help": "Bootstrap resamples behind each interval."})
    batch_size: int = field(default=16, metadata={"help": "Texts per forward pass in scoring."})
    device: str | None = field(default=None, metadata={"help": "Where scoring runs; default: a GPU if there is one."})
    num_processes: int | None = field(
        default=None, metadata={"help": "Processes of each training, which accelerate starts."}
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Configuration of accelerate for the trainings."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Train again where settings or data differ."})

    def __post_init__(self):
        require_kinds(self)
        for name in ("seeds", "resamples", "batch_size"):
            require_positive(name, getattr(self, name))
        require_positive("num_processes", self.num_processes, is_optional=True)
        if self.diagnosis_pairs < 0:
            raise ValueError(f"`diagnosis_pairs` is {self.diagnosis_pairs}, but must be 0 (none) or more.")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ValueError(f"`held_out` is {self.held_out}, but must lie between 0 and 1.")
        if self.overlap not in OVERLAP_CHOICES:
            raise ValueError(f"`overlap` is {self.overlap!r}, but must be one of {', '.join(OVERLAP_CHOICES)}.")
        benchmarks = self.benchmark or []
        if len(set(benchmarks)) != len(benchmarks):
            raise ValueError(f"`benchmark` names one twice: {', '.join(benchmarks)}.")
        if self.benchmark_data is not None and len(self.benchmark_data) != len(benchmarks):
            raise ValueError(
                f"{len(benchmarks)} benchmarks and {len(self.benchmark_data)} `benchmark_data`: give one for each, in "
                "order."
            )
        if self.teacher_config is not None:
            require_file("teacher_config", self.teacher_config)
        if self.accelerate_config is not None:
            find_accelerate_config(self.accelerate_config)
