"""Where texts end, why, and what they contain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import tokenizer_of

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.engine.stopping import StopChecker, StopConditions


def rules(kind="bytes", prompt="Tell me", limit=50, **changes):
    tokenizer = tokenizer_of(kind)
    ids = tuple(tokenizer(prompt)["input_ids"])
    return StopChecker(ids, tokenizer, RainConfig(**changes), StopConditions(limit, frozenset({2}))), tokenizer


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_texts_keep_their_leading_space(kind):
    texts, tokenizer = rules(kind)
    whole = tokenizer("Tell me how to bake bread")["input_ids"][len(texts.prompt_ids) :]
    assert texts.completion(whole) == " how to bake bread"
    parts = [texts.fragment(whole[:number], whole[number : number + 1]) for number in range(len(whole))]
    assert "".join(parts) == " how to bake bread"


def test_the_first_of_several_markers_cuts_the_text():
    texts, tokenizer = rules(turn_markers=("Human:", "USER:"))
    tokens = tokenizer(" well USER: so Human: x")["input_ids"]
    assert texts.completion(tokens) == " well "
    ends = [number for number in range(1, len(tokens) + 1) if texts.finish_reason(tokens[:number]) == "turn"]
    assert tokenizer.decode(tokens[: ends[0]]).endswith("USER:")


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("markers", [("Human:",), ("USER:", "###"), ("\n\n",), ("x ", "é"), ("Ende: ",)])
def test_markers_are_found_where_they_stand(kind, markers):
    texts, tokenizer = rules(kind, turn_markers=markers)

    @given(st.lists(st.sampled_from([*markers, *"Hu man:\nx#é ", "well", "Human", "USER", " so"]), max_size=8))
    @settings(max_examples=60, deadline=None)
    def check(pieces):
        tokens = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"][:50]
        shown = texts.fragment(tokens[:-16], tokens[-16:])
        assert (texts.finish_reason(tokens) == "turn") == any(marker in shown for marker in markers)

    check()


def test_finish_reasons():
    texts, _ = rules(limit=3)
    assert [texts.finish_reason(tokens) for tokens in ([], [5], [5, 2], [5, 6, 7])] == [None, None, "eos", "length"]
    assert texts.remaining([5]) == 2


@pytest.mark.parametrize("mark", [",", ".", "?", ":", ";", "\n"])
def test_rollouts_stop_at_the_published_characters(mark):
    texts, tokenizer = rules()
    assert texts.stops_rollout(tokenizer("well" + mark)["input_ids"])
    assert not texts.stops_rollout(tokenizer("well")["input_ids"])
    assert not texts.stops_rollout([])
    until_end, _ = rules(rollout_stops="")
    assert not until_end.stops_rollout(tokenizer("well" + mark)["input_ids"])
