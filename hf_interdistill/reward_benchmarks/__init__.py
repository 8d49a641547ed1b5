"""Published benchmarks of reward models, scored as their authors score them; one module each, and this table."""

from __future__ import annotations

import difflib

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
    near = difflib.get_close_matches(name.lower().replace("-", "_"), BENCHMARKS, n=1, cutoff=0.4)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise ValueError(f"There is no benchmark `{name}`.{hint} There are {', '.join(BENCHMARKS)}.")
