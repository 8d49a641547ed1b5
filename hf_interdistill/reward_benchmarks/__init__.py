"""Published benchmarks of reward models, scored as their authors score them; one module each, and this table."""

from __future__ import annotations

from ..utils.fields import nearest_name
from .items import Benchmark
from .judge_bench import JUDGE_BENCH, JUDGE_BENCH_CLAUDE
from .llmbar import LLMBAR
from .ppe import PPE_CORRECTNESS, PPE_HUMAN_PREFERENCE
from .reward_bench import REWARD_BENCH, REWARD_BENCH_WITH_PRIOR_SETS
from .reward_bench_2 import REWARD_BENCH_2
from .rm_bench import RM_BENCH

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        REWARD_BENCH,
        REWARD_BENCH_WITH_PRIOR_SETS,
        REWARD_BENCH_2,
        RM_BENCH,
        LLMBAR,
        JUDGE_BENCH,
        JUDGE_BENCH_CLAUDE,
        PPE_HUMAN_PREFERENCE,
        PPE_CORRECTNESS,
    )
}


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name.

    Raises:
        ValueError: there is none of that name; the message names the nearest one.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = nearest_name(name.lower().replace("-", "_"), BENCHMARKS)
    hint = "" if near is None else f" Did you mean `{near}`?"
    raise ValueError(f"There is no benchmark `{name}`.{hint} There are {', '.join(BENCHMARKS)}.")
