"""A real vLLM server on loopback, in an environment of its own (`VLLM_PYTHON`, see `make test-server`)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STARTS_WITHIN = 600  # seconds; a minute on two idle cores
_DROPPED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONPATH", "VIRTUAL_ENV")
_SETTINGS = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
CLASSIFIER = ("--runner", "pooling", "--convert", "classify", "--pooler-config", '{"use_activation": false}')


@contextmanager
def vllm(folder: str | Path, log: Path, *flags: str) -> Iterator[str]:
    """The address of a server that has a model in float32 under the name `lm`.

    Args:
        folder: the model. log: file for what the server prints. flags: further ones.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "lm", "--dtype", "float32"]
    command += ["--enforce-eager"]  # compiling the model takes minutes
    # vLLM 0.32 on a CPU ends with an error when it reads the prompt of a seeded request in several steps.
    command += ["--no-enable-chunked-prefill"]
    environment = {name: value for name, value in os.environ.items() if name not in _DROPPED} | _SETTINGS
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *flags], stdout=output, stderr=output, env=environment, cwd=log.parent, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < end:
        assert process.poll() is None, f"vLLM ended at the start: {log.read_text(errors='replace')[-3000:]}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"vLLM did not start: {log.read_text(errors='replace')[-3000:]}")
