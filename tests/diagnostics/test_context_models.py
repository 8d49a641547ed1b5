"""What models read of the prompt is found: models built to read a known part of it, where the value is known."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from support.diagnostics import FAST, ReadingModel
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.diagnostics.collect.planting import CONTRASTS
from hf_interdistill.diagnostics.config import CONTEXT_MEASURES
from hf_interdistill.diagnostics.diagnosis import diagnose

FOLLOWS = {
    instruction: answer
    for each in CONTRASTS
    for instruction, answer in zip(each.instructions, each.answers, strict=True)
}
CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"
FEW_TOKENS = 60  # before the answer: its header, the last turn, and no more


def words(count: int, seed: int = 0) -> list[str]:
    """Distinct made-up words of six letters."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        letters = [generator.choice(list(each)) for each in (CONSONANTS, VOWELS) * 3]
        found["".join(letters)] = None
    return list(found)


def chat(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def found_by(reads, rows, *names, instructions=None):
    tokenizer = tokenizer_of("bytes")
    model = ReadingModel(tokenizer, reads, instructions)
    model.config.max_position_embeddings = 4096
    scorer = RewardScorer(model, tokenizer, batch_size=64)
    return diagnose(scorer, rows, replace(FAST, context_measures=names), is_progress_shown=False)


def topics(is_text: bool, count: int = 40) -> list[dict]:
    """Questions on distinct topics, two pairs each, whose answers name the topic."""
    rows = []
    for number, topic in enumerate(words(count)):
        question = f"Tell me {'please ' * (number % 5)}about {topic}."
        for good, bad in (("well", "hardly"), ("long since", "not")):
            sides = {"chosen": f"I know {topic} {good}.", "rejected": f"I know {topic} {bad}."}
            if is_text:
                rows.append({"prompt": f"{question}\nAnswer:", **{side: f" {text}" for side, text in sides.items()}})
            else:
                answers = {side: chat("assistant", text) for side, text in sides.items()}
                rows.append({"prompt": chat("user", question), **answers})
    return rows


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize(
    ("reads", "share", "verdict"),
    [("answer", 0.5, "flag"), (2, 0.5, "flag"), ("prompt length", 0.5, "flag"), ("all", 1.0, "pass")],
)
def test_swapped_prompts(reads, share, verdict, is_text):
    """Exactly a half without a look at the question, also for a model that likes some prompts more than others."""
    found = found_by(reads, topics(is_text), "swapped_prompt")
    measure = found.swapped_prompt
    assert (measure.own.value, measure.chosen.value, measure.rejected.value) == (share,) * 3
    assert (measure.pairs, measure.prompts, measure.own.pairs) == (80, 40, 20) and measure.left_out == {}
    assert found.findings()["swapped_prompt"].verdict == verdict
    assert measure.gain.value == pytest.approx(0.0 if share == 0.5 else measure.gain.value)
    assert measure.gain.value > 1 or share == 0.5


def questions(lengths, is_text: bool) -> list[dict]:
    rows = []
    for number, length in enumerate(lengths):
        question = f"Number {number}: {'what then, ' * length}and why?"
        if is_text:
            rows.append({"prompt": f"Question: {question}\nAnswer:", "chosen": " So.", "rejected": " No."})
        else:
            rows.append(
                {
                    "prompt": chat("user", question),
                    "chosen": chat("assistant", "So."),
                    "rejected": chat("assistant", "No."),
                }
            )
    return rows


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize(
    ("reads", "first", "last", "by_distance", "verdict"),
    [
        ("answer", 0.5, 0.5, [0.5] * 4, "flag"),
        ("all", 1.0, 1.0, [1.0] * 4, "pass"),
        (200, 0.75, 1.0, [1.0, 1.0, 0.5, 0.5], "inconclusive"),  # half of the advantage is left
        (FEW_TOKENS, 0.5, 1.0, [0.5] * 4, "flag"),
    ],
)
def test_early_context(reads, first, last, by_distance, verdict, is_text):
    """20 prompts whose beginning is about 100 tokens from their end, and 20 where it is 400."""
    rows = questions([20, 80] * 20, is_text)
    found = found_by(reads, rows, "early_context", instructions=FOLLOWS)
    measure = found.early_context
    assert (measure.first.value, measure.last.value) == (first, last)
    assert [each.accuracy.value for each in measure.bins] == by_distance
    assert [each.accuracy.pairs for each in measure.bins] == [10] * 4
    assert measure.moved_first.value == first and measure.moved_last.value == last
    assert measure.bins[1].farthest < 200 < measure.bins[2].nearest and measure.distance_last < FEW_TOKENS
    assert {kind: each["first"].pairs for kind, each in measure.kinds.items()} == dict.fromkeys(
        ("name", "language", "word", "letters"), 10
    )
    assert found.findings()["early_context"].verdict == verdict


def conversations(count: int = 60) -> list[dict]:
    """Three questions and two answers about a word each; the answers to the third name some of the words again."""
    generator = np.random.default_rng(1)
    names = iter(words(5 * count))
    rows = []
    for _ in range(count):
        own = [next(names) for _ in range(5)]
        turns = [f"I say {name} to it." for name in own]
        prompt = [message for n, turn in enumerate(turns) for message in chat(("user", "assistant")[n % 2], turn)]
        sides = {
            side: chat("assistant", f"{start} {' '.join(generator.choice(own, size, replace=False))}")
            for side, start, size in (
                ("chosen", "So", generator.integers(2, 6)),
                ("rejected", "No", generator.integers(1, 4)),
            )
        }
        rows.append({"prompt": chat("system", "Be good.") + prompt, **sides})
    return rows


def fit(prompt: list[dict], answer: list[dict]) -> float:
    """What the model that reads all gives, from the words themselves."""
    text = answer[0]["content"]
    known = {word for message in prompt for word in re.findall(r"\w+", message["content"])}
    return 100.0 * len({word for word in text.split() if word in known}) + 0.5 * len(text)


@pytest.mark.parametrize(
    ("reads", "verdict", "sentence"),
    [
        ("answer", "flag", "The prompt hardly matters"),
        (FEW_TOKENS, "flag", "It hardly reads how the conversation began"),
        ("all", "pass", "The first is"),
    ],
)
def test_turns(reads, verdict, sentence):
    rows = conversations()
    found = found_by(reads, rows, "turn_removal")
    measure = found.turn_removal
    assert measure.conversations == 60 and measure.left_out == {}
    changes = [getattr(measure, place).change.value for place in ("first", "middle", "last")]
    if reads == "answer":
        assert changes == [0.0, 0.0, 0.0] and measure.first.control.value == 0.0
        assert np.isnan(measure.first.share.value)
    elif reads == FEW_TOKENS:
        assert changes[:2] == [0.0, 0.0] and changes[2] > 0.1
        assert measure.first.share.value == 0.0 and measure.last.share.value > 0.5
    else:
        margins = np.array([fit(row["prompt"], row["chosen"]) - fit(row["prompt"], row["rejected"]) for row in rows])
        for place, removed in (("first", 1), ("middle", 3), ("last", 5)):
            left = [row["prompt"][:removed] + row["prompt"][removed + 1 :] for row in rows]
            moved = [
                abs(fit(prompt, row["chosen"]) - fit(prompt, row["rejected"]) - margin)
                for prompt, row, margin in zip(left, rows, margins, strict=True)
            ]
            assert getattr(measure, place).change.value == pytest.approx(np.mean(moved) / margins.std(), rel=1e-6)
    finding = found.findings()["turn_removal"]
    assert finding.verdict == verdict and sentence in finding.sentence


def test_all_of_them_are_made_unless_the_settings_say_otherwise():
    default = type(FAST)()
    assert default.context_measures == CONTEXT_MEASURES
    found = found_by("all", conversations(12), *CONTEXT_MEASURES)
    assert set(CONTEXT_MEASURES) <= set(found.findings()) and found.context_problems == {}
    none = found_by("all", conversations(12))
    assert not set(CONTEXT_MEASURES) & set(none.findings()) and not set(CONTEXT_MEASURES) & set(none.to_dict())
