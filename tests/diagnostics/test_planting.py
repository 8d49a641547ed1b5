"""Where instructions are planted, which texts are read, and how far the instruction is from the end."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, diagnose
from hf_interdistill.diagnostics.collect.early_context import distance_to_answer
from hf_interdistill.diagnostics.collect.planting import CONTRASTS, as_answer, plant
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.early_context import measure_early_context

FAST = DiagnosisConfig(resamples=50, batch_size=8, context_measures=("early_context",))
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}]}


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("prompt", "first", "last"),
    [
        ("Why so? ", "X\n\nWhy so? ", "Why so?\n\nX "),
        ("Why so?", "X\n\nWhy so?\n\n", "Why so?\n\nX\n\n"),
        ("Human: Why: so?\n\nAssistant:", "Human: X\n\nWhy: so?\n\nAssistant:", "Human: Why: so?\n\nX\n\nAssistant:"),
        ("\n\nHuman: a\n\nAI: b\n\nHuman: c\n\nAI: ", "\n\nHuman: X\n\na\n\nAI: b\n\nHuman: c\n\nAI: ",
         "\n\nHuman: a\n\nAI: b\n\nHuman: c\n\nX\n\nAI: "),
        ("Note: it is late.", "X\n\nNote: it is late.\n\n", "Note: it is late.\n\nX\n\n"),  # no dialogue
    ],
)  # fmt: skip
def test_places_in_a_text(prompt, first, last):
    assert plant(prompt, "X", True) == first and plant(prompt, "X", False) == last


def test_places_in_messages():
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]
    prompt = [SYSTEM, user("a"), assistant("b"), user(parts), CALL, {"role": "tool", "content": "12"}]
    kept = json.dumps(prompt)
    assert plant(prompt, "X", True) == [SYSTEM, user("X\n\na"), *prompt[2:]]
    planted = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two\n\nX"}]
    assert plant(prompt, "X", False) == [*prompt[:3], user(planted), *prompt[4:]]
    begun = [{"type": "text", "text": "X\n\nOne"}, parts[1]]
    assert plant([user(parts)], "X", True) == [user(begun)]
    assert json.dumps(prompt) == kept
    for without in ([], [SYSTEM], [assistant("b")], [user(None)], [user("")]):
        assert plant(without, "X", True) is plant(without, "X", False) is None


def test_instructions_are_opposite_and_end_where_they_differ():
    assert len({each.kind for each in CONTRASTS}) == len(CONTRASTS) == 4
    for each in CONTRASTS:
        (one, other), (answer, opposite) = each.instructions, each.answers
        assert one != other and answer.split()[0] != opposite.split()[0]
        assert answer not in one and opposite not in other
    assert as_answer("Why?", "So.", "assistant") == " So." and as_answer("Why?\n", "So.", "assistant") == "So."
    assert as_answer([user("Why?")], "So.", "model") == [{"role": "model", "content": "So."}]


def test_distance_by_hand():
    rows = [[1, 7, 3, 4, 5, 20, 9], [1, 7, 3, 4, 5, 21, 9], [1, 8, 8, 3, 4, 5, 20, 9], [1, 8, 8, 3, 4, 5, 21, 9]]
    assert distance_to_answer(rows) == 3
    assert distance_to_answer([rows[0], rows[0], rows[2], rows[2]]) is None
    assert distance_to_answer([rows[0], rows[1], rows[0], rows[1]]) is None


def scorer_of() -> RewardScorer:
    return RewardScorer(build_student("llama"), tokenizer_of("bytes"), batch_size=8)


def test_rewards_are_those_of_the_planted_texts(tmp_path):
    """By calls of the scorer on texts written out here; distances by the tokens of what stands between."""
    scorer = scorer_of()
    rows = [
        {"prompt": [SYSTEM, user("Why so?"), assistant("It is."), user("And now?")],
         "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
        {"prompt": "Human: Why so?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
        {"prompt": "Human: Why so?\n\nAssistant:", "chosen": " Well.", "rejected": " No."},  # the same prompt
        {"chosen": "Human: Why so?\n\nAssistant: It is.", "rejected": "Human: Why so?\n\nAssistant: It may."},
        {"chosen": "Human: And why?\n\nAssistant: It is.", "rejected": "Human: And why?\n\nAssistant: It may."},
    ]  # fmt: skip
    diagnose(scorer, rows, FAST, name="rm", records_dir=str(tmp_path), is_progress_shown=False)
    records = [json.loads(line) for line in (tmp_path / "rm.early-context.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["name", "language", "word"]
    chats, texts = [], []
    for instruction in CONTRASTS[0].instructions:
        planted = [SYSTEM, user(f"{instruction}\n\nWhy so?"), assistant("It is."), user("And now?")]
        chats += [(planted, [assistant(answer)]) for answer in CONTRASTS[0].answers]
    for instruction in CONTRASTS[0].instructions:
        planted = [SYSTEM, user("Why so?"), assistant("It is."), user(f"And now?\n\n{instruction}")]
        chats += [(planted, [assistant(answer)]) for answer in CONTRASTS[0].answers]
    for start, end in (("", "Why so?"), ("Why so?\n\n", "")):
        for instruction in CONTRASTS[1].instructions:
            middle = f"{instruction}\n\n{end}" if end else f"{start}{instruction}"
            texts += [(f"Human: {middle}\n\nAssistant:", f" {answer}") for answer in CONTRASTS[1].answers]
    begun = []  # both answers begin with "It", which is no part of the question
    for start, end in (("", "\n\nAnd why?"), ("And why?\n\n", "")):
        for instruction in CONTRASTS[2].instructions:
            planted = f"Human: {start}{instruction}{end}\n\nAssistant:"
            begun += [(planted, f" {answer}") for answer in CONTRASTS[2].answers]
    for record, pairs in zip(records, (chats, texts, begun), strict=True):
        prompts, answers = zip(*pairs, strict=True)
        assert record["rewards"] == pytest.approx(scorer(list(prompts), list(answers)), abs=1e-4)
    between = ".\n\nWhy so?<|end|>\n<|assistant|>\nIt is.<|end|>\n<|user|>\nAnd now?<|end|>\n<|assistant|>\n"
    count = len(scorer.tokenizer(between)["input_ids"])
    assert abs(records[0]["distances"][0] - count) <= 3  # the pieces of the names may be alike at their ends
    count = len(scorer.tokenizer(".\n\nAssistant:")["input_ids"])
    assert abs(records[1]["distances"][1] - count) <= 3


def test_prompts_that_cannot_be_planted_are_counted():
    sides = {"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}
    scorer, config = scorer_of(), replace(FAST, cue="!")
    whole = [len(scorer.encode([user("the" + " the" * count)], sides["rejected"], {})) for count in (1, 2)]
    room = user("the" + " the" * ((505 - whole[0]) // (whole[1] - whole[0])))
    rows = [{"prompt": prompt, **sides} for prompt in ([], [SYSTEM], [room], [user("Why?")])]
    found = diagnose(scorer, rows, config, is_progress_shown=False)
    assert found.early_context.first.pairs == 1
    assert found.early_context.left_out == {
        "empty prompt": 1, "no user turn with a text": 1, "longer than 512 tokens": 1
    }  # fmt: skip
    none = diagnose(scorer_of(), rows[:2], FAST, is_progress_shown=False)
    assert (
        none.early_context is None and "no prompt to plant an instruction in" in none.context_problems["early_context"]
    )


def test_a_template_that_hides_the_instruction_and_one_that_refuses_it():
    sides = {"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}
    rows = [{"prompt": [user("Why?"), assistant("So."), user("And?")], **sides}]
    scorer = scorer_of()
    plain = scorer.tokenizer.chat_template
    scorer.tokenizer.chat_template = plain.replace("for message in messages", "for message in messages[-2:]")
    found = diagnose(scorer, rows, FAST, is_progress_shown=False)
    assert "the chat template or the tokenizer hides the instruction" in found.context_problems["early_context"]
    check = "{% for m in messages %}{% if 'Begin' in m['content'] %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    scorer.tokenizer.chat_template = check + plain
    found = diagnose(scorer, rows, FAST, is_progress_shown=False)
    assert "the chat template refuses the planted prompt" in found.context_problems["early_context"]


def rewards_of(prompts: int, first: float, last: float) -> np.ndarray:
    """Answers that follow the instruction in these shares of the prompts, and the same answer in the others."""
    rewards = np.zeros((prompts, 2, 2, 2))
    for place, share in enumerate((first, last)):
        for number in range(prompts):
            follows = number < round(share * prompts)
            rewards[number, place, 0] = (1.0, 0.0)
            rewards[number, place, 1] = (0.0, 1.0) if follows else (1.0, 0.0)
    return rewards


@pytest.mark.parametrize(
    ("prompts", "first", "last", "verdict", "words"),
    [
        (9, 1.0, 1.0, "inconclusive", "Too few prompts"),
        (40, 1.0, 1.0, "pass", "there at the beginning too"),
        (40, 0.0, 1.0, "flag", "gone at the beginning"),
        (40, 0.5, 1.0, "inconclusive", "how much of its effect"),
        (40, 0.0, 0.0, "flag", "wherever it is placed"),
        (12, 0.0, 0.25, "inconclusive", "at all"),
    ],
)
def test_verdicts(prompts, first, last, verdict, words):
    found = measure_early_context(
        rewards_of(prompts, first, last), np.ones((prompts, 2)), ["name"] * prompts, DiagnosisConfig(resamples=300)
    )
    assert found.first.value == 0.5 + round(first * prompts) / prompts / 2
    assert found.finding().verdict == verdict and words in found.finding().sentence


def test_ties_and_an_answer_that_is_liked_whatever_is_asked_are_a_half():
    options = replace(FAST, resamples=100)
    generator = np.random.default_rng(0)
    liked = np.broadcast_to(generator.normal(size=(30, 2, 1, 2)), (30, 2, 2, 2))
    for rewards in (np.zeros((30, 2, 2, 2)), liked):
        found = measure_early_context(rewards, np.ones((30, 2)), ["word"] * 30, options)
        assert found.first.value == found.last.value == found.moved_first.value == found.moved_last.value == 0.5
