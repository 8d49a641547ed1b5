"""The queue: batches across requests, none lost, none mixed up, nothing kept."""

from __future__ import annotations

import random
import re
import threading

import pytest
from starlette.testclient import TestClient

from hf_interdistill.serving.app import Limits, RewardApp
from hf_interdistill.serving.queue import ScoringQueue


def texts_of(seed: int, count: int) -> list[str]:
    draw, words = random.Random(seed), ["a", "capital", "of", "the", "north", "is", "so", "but", "why"]
    return [" ".join(draw.choices(words, k=draw.randint(1, 40))) for _ in range(count)]


def queue_of(scorer, **options) -> ScoringQueue:
    return ScoringQueue(scorer, **{"max_batch_tokens": 4096, "max_rows": 1000, "max_wait": 0.0, **options})


def batches_of(scorer) -> list[list[int]]:
    """Lengths of the rows of each batch that is read from here on."""
    batches, read = [], scorer.score_ids

    def score_ids(rows):
        batches.append([len(row) for row in rows])
        return read(rows)

    scorer.score_ids = score_ids
    return batches


def held(queue) -> threading.Event:
    """Makes the queue wait with its first request, so that others gather; set the event to go on."""
    entered, go = threading.Event(), threading.Event()

    def encode():
        entered.set()
        assert go.wait(30)
        return [[5, 6]]

    queue.submit(1, encode)
    assert entered.wait(30)
    return go


def test_requests_share_batches_and_get_their_own_rewards(scorer, twin):
    requests = [texts_of(seed, 1 + seed % 5) for seed in range(12)]
    queue, batches = queue_of(scorer), batches_of(scorer)
    go = held(queue)
    futures = [queue.submit(len(texts), lambda t=texts: scorer.encode_rows([None] * len(t), t)) for texts in requests]
    go.set()
    for texts, future in zip(requests, futures, strict=True):
        assert future.result(60).rewards == pytest.approx(twin([None] * len(texts), texts), abs=1e-5)
        assert future.result().lengths == [len(twin.encode(None, text, {})) for text in texts]
    queue.close()
    rows = sum(map(len, requests)) + 1
    assert sum(map(len, batches)) == rows
    assert len(batches) <= rows // scorer.batch_size + 3 < len(requests)


def test_a_batch_holds_the_oldest_row_and_those_nearest_in_length(scorer):
    scorer.batch_size = 3
    queue, batches = queue_of(scorer), batches_of(scorer)
    go = held(queue)
    lengths = [20, 3, 40, 21, 2, 19, 39]
    futures = [queue.submit(1, lambda n=n: [[7] * n]) for n in lengths]
    go.set()
    for future in futures:
        future.result(60)
    queue.close()
    assert [sorted(batch) for batch in batches] == [[2], [19, 20, 21], [2, 3, 39], [40]]


def test_a_batch_is_not_mostly_padding(scorer):
    queue, batches = queue_of(scorer), batches_of(scorer)
    go = held(queue)
    futures = [queue.submit(1, lambda n=n: [[7] * n]) for n in (400, 100, 110, 380)]
    go.set()
    for future in futures:
        future.result(60)
    queue.close()
    assert [sorted(batch) for batch in batches[1:]] == [[380, 400], [100, 110]]


def test_a_batch_stays_within_its_tokens(scorer):
    queue, batches = queue_of(scorer, max_batch_tokens=50), batches_of(scorer)
    go = held(queue)
    futures = [queue.submit(1, lambda n=n: [[7] * n]) for n in (30, 25, 24, 12, 12, 12, 50, 1)]
    go.set()
    for future in futures:
        future.result(60)
    too_long = queue.submit(1, lambda: [[7] * 51])
    with pytest.raises(ValueError, match="51 tokens, more than max_length=50"):
        too_long.result(60)
    queue.close()
    assert all(len(batch) * max(batch) <= 50 for batch in batches)
    assert max(map(len, batches)) >= 3


def test_a_first_row_waits_for_others_only_so_long(scorer):
    queue, batches = queue_of(scorer, max_wait=30.0), batches_of(scorer)
    futures = [queue.submit(1, lambda: [[7, 8]]) for _ in range(scorer.batch_size)]  # a whole batch: it waits no more
    for future in futures:
        future.result(20)
    queue.close()
    assert batches == [[2] * scorer.batch_size]


def test_closing_finishes_what_waits_and_refuses_more(scorer):
    queue = queue_of(scorer)
    go = held(queue)
    futures = [queue.submit(2, lambda: [[7, 8], [9]]) for _ in range(5)]
    closing = threading.Thread(target=queue.close)
    closing.start()
    while queue.is_alive:
        pass
    with pytest.raises(Exception, match="The server is stopping"):
        queue.submit(1, lambda: [[7]])
    go.set()
    closing.join(60)
    assert [len(future.result(0).rewards) for future in futures] == [2] * 5


def test_nothing_is_kept_of_answered_and_cancelled_requests(scorer):
    queue = queue_of(scorer)
    for _ in range(3):
        go = held(queue)
        futures = [queue.submit(2, lambda: [[7, 8], [9]]) for _ in range(10)]
        futures[3].cancel()
        go.set()
        for future in futures[:3] + futures[4:]:
            future.result(60)
    queue.close()
    assert queue._held == 0 and queue._rows == [] and queue._requests == [] and queue._open == set()


def test_metrics_count_rows_tokens_and_answers(scorer, twin):
    with TestClient(RewardApp(scorer, "tiny", limits=Limits()).asgi) as client:
        texts = texts_of(1, 6)
        assert client.post("/score", json={"completions": texts}).status_code == 200
        client.post("/score", json={})
        client.post("/classify", json={"input": [5, 6]})
        printed = client.get("/metrics").text
    values = dict(re.findall(r"^(interdistill_\S+) (\S+)$", printed, re.MULTILINE))
    assert float(values['interdistill_requests_total{endpoint="/score",status="200"}']) == 1
    assert float(values['interdistill_requests_total{endpoint="/score",status="400"}']) == 1
    assert float(values["interdistill_rows_total"]) == 7
    assert float(values["interdistill_tokens_total"]) == sum(len(twin.encode(None, text, {})) for text in texts) + 2
    assert float(values["interdistill_waiting_rows"]) == 0
    assert float(values['interdistill_request_seconds_count{endpoint="/classify"}']) == 1


def test_the_health_says_when_the_thread_has_ended(scorer):
    app = RewardApp(scorer, "tiny")
    with TestClient(app.asgi) as client:
        assert client.get("/health").status_code == 200
        app.queue.metrics.count_batch = None  # a fault of the queue itself
        assert client.post("/score", json={"completions": ["a"]}).status_code == 500
        app.queue._thread.join(30)
        assert client.get("/health").status_code == 503
        assert client.post("/score", json={"completions": ["a"]}).status_code == 503
