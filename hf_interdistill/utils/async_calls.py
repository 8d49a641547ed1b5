"""Runs asynchronous code from synchronous code, even where an event loop is already running (a notebook)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


class _LoopThread:
    """An event loop in a thread of its own, closed at the end of a `with` block."""

    def __enter__(self) -> _LoopThread:
        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="interdistill-requests")
        return self

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; an interrupt of the caller cancels it."""
        task = self._thread.submit(self._loop.run_until_complete, coroutine)
        try:
            return task.result()
        except BaseException:
            if not task.done():
                self._loop.call_soon_threadsafe(self._cancel_all)
            raise

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def __exit__(self, *error) -> None:
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _close(self) -> None:
        try:
            self._cancel_all()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine."""
    with _LoopThread() as thread:
        return thread.call(coroutine)


def iterate(make: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
    """The items of an asynchronous generator; it advances while the caller waits for the next one.

    Args:
        make: makes the generator. It is closed when the caller stops early.
    """
    with _LoopThread() as thread:
        items = make()

        async def following() -> T:
            return await anext(items, _END)

        try:
            while (item := thread.call(following())) is not _END:
                yield item
        finally:
            thread.call(items.aclose())
