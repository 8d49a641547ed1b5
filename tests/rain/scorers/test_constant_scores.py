"""A scorer that gives all texts one value causes a warning that names the remedy."""

import pytest
from support.rain import build_causal
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.scorers.builtin import FunctionScorer, RewardModelScorer
from hf_interdistill.rain.scorers.score_cache import ScoreCache, ScoreRequest
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer


def score(scorer, texts, size=3):
    cache = ScoreCache(scorer)
    for start in range(0, len(texts), size):
        cache.score([ScoreRequest(None, "p", text) for text in texts[start : start + size]], ())


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "does not guide the search" in record.getMessage()]


def test_equal_values_are_warned_of_once_and_others_not(caplog):
    texts = [f"text {number}" for number in range(20)]
    score(FunctionScorer(lambda texts: [0.25] * len(texts)), texts)
    (message,) = warnings(caplog)
    assert message.startswith("FunctionScorer gave the same value, 0.25, to all of the first 9 texts")
    caplog.clear()
    score(FunctionScorer(lambda texts: [0.25 + 0.01 * text.endswith(" 8") for text in texts]), texts)
    assert not warnings(caplog)
    score(FunctionScorer(lambda texts: [0.25] * len(texts)), texts[:7])
    assert not warnings(caplog)


def test_rewards_beyond_the_scale_name_it_and_calibration_fixes_it(caplog):
    def reward(prompts, completions):
        return [100.0 + len(completion) for completion in completions]

    texts = ["a" * number for number in range(1, 13)]
    score(RewardModelScorer(reward), texts)
    (message,) = warnings(caplog)
    assert "many times `scale` (1) away from `center` (0)" in message and "RewardModelScorer.calibrated(" in message
    caplog.clear()
    mended = RewardModelScorer.calibrated(reward, ["p"] * 12, texts)
    assert mended.center == pytest.approx(106.5) and mended.scale == pytest.approx(3.6056, abs=1e-4)
    score(mended, texts)
    assert not warnings(caplog)
    with pytest.raises(ValueError, match="at least two finite rewards that differ"):
        RewardModelScorer.calibrated(lambda prompts, completions: [1.0, 1.0], ["p"] * 2, texts[:2])


@pytest.mark.parametrize(("value", "is_told"), [(0.0, True), (-1.0, True), (1.0, False)])
def test_hard_votes_that_are_all_alike_name_the_other_vote(value, is_told, caplog, monkeypatch):
    judge = SelfEvaluationScorer().bind(build_causal(max_position_embeddings=4096), tokenizer_of("bytes"))
    monkeypatch.setattr(judge, "score", lambda exchanges: [value] * len(exchanges))
    monkeypatch.setattr(judge, "costs", lambda count: FunctionScorer(len).costs(count))
    score(judge, [f"text {number}" for number in range(9)])
    assert bool(warnings(caplog)) == is_told
    assert not is_told or 'judge_vote="probability"' in warnings(caplog)[0]
