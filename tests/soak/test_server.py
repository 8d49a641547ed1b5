"""A server under 32 clients for a minute: its memory stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from support.models import build_student
from support.serving import ServerProcess, ask_all
from support.tokenizers import tokenizer_of

pytestmark = [pytest.mark.soak, pytest.mark.slow]


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def test_memory_stays_flat(tmp_path):
    build_student("llama").save_pretrained(tmp_path)
    tokenizer_of("bytes").save_pretrained(tmp_path)
    with ServerProcess("--model", str(tmp_path)) as server:
        used = []
        for _ in range(6):
            ask_all(server.url, turns=40)
            used.append(resident_mib(server.process.pid))
        waiting = requests.get(f"{server.url}/metrics", timeout=10).text
    print("MiB after each of 6 rounds of 1,280 requests:", [round(each, 1) for each in used])
    assert "interdistill_waiting_rows 0.0" in waiting
    assert used[-1] - used[1] < 10
