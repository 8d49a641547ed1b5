"""Runs a command in a process that does not outlive this one's signals."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def run_child(words: Sequence[str], **options: Any) -> int:
    """Run a command to its end, and pass the signals on that would end this process alone.

    The command has a session of its own: a terminal's Ctrl-C would else reach it twice. The first signal goes to its
    process group, and later to what it leaves behind in other sessions, where torch's launcher puts its workers. The
    end of all is waited for. A second signal kills them.

    Args:
        words: the command. options: of `subprocess.Popen`.

    Returns:
        The exit status; minus the signal that ended the command.

    Raises:
        KeyboardInterrupt: SIGINT was received.
        SystemExit: another signal was received; with the status that a shell gives, 128 and the signal's number.
    """
    received: list[int] = []
    tree: set[psutil.Process] = set()
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: Any = None) -> None:
        received.append(number)
        if process is not None:
            send(number)

    def send(number: int) -> None:
        assert process is not None
        tree.update(_descendants(process.pid))
        if len(received) == 1:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            return
        for each in _running(tree):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        if process.poll() is None:
            process.kill()

    with _handled(pass_on):
        process = subprocess.Popen(words, start_new_session=True, **options)
        if received:  # before there was a process
            send(received[0])
        status = process.wait()
        if received:
            _end_rest(tree, process.pid, received[0])
    if not received:
        return status
    if received[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + received[0])


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle the signals that are not ignored (as `nohup` has SIGHUP ignored); Python allows it in the main thread."""
    earlier = {number: signal.getsignal(number) for number in _SIGNALS}
    is_main = threading.current_thread() is threading.main_thread()
    own = [number for number in _SIGNALS if is_main and earlier[number] not in (signal.SIG_IGN, None)]
    for number in own:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in own:
            signal.signal(number, earlier[number])


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _running(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; a container without an init process keeps ended ones as zombies."""
    found = []
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            found += [each] if each.is_running() and each.status() != psutil.STATUS_ZOMBIE else []
    return found


def _end_rest(processes: set[psutil.Process], group: int, number: int) -> None:
    """Send a signal to those that are in another process group than the one that has got it; wait for all."""
    for each in _running(processes):
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(each.pid) != group:
                each.send_signal(number)
    while running := _running(processes):
        psutil.wait_procs(running, timeout=0.5)
