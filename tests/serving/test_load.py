"""32 clients at once: no answer is lost or another's, and the memory of the server stays as it is."""

from __future__ import annotations

import threading

import pytest
import requests
from support.models import build_student
from support.serving import ServerProcess, served
from support.tokenizers import tokenizer_of

from hf_interdistill import RemoteRewardScorer
from hf_interdistill.serving.app import Limits, RewardApp

CLIENTS = 32


def rows_of(client: int, turn: int) -> tuple[list[str], list[str]]:
    """Prompts and completions of many lengths; no two rows of all clients are alike."""
    names = [f"{client} {turn} {number}" for number in range(1 + (client + turn) % 5)]
    return [f"Question {name}: " for name in names], [f"so {name} " * (1 + (client * 7 + turn) % 11) for name in names]


def ask_all(url: str, turns: int) -> dict[tuple[int, int], list[float]]:
    """Rewards by client and turn; each client has one connection, and sends a request when the last is answered."""
    found: dict[tuple[int, int], list[float]] = {}

    def client(number: int) -> None:
        scorer = RemoteRewardScorer(url, retries=50)
        for turn in range(turns):
            found[number, turn] = scorer(*rows_of(number, turn))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    return found


def test_no_answer_is_lost_or_anothers(scorer, twin):
    with served(RewardApp(scorer, "tiny", limits=Limits(max_queue=4096))) as url:
        found = ask_all(url, turns=3)
    assert len(found) == CLIENTS * 3
    order = sorted(found)
    rows = [rows_of(*key) for key in order]
    expected = iter(
        twin([text for prompts, _ in rows for text in prompts], [text for _, each in rows for text in each])
    )
    for key, (asked, _) in zip(order, rows, strict=True):
        assert found[key] == pytest.approx([next(expected) for _ in asked], abs=1e-5), key


def test_a_queue_that_is_too_small_delays_and_loses_nothing(scorer, twin, monkeypatch):
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        threading.Event().wait(0.01)

    monkeypatch.setattr("urllib3.util.retry.time.sleep", sleep)
    with served(RewardApp(scorer, "tiny", limits=Limits(max_queue=8))) as url:
        found = ask_all(url, turns=1)
    assert waits and len(found) == CLIENTS
    for client in (0, 13, 31):
        assert found[client, 0] == pytest.approx(twin(*rows_of(client, 0)), abs=1e-5)


def resident_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


@pytest.mark.slow
@pytest.mark.soak
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
