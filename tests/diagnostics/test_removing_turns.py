"""Which turns are removed, what is scored without them, and what is counted as having none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, diagnose
from hf_interdistill.diagnostics.collect.contents import token_row
from hf_interdistill.diagnostics.collect.turn_removal import turns_to_remove
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.turn_removal import measure_turn_removal

FAST = DiagnosisConfig(resamples=50, batch_size=8, context_measures=("turn_removal",))
NAN = float("nan")


def messages(*turns: str) -> list[dict]:
    """`s:` for a system prompt, `u:`, `a:` or `t:` for turns."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def scorer_of() -> RewardScorer:
    return RewardScorer(build_student("llama"), tokenizer_of("bytes"), batch_size=8)


@pytest.mark.parametrize(
    ("turns", "places"),
    [
        (("u:one",), {}),
        (("s:rule", "u:one"), {}),
        (("u:one", "a:"), {}),
        (("u:one", "a:two"), {"first": 0, "last": 1}),
        (("s:rule", "u:one", "a:two", "u:three"), {"first": 1, "middle": 2, "last": 3}),
        (("u:one", "a:two", "t:three", "a:four", "u:five"), {"first": 0, "middle": 2, "last": 4}),
        (("u:one", "s:rule", "a:two", "u:three", "a:four"), {"first": 0, "middle": 3, "last": 4}),
    ],
)
def test_first_middle_and_last_turn(turns, places):
    prompt = messages(*turns)
    row = token_row(scorer_of().formatter, prompt, messages("a:Yes."), {})
    assert turns_to_remove(row, [message["role"] for message in prompt]) == places
    decode = scorer_of().tokenizer.decode
    for message, positions in zip(prompt, row.messages, strict=True):
        assert decode([row.ids[position] for position in positions]).strip() == message["content"]
    assert sorted(position for each in row.messages for position in each) == row.prompt


def test_rewards_are_those_of_the_rows_without_these_tokens(tmp_path):
    scorer = scorer_of()
    prompt = messages("s:Be brief.", "u:Who was it then?", "a:It was I.", "u:And why was that so?")
    rows = [{"prompt": prompt, "chosen": messages("a:So."), "rejected": messages("a:No, not at all.")}]
    diagnose(scorer, rows, FAST, name="rm", records_dir=str(tmp_path), is_progress_shown=False)
    (record,) = [json.loads(line) for line in (tmp_path / "rm.turn-removal.jsonl").read_text().splitlines()]
    assert record["places"] == ["first", "middle", "last"]
    texts = [prompt[1]["content"], prompt[2]["content"], prompt[3]["content"]]
    rewards = np.array(record["rewards"]).reshape(3, 2, 2)
    tokenizer = scorer.tokenizer
    for place, text in enumerate(texts):
        for side, response in enumerate((rows[0]["chosen"], rows[0]["rejected"])):
            whole = tokenizer.apply_chat_template(prompt + response, tokenize=False)
            encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            start = whole.index(text)
            inside = [n for n, (a, b) in enumerate(encoded["offset_mapping"]) if a < start + len(text) and b > start]
            kept = [n for n in range(len(encoded["input_ids"])) if n not in inside]
            ids = [encoded["input_ids"][n] for n in kept]
            (expected,) = scorer.score_ids([ids], positions=[kept])
            assert rewards[place, 0, side] == pytest.approx(expected, abs=1e-4)
            assert record["tokens"][place] == len(inside)
    assert not np.allclose(rewards[:, 0], rewards[:, 1], atol=1e-3)


def test_pairs_without_turns_are_counted():
    sides = {"chosen": messages("a:Yes."), "rejected": messages("a:No.")}
    rows = [
        {"prompt": "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
        {"prompt": messages("s:rule", "u:one"), **sides},
        {"prompt": [], **sides},
    ]
    none = diagnose(scorer_of(), rows, FAST, is_progress_shown=False)
    assert none.turn_removal is None
    assert "no earlier turn to remove: 3 pairs" in none.context_problems["turn_removal"]
    rows.append({"prompt": messages("u:one", "a:two"), **sides})
    found = diagnose(scorer_of(), rows, FAST, is_progress_shown=False).turn_removal
    assert found.conversations == 1
    assert found.left_out == {"plain text, which has no turns": 1, "a prompt of one turn": 2}
    assert found.middle.change.pairs == 0 and np.isnan(found.middle.tokens) and found.first.tokens > 0


def test_numbers_by_hand():
    removed = np.array([[1.0, NAN, 2.0], [2.0, 5.0, 4.0]])
    controls = np.array([[0.0, NAN, 4.0], [6.0, 3.0, 4.0]])
    tokens = np.array([[4.0, NAN, 6.0], [6.0, 2.0, 8.0]])
    found = measure_turn_removal(np.array([2.0, 4.0]), removed, controls, tokens, DiagnosisConfig(resamples=50))
    assert found.conversations == 2 and (found.first.tokens, found.middle.tokens, found.last.tokens) == (5.0, 2.0, 7.0)
    assert found.first.change.value == pytest.approx((1 + 2) / 2)  # the margins have a standard deviation of 1
    assert found.first.control.value == pytest.approx((2 + 2) / 2) and found.first.share.value == pytest.approx(0.75)
    assert (found.middle.change.value, found.middle.control.value, found.middle.change.pairs) == (1.0, 1.0, 1)
    assert (found.last.change.value, found.last.share.value) == (0.0, 0.0)
    assert found.finding().verdict == "inconclusive" and "Too few conversations" in found.finding().sentence


@pytest.mark.parametrize(
    ("moved", "control", "verdict"),
    [(0.0, 1.0, "flag"), (0.0, 0.0, "flag"), (0.2, 1.0, "flag"), (0.5, 1.0, "pass"), (1.0, 1.0, "pass")],
)
def test_verdicts(moved, control, verdict):
    margins = np.random.default_rng(0).normal(size=30)
    without, spread = (np.tile((margins + each)[:, None], (1, 3)) for each in (moved, control))
    found = measure_turn_removal(margins, without, spread, np.ones((30, 3)), DiagnosisConfig(resamples=100))
    assert found.finding().verdict == verdict
    few = measure_turn_removal(margins[:9], without[:9], spread[:9], np.ones((9, 3)), DiagnosisConfig(resamples=100))
    assert few.finding().verdict == "inconclusive"
