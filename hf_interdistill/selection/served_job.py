"""Best-of-n on servers: prompts are sampled and scored at the same time, and each is finished by itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

_IN_FLIGHT = 512  # candidates that a server is asked for at the same time
Row = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """What may be under way at the same time.

    Args:
        servers: that sample. calls: of the scorers. candidates: scored in a call, beyond those of one prompt.
    """

    servers: int
    calls: int
    candidates: int


async def finished_rows(
    rows: Sequence[Row],
    n: int,
    sample: Callable[[Row], Awaitable[Row]] | None,
    score: Callable[[list[Row]], list[Row]],
    places: Places,
) -> AsyncGenerator[Row, None]:
    """Rows with candidates and scores, each when it is finished.

    What is sampled is scored as soon as a call is free, while other prompts are sampled. After a failure no prompt is
    begun: what is under way is finished first, and what is sampled is scored, unless the scorers failed.

    Args:
        rows: the prompts; with their completions where nothing is sampled. n: candidates of a prompt to sample.
        sample: adds the completions of a prompt, or an error; `None` where rows have them.
        score: adds rewards, or an error; called in threads. places: see `Places`.

    Raises:
        Exception: what `sample` or `score` raised first, after the last finished row.
    """
    waiting, sampled = deque(rows if sample else ()), deque(() if sample else rows)
    sampling, scoring = set[asyncio.Task](), set[asyncio.Future]()
    most = max(1, _IN_FLIGHT * places.servers // n)
    problem: BaseException | None = None
    is_scored = True  # until the scorers fail
    executor = ThreadPoolExecutor(places.calls, thread_name_prefix="interdistill-scoring")
    try:
        while True:
            while waiting and problem is None and len(sampling) < most and len(sampled) < most:
                sampling.add(asyncio.ensure_future(sample(waiting.popleft())))  # type: ignore[misc]
            while sampled and is_scored and len(scoring) < places.calls:
                group = _take(sampled, places.candidates)
                scoring.add(asyncio.get_running_loop().run_in_executor(executor, score, group))
            if not sampling and not scoring:
                break
            done, _ = await asyncio.wait({*sampling, *scoring}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is not None:
                    problem = problem or error
                    is_scored = is_scored and task not in scoring
                    continue
                if task in scoring:
                    for row in task.result():
                        yield row
                elif "completions" in task.result():
                    sampled.append(task.result())
                else:
                    yield task.result()
            sampling -= done
            scoring -= done
            if not is_scored:
                for task in sampling:
                    task.cancel()
                await asyncio.gather(*sampling, return_exceptions=True)
                sampling.clear()
        if problem is not None:
            raise problem
    finally:
        for task in sampling:
            task.cancel()
        await asyncio.gather(*sampling, return_exceptions=True)
        executor.shutdown(wait=False, cancel_futures=True)


def _take(sampled: deque[Row], candidates: int) -> list[Row]:
    """Whole prompts with at most so many candidates, but at least one prompt."""
    group = [sampled.popleft()]
    size = len(group[0]["completions"])
    while sampled and size + len(sampled[0]["completions"]) <= candidates:
        size += len(sampled[0]["completions"])
        group.append(sampled.popleft())
    return group
