"""Texts are judged once, and some of them before a search asks."""

import pytest

from hf_interdistill.rain.api.decoder import RainDecoder
from hf_interdistill.rain.results.views import walk
from hf_interdistill.rain.scorers.base import Scorer, ScorerError, WeightedScorer, as_scorer
from hf_interdistill.rain.scorers.score_cache import _JUDGED_TOGETHER, ScoreCache, ScoreRequest
from rain.conftest import PROMPTS, encode, quick_config
from rain.test_judge import SHORT


class Recorder(Scorer):
    """Values that depend on the text; remembers what it was given."""

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
    """Another scorer; remembers how many texts each call had."""

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


def questions(texts, prompt="p"):
    return [ScoreRequest(None, prompt, text) for text in texts]


def test_a_call_that_is_made_anyway_is_filled_with_what_may_come():
    scorer = Recorder()
    verdicts = ScoreCache(scorer)
    asked, ahead = questions(["a", "bb", "a"]), questions(["bb", "c" * 3, "c" * 3, *("d" * n for n in range(4, 30))])
    session = verdicts.judge(asked, ahead)
    assert scorer.calls == [["a", "bb", *("c" * 3, *("d" * n for n in range(4, 9)))]]
    assert len(scorer.calls[0]) == _JUDGED_TOGETHER == len(session.questions) == len(session.costs.tokens)
    assert [verdicts.of(question) for question in asked] == [0.01, 0.02, 0.01]
    assert verdicts.judge(questions(["ccc"]), ahead) is None and len(scorer.calls) == 1
    # The same text after another prompt is another matter.
    verdicts.judge(questions(["a"], prompt="q"), ())
    assert scorer.calls[1:] == [["a"]]


def test_more_is_asked_than_there_is_room_for():
    scorer = Recorder()
    asked = questions(["x" * n for n in range(1, _JUDGED_TOGETHER + 4)])
    ScoreCache(scorer).judge(asked, questions(["ahead"]))
    assert scorer.calls == [[question.completion for question in asked]]


def test_verdicts_are_forgotten_with_the_last_search_of_a_prompt():
    verdicts = ScoreCache(Recorder())
    for _ in range(2):
        verdicts.open("p")
    verdicts.judge(questions(["a", "b"]), ())
    verdicts.close("p")
    assert len(verdicts) == 2
    verdicts.close("p")
    assert len(verdicts) == 0


def test_a_text_that_nobody_asked_for_does_not_end_a_search():
    scorer = Recorder(fails_at=["bad"])
    verdicts = ScoreCache(scorer)
    verdicts.judge(questions(["a"]), questions(["bad"]))
    assert scorer.calls == [["a", "bad"], ["a"]] and verdicts.of(questions(["a"])[0]) == 0.01
    with pytest.raises(ScorerError, match="too long"):
        verdicts.judge(questions(["bad"]), ())


def test_who_is_asked_ahead():
    own = as_scorer("self")
    assert own.supports_speculation and not as_scorer(lambda texts: [0.0] * len(texts)).supports_speculation
    assert WeightedScorer([(own, 1.0), (Recorder(), 2.0)]).supports_speculation
    assert not WeightedScorer([(own, 1.0), (lambda texts: [0.0] * len(texts), 2.0)]).supports_speculation


@pytest.mark.parametrize("scorer", ["self", "recorder"])
def test_judging_ahead_changes_the_calls_and_not_the_tree(scorer, model, tokenizer):
    outputs, calls = [], []
    for ahead, supports_speculation in ((0, True), (8, False), (8, True)):
        chosen = Counted(
            as_scorer("self", SHORT, "probability") if scorer == "self" else Recorder(), supports_speculation
        )
        decoder = RainDecoder(tokenizer, quick_config(num_speculative=ahead, iterations=20, min_visits=6), chosen)
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
    assert len(calls[2]) < 0.7 * len(calls[1]) and max(calls[2]) <= _JUDGED_TOGETHER
    for output, total in zip(outputs, judged, strict=True):
        assert sum(record.stats["judge_calls"] for record in output.rain) == total
