"""Commands in processes of their own: their trees end with a signal to the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.processes import environment_with

from hf_interdistill.utils.child_process import run_child
from hf_interdistill.utils.launching import launcher

# A launcher with a worker in its process group and one in a session of its own, as torch's are; each tells its id.
WORKER = """
import os, pathlib, signal, sys, time
name, is_deaf = sys.argv[1:]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if is_deaf == "deaf":
        signal.signal(number, signal.SIG_IGN)
    else:
        signal.signal(number, lambda number, frame: (pathlib.Path(f"{name}.got").write_text(str(number)), sys.exit()))
pathlib.Path(f"{name}.part").write_text(str(os.getpid()))
os.rename(f"{name}.part", f"{name}.pid")
time.sleep(120)
"""
TREE = """
import subprocess, sys
worker, kind = sys.argv[1:3]
words = [sys.executable, worker]
own = subprocess.Popen([*words, "own", kind], start_new_session=True)
subprocess.run([*words, "group", kind])
"""
START = """
import sys
from hf_interdistill.utils import launching
launching.launcher = lambda *given: ("tree.py", "worker.py", sys.argv[1])
sys.exit(launching.run_launched("reward", ["--num_processes", "2"]))
"""
NAMES = ("own", "group")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def started(tmp_path):
    """Starts the tree below `run_launched`; returns that process and those of the workers, once they are there."""
    for name, text in {"worker": WORKER, "tree": TREE, "start": START}.items():
        (tmp_path / f"{name}.py").write_text(text)
    running: list[psutil.Process] = []

    def start(kind: str = "plain", ignored: int | None = None) -> tuple[subprocess.Popen, list[psutil.Process]]:
        def prepare() -> None:  # whatever the tests themselves were started with
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

        words = [sys.executable, str(tmp_path / "start.py"), kind]
        quiet = {"env": environment_with(), "stderr": subprocess.DEVNULL}
        top = subprocess.Popen(words, cwd=tmp_path, preexec_fn=prepare, **quiet)
        running.append(psutil.Process(top.pid))
        wait_for(lambda: all((tmp_path / f"{name}.pid").exists() for name in NAMES))
        workers = [psutil.Process(int((tmp_path / f"{name}.pid").read_text())) for name in NAMES]
        running.extend(workers)
        return top, workers

    yield start
    for process in running:
        if process.is_running():
            process.kill()


def wait_for(is_time) -> None:
    for _ in range(3000):
        if is_time():
            return
        time.sleep(0.02)
    pytest.fail("it did not come")


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_whole_tree(number, started, tmp_path):
    top, workers = started()
    assert os.getpgid(workers[0].pid) != os.getpgid(workers[1].pid) != os.getpgid(top.pid)
    top.send_signal(number)
    assert top.wait(60) == 128 + number
    assert are_gone(workers)
    got = {name: (tmp_path / f"{name}.got").read_text() for name in NAMES}
    assert got == dict.fromkeys(NAMES, str(int(number))), "each worker has got the signal, and its time to end"


def test_a_second_signal_kills_what_the_first_did_not_end(started):
    top, workers = started("deaf")
    top.terminate()
    time.sleep(0.5)
    assert top.poll() is None and not are_gone(workers), "it waits for the end"
    top.terminate()
    assert top.wait(60) == 128 + signal.SIGTERM
    assert are_gone(workers)


def test_an_ignored_signal_stays_ignored(started):
    """As `nohup` starts a command."""
    top, workers = started(ignored=signal.SIGHUP)
    top.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert top.poll() is None and all(worker.is_running() for worker in workers)
    top.terminate()
    assert top.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize(("code", "status"), [("sys.exit(0)", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_a_command_that_ends_itself_keeps_its_status(code, status):
    before = [signal.getsignal(number) for number in SIGNALS]
    assert run_child([sys.executable, "-c", f"import os, sys; {code}"]) == status
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_error_leaves_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError):
        run_child(["no-such-program"])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_the_workers_of_accelerate_end_with_the_command(tmp_path):
    (tmp_path / "worker.py").write_text(
        "import os, pathlib, sys, time; name = sys.argv[1] + os.environ['RANK']\n"
        "pathlib.Path(name + '.part').write_text(str(os.getpid())); os.rename(name + '.part', name); time.sleep(300)\n"
    )
    words = [sys.executable, *launcher(2, None), str(tmp_path / "worker.py"), str(tmp_path / "rank")]
    code = f"from hf_interdistill.utils.child_process import run_child; run_child({words!r})"
    top = subprocess.Popen([sys.executable, "-c", code], env=environment_with(), stderr=subprocess.DEVNULL)
    wait_for(lambda: all((tmp_path / f"rank{rank}").exists() for rank in range(2)))
    workers = [psutil.Process(int((tmp_path / f"rank{rank}").read_text())) for rank in range(2)]
    top.terminate()
    assert top.wait(120) == 128 + signal.SIGTERM
    assert are_gone(workers)
