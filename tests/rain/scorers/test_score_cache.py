"""Each text is scored once, and some texts are scored speculatively."""

import pytest
from support.judges import SHORT
from support.rain import PROMPTS, encode, quick_config

from hf_interdistill.rain.api.decoder import RainDecoder
from hf_interdistill.rain.results.views import walk
from hf_interdistill.rain.scorers.base import Scorer, ScorerError
from hf_interdistill.rain.scorers.resolve import as_scorer
from hf_interdistill.rain.scorers.score_cache import _FILLED_BATCH_SIZE, ScoreCache, ScoreRequest
from hf_interdistill.rain.scorers.weighted import WeightedScorer


class Recorder(Scorer):
    """Values that depend on the text; records the texts of each call."""

    supports_speculation = True

    def __init__(self, fails_at=()):
        self.calls, self.fails_at = [], fails_at

    def score(self, exchanges):
        texts = [exchange.completion for exchange in exchanges]
        self.calls.append(texts)
        if any(text in self.fails_at for text in texts):
            raise ValueError("too long")
        return [len(text) / 100 for text in texts]


class Counted(Scorer):
    """Wraps a scorer; records the number of texts of each call."""

    def __init__(self, inner, supports_speculation):
        self.inner, self.supports_speculation, self.calls = inner, supports_speculation, []

    def bind(self, model, tokenizer):
        self.inner = self.inner.bind(model, tokenizer)
        return self

    def score(self, exchanges):
        self.calls.append(len(exchanges))
        return self.inner.score(exchanges)

    def costs(self, count):
        return self.inner.costs(count)


def requests_for(texts, prompt="p"):
    return [ScoreRequest(None, prompt, text) for text in texts]


def test_a_necessary_call_is_filled_with_speculative_requests():
    scorer = Recorder()
    cache = ScoreCache(scorer)
    requests = requests_for(["a", "bb", "a"])
    speculative = requests_for(["bb", "c" * 3, "c" * 3, *("d" * n for n in range(4, 30))])
    batch = cache.score(requests, speculative)
    assert scorer.calls == [["a", "bb", *("c" * 3, *("d" * n for n in range(4, 9)))]]
    assert len(scorer.calls[0]) == _FILLED_BATCH_SIZE == len(batch.requests) == len(batch.costs.tokens)
    assert [cache.value_of(request) for request in requests] == [0.01, 0.02, 0.01]
    assert cache.score(requests_for(["ccc"]), speculative) is None and len(scorer.calls) == 1
    # The same text after another prompt is scored again.
    cache.score(requests_for(["a"], prompt="q"), ())
    assert scorer.calls[1:] == [["a"]]


def test_a_full_call_takes_no_speculative_request():
    scorer = Recorder()
    requests = requests_for(["x" * n for n in range(1, _FILLED_BATCH_SIZE + 4)])
    ScoreCache(scorer).score(requests, requests_for(["speculative"]))
    assert scorer.calls == [[request.completion for request in requests]]


def test_scores_are_evicted_with_the_last_search_of_a_prompt():
    cache = ScoreCache(Recorder())
    for _ in range(2):
        cache.acquire("p")
    cache.score(requests_for(["a", "b"]), ())
    cache.release("p")
    assert len(cache) == 2
    cache.release("p")
    assert len(cache) == 0


def test_a_failing_speculative_text_does_not_end_a_search():
    scorer = Recorder(fails_at=["bad"])
    cache = ScoreCache(scorer)
    cache.score(requests_for(["a"]), requests_for(["bad"]))
    assert scorer.calls == [["a", "bad"], ["a"]] and cache.value_of(requests_for(["a"])[0]) == 0.01
    with pytest.raises(ScorerError, match="too long"):
        cache.score(requests_for(["bad"]), ())


def test_which_scorers_support_speculation():
    own = as_scorer("self")
    assert own.supports_speculation and not as_scorer(lambda texts: [0.0] * len(texts)).supports_speculation
    assert WeightedScorer([(own, 1.0), (Recorder(), 2.0)]).supports_speculation
    assert not WeightedScorer([(own, 1.0), (lambda texts: [0.0] * len(texts), 2.0)]).supports_speculation


@pytest.mark.parametrize("scorer", ["self", "recorder"])
def test_speculative_scores_change_the_calls_and_not_the_tree(scorer, model, tokenizer):
    outputs, calls = [], []
    for count, supports_speculation in ((0, True), (8, False), (8, True)):
        chosen = Counted(
            as_scorer("self", SHORT, "probability") if scorer == "self" else Recorder(), supports_speculation
        )
        decoder = RainDecoder(tokenizer, quick_config(num_speculative=count, iterations=20, min_visits=6), chosen)
        inputs = encode(tokenizer, PROMPTS[:2])
        outputs.append(
            model.generate(**inputs, custom_generate=decoder, max_new_tokens=16, return_dict_in_generate=True)
        )
        calls.append(chosen.calls)

    nodes = [[node for record in output.rain for node, _, _ in walk(record.tree.root)] for output in outputs]
    for each in nodes[1:]:
        assert [(node["text"], node["true_visits"]) for node in each] == [
            (node["text"], node["true_visits"]) for node in nodes[0]
        ]
        values = [node["value"] for node in nodes[0]]
        assert [node["value"] for node in each] == pytest.approx(values, abs=1e-4)
    judged = [output.rain_totals["judge_calls"] for output in outputs]
    assert judged == [sum(each) for each in calls] and judged[0] == judged[1] <= judged[2]
    assert len(calls[2]) < 0.7 * len(calls[1]) and max(calls[2]) <= _FILLED_BATCH_SIZE
    for output, total in zip(outputs, judged, strict=True):
        assert sum(record.stats["judge_calls"] for record in output.rain) == total
