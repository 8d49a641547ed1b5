"""32 clients at once: no answer is lost or another's."""

from __future__ import annotations

import asyncio

import pytest
from support.serving import CLIENTS, ask_all, rows_of, served

from hf_interdistill.serving.app import Limits, RewardApp
from hf_interdistill.utils import servers


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

    async def pause(seconds):
        waits.append(seconds)
        await asyncio.sleep(0.01)

    monkeypatch.setattr(servers, "_pause", pause)
    with served(RewardApp(scorer, "tiny", limits=Limits(max_queue=8))) as url:
        found = ask_all(url, turns=1, retries=100_000)  # pauses are short here: how many it takes is up to the machine
    assert waits and len(found) == CLIENTS
    for client in (0, 13, 31):
        assert found[client, 0] == pytest.approx(twin(*rows_of(client, 0)), abs=1e-5)
