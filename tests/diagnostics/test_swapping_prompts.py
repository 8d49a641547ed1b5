"""Which prompts are swapped with which, and what is scored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from support.datasets import read_rows
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, diagnose
from hf_interdistill.diagnostics.collect.swapped_prompts import swap_partners
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.swapped_prompt import measure_swapped_prompt

FAST = DiagnosisConfig(resamples=50, batch_size=4, context_measures=("swapped_prompt",))


def scorer_of(**options) -> RewardScorer:
    return RewardScorer(build_student("llama", **options), tokenizer_of("bytes"), batch_size=4)


def told(question, answer="Yes.", other="No.", **columns) -> dict:
    prompt = [{"role": "user", "content": question}] if isinstance(question, str) else question
    sides = {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", answer), ("rejected", other))
    }
    return {"prompt": prompt, **sides, **columns}


@pytest.mark.parametrize("count", [2, 3, 4, 7, 50, 51])
def test_neighbors_in_length_change_places(count):
    lengths = np.random.default_rng(count).integers(1, 30, count).tolist()
    partners = swap_partners(lengths, ["text"] * count, seed=0)
    assert sorted(partners) == list(range(count)) and all(one != other for one, other in enumerate(partners))
    assert sum(partners[other] != one for one, other in enumerate(partners)) == (3 if count % 2 else 0)
    assert swap_partners(lengths, ["text"] * count, seed=0) == partners
    ranked = sorted(lengths)
    widest = max((ranked[min(n + 2, count - 1)] - ranked[n] for n in range(count)), default=0)
    assert max(abs(lengths[one] - lengths[other]) for one, other in enumerate(partners)) <= widest


def test_the_seed_decides_among_prompts_of_one_length():
    found = {tuple(swap_partners([5] * 8, ["text"] * 8, seed)) for seed in range(5)}
    assert len(found) > 1
    assert len({tuple(swap_partners([1, 2, 3, 4], ["text"] * 4, seed)) for seed in range(5)}) == 1


def test_prompts_stay_in_their_group():
    assert swap_partners([1, 2, 3, 4, 5], ["a", "b", "a", "b", "c"], seed=0) == [2, 3, 0, 1, None]


def test_rewards_are_those_of_the_text_with_the_other_prompt(tmp_path):
    """Each side by a call of the scorer; what a row brings for the chat template goes with its prompt."""
    scorer = scorer_of()
    scorer.tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + scorer.tokenizer.chat_template
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    system = [{"role": "system", "content": "Be brief."}]
    rows = [
        told("Who is it?", "I.", "You."),
        told([*system, {"role": "user", "content": "What is the time over there, by now?"}], tools=tools),
        told("Who  is it?\n", "He.", "She."),  # the first prompt again
    ]
    diagnose(scorer, rows, FAST, name="rm", records_dir=str(tmp_path), is_progress_shown=False)
    (path,) = tmp_path.glob("rm.swapped-prompt-*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, row, other in zip(records, rows, (rows[1], rows[0], rows[1]), strict=True):
        sides = [row["chosen"], row["rejected"]]
        expected = scorer([other["prompt"]] * 2, sides, tools=[other.get("tools")] * 2)
        assert record["rewards"] == pytest.approx(expected, abs=1e-4)


def test_words_that_both_answers_begin_with_stay_with_them(tmp_path):
    """Without a column of prompts, "Assistant: It" is what both texts begin with; "It" belongs to the answers."""
    scorer, rows = scorer_of(), []
    for question, begun, ends in (("Who?", "It", ("is he.", "was I.")), ("Why so?", "Since", ("then.", "ever."))):
        sides = [f"Human: {question}\n\nAssistant: {begun} {end}" for end in ends]
        rows.append(dict(zip(("chosen", "rejected"), sides, strict=True)))
    diagnose(scorer, rows, FAST, name="rm", records_dir=str(tmp_path), is_progress_shown=False)
    (path,) = tmp_path.glob("rm.swapped-prompt-*.jsonl")
    first = json.loads(path.read_text().splitlines()[0])
    expected = scorer(["Human: Why so?\n\nAssistant:"] * 2, [" It is he.", " It was I."])
    assert first["rewards"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([told("Who is it?"), told("Who is  it? ", "I.")], 1),
        ([{"prompt": "Why? ", "chosen": "So.", "rejected": "No."}, told("Why?")], 2),  # text and messages
        (
            [
                {"chosen": "Human: Who?\n\nAssistant: I am.", "rejected": "Human: Who?\n\nAssistant: I was."},
                {"chosen": "Human: Who?\n\nAssistant: You.", "rejected": "Human: Who?\n\nAssistant: They."},
            ],
            1,
        ),
        ([{"prompt": "", "chosen": "So.", "rejected": "No."}], 0),
        ([{"prompt": " ", "chosen": "So.", "rejected": "No."}, {"chosen": "Yes.", "rejected": "No."}], 0),
    ],
)
def test_too_few_prompts_are_refused(rows, count, caplog):
    found = diagnose(scorer_of(), rows, FAST, is_progress_shown=False)
    assert (
        found.swapped_prompt is None and f"have {count} distinct prompts" in found.context_problems["swapped_prompt"]
    )
    assert found.problem("swapped_prompt").startswith(f"Not run: The {len(rows)} pairs have")
    assert "Swapped prompt was not measured. The" in caplog.text
    assert found.to_dict()["context_problems"] == found.context_problems and "swapped_prompt" not in found.to_dict()


def test_pairs_without_a_prompt_to_swap_are_counted():
    rows = [told("Who is it?"), told("And why now?"), told([])]
    rows += [told("the" + " the" * 350), told("a the" + " the" * 150, "the" + " the" * 200)]
    rows.append(told([{"role": "assistant", "content": "I said so."}]))
    found = diagnose(scorer_of(), rows, FAST, is_progress_shown=False)
    assert found.pairs == 6 and found.swapped_prompt.pairs == 3
    assert found.swapped_prompt.left_out == {
        "empty prompt": 1,
        "longer than 512 tokens": 1,
        "no other prompt of its kind": 1,
    }


def test_records_are_used_again_and_other_pairs_have_others(tmp_path):
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:6]]
    options = {"name": "rm", "records_dir": str(tmp_path), "is_progress_shown": False}
    found = diagnose(scorer_of(), rows, FAST, **options)
    (path,) = tmp_path.glob("rm.swapped-prompt-*.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:9])  # killed
    again = diagnose(scorer_of(), Dataset.from_list(rows), FAST, **options)
    for line, other in zip(path.read_text().splitlines(), lines, strict=True):
        one, two = json.loads(line), json.loads(other)
        assert one.pop("rewards") == pytest.approx(two.pop("rewards"), abs=1e-5) and one == two
    assert again.swapped_prompt.own == found.swapped_prompt.own
    fewer = diagnose(scorer_of(), rows, replace(FAST, limit=3), **options)
    alone = diagnose(scorer_of(), rows[:3], FAST, is_progress_shown=False)
    assert fewer.swapped_prompt.own == alone.swapped_prompt.own and len(list(tmp_path.glob("rm.swapped*.jsonl"))) == 2


def test_rows_that_can_be_read_only_once():
    found = diagnose(scorer_of(), iter([told("Who?"), told("Why?")]), FAST, is_progress_shown=False)
    assert "The data are list_iterator, which can be read only once" in found.context_problems["swapped_prompt"]


def test_numbers_by_hand():
    """Two pairs of one prompt, one of the other; chosen and rejected under own and other prompt."""
    rewards = np.array([[[2.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [3.0, -1.0]], [[4.0, 0.0], [1.0, 1.0]]])
    options = DiagnosisConfig(resamples=200)
    found = measure_swapped_prompt(rewards, np.array([0, 0, 1]), np.zeros(3), np.array([1.0, 1.0, 4.0]), options)
    assert (found.pairs, found.prompts, found.own.pairs, found.tokens_apart) == (3, 2, 1, 2.0)
    assert found.chosen.value == pytest.approx(2 / 3) and found.rejected.value == pytest.approx(1.5 / 3)
    assert found.own.value == pytest.approx(3.5 / 6)
    spread = np.array([2.0, 1.0, 4.0]).std()
    assert found.gain.value == pytest.approx((1 + 0 - 2 + 1 + 3 - 1) / 6 / spread)
    assert (
        found.finding().verdict == "inconclusive"
        and "Too few prompts to swap: 2, in 1 swaps" in found.finding().sentence
    )


@pytest.mark.parametrize(("swaps", "passed", "flagged"), [(9, "inconclusive", "inconclusive"), (20, "pass", "flag")])
def test_verdicts_need_swaps(swaps, passed, flagged):
    prompts = np.arange(2 * swaps)
    better = np.tile([[[2.0, 1.0], [1.0, 0.0]]], (2 * swaps, 1, 1))
    for rewards, share, verdict in ((better, 1.0, passed), (better * 0, 0.5, flagged)):
        found = measure_swapped_prompt(rewards, prompts, prompts // 2, prompts, DiagnosisConfig(resamples=200))
        assert found.own.value == share and found.finding().verdict == verdict
