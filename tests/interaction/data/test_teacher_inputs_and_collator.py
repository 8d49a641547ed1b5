"""The teacher's input, its order, and the batch that training sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import tokenizer_of
from trl.trainer.reward_trainer import DataCollatorForPreference

from hf_interdistill.interaction.data.collator import AlignmentCollator
from hf_interdistill.interaction.data.orders import choose_order, select_order
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer
from hf_interdistill.interaction.data.teacher_inputs import PairLayout, SequenceFormat, TokenizedText, _shorten


def tokenized(ids, first_unit=0):
    return TokenizedText(ids, list(range(first_unit, first_unit + len(ids))))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("wordpiece", "[CLS] {} [SEP] {} [SEP] {} [SEP]"), ("roberta", "<s> {} </s> </s> {} </s> </s> {} </s>")],
)
def test_format_is_the_tokenizers_own(kind, expected):
    tokenizer = tokenizer_of(kind)
    form = SequenceFormat.from_tokenizer(tokenizer)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("a", "b", "c")]
    packed = form.pack(tokenized(ids[:1]), [tokenized(ids[1:2], 1), tokenized(ids[2:], 2)], 64)
    assert tokenizer.convert_ids_to_tokens(packed.ids) == expected.format("a", "b", "c").split()
    pair = tokenizer("a", "b")
    assert form.pack(tokenized(ids[:1]), [tokenized(ids[1:2])], 64).ids == pair["input_ids"]
    for response, position in zip("bc", packed.score_positions, strict=True):
        assert tokenizer.convert_ids_to_tokens(packed.ids[position - 1]) == response
    assert [unit for unit in packed.units if unit >= 0] == [0, 1, 2]
    if kind == "wordpiece":
        assert packed.types == [0, 0, 0, 1, 1, 1, 1]


def test_too_long_inputs_lose_the_oldest_prompt_first():
    form = SequenceFormat.from_tokenizer(tokenizer_of("wordpiece"))
    prompt, chosen, rejected = tokenized(range(10, 20)), tokenized(range(20, 24), 10), tokenized(range(30, 33), 14)
    packed = form.pack(prompt, [chosen, rejected], 14)
    assert packed.ids[1:4] == [17, 18, 19] and packed.units[1:4] == [7, 8, 9]
    assert packed.ids[5:9] == [20, 21, 22, 23] and packed.ids[10:13] == [30, 31, 32]
    short = form.pack(prompt, [chosen, rejected], 9)
    assert short.ids[2:4] == [20, 21] and short.ids[5:8] == [30, 31, 32]
    assert len(form.pack(prompt, [chosen, rejected], 4).ids) == 4


@given(st.lists(st.integers(0, 50), min_size=1, max_size=3), st.integers(-3, 120))
def test_shorten(lengths, room):
    result = _shorten(lengths, room)
    assert sum(result) == min(sum(lengths), max(room, 0))
    assert all(0 <= new <= old for new, old in zip(result, lengths, strict=True))
    cut = [new for new, old in zip(result, lengths, strict=True) if new < old]
    assert not cut or (max(cut) - min(cut) <= 1 and max(result) - min(cut) <= 1)


def test_teachers_without_pad_or_separator_are_refused():
    tokenizer = tokenizer_of("wordpiece")
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        SequenceFormat.from_tokenizer(tokenizer)
    with pytest.raises(ValueError, match="puts no separator"):
        SequenceFormat.from_tokenizer(tokenizer_of("bytes"))


def test_texts_of_a_decoder_end_with_its_end_token():
    tokenizer = tokenizer_of("bytes")
    tokenizer.pad_token = None
    form = SequenceFormat.from_tokenizer(tokenizer, is_decoder=True)
    row = form.pack(tokenized([20, 21]), [tokenized([30], 2), tokenized([40], 3)], 64)
    assert row.ids == [20, 21, 2, 30, 2, 40, 2] and row.units == [0, 1, -1, 2, -1, 3, -1]
    assert row.score_positions == [4, 6] and len(row.types) == 7
    batch = form.collate([row, form.pack(tokenized([]), [tokenized([30]), tokenized([40])], 64)])
    assert batch["input_ids"][1].tolist() == [2, 30, 2, 40, 2, 2, 2] and batch["attention_mask"][1].sum() == 5
    assert "token_type_ids" not in batch


def test_batch_by_hand():
    student, teacher = tokenizer_of("bytes"), tokenizer_of("wordpiece")
    rows = [
        {"prompt": "what is it ", "chosen": "a cat", "rejected": "no idea at all"},
        {"prompt": "", "chosen": "yes", "rejected": "no"},
    ]
    tokenize = PreferenceTokenizer(student, teacher)
    examples = [tokenize(row, index) for index, row in enumerate(rows)]
    form = SequenceFormat.from_tokenizer(teacher)
    inner, layout = DataCollatorForPreference(pad_token_id=3), PairLayout(form, 64, has_late_interaction=False)
    batch = AlignmentCollator(inner, layout)(examples)
    width = batch["input_ids"].shape[1]
    flat = torch.cat(batch["input_ids"].chunk(2), dim=1)
    for pair, row in enumerate(rows):
        units, index = batch["student_units"][pair], batch["student_index"][pair]
        words = {}
        for unit, place in zip(units.tolist(), index.tolist(), strict=True):
            if unit >= 0:
                words.setdefault(unit, []).append(int(flat[pair, place]))
        read = [student.decode(ids).strip() for ids in words.values()]
        assert read == (row["prompt"] + row["chosen"] + " " + row["rejected"]).split()
        assert units[units >= 0].tolist() == sorted(units[units >= 0].tolist())
    assert batch["segments"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 2], [1, 2] + [-1] * 7]
    assert batch["student_index"][0, -4:].min() >= width  # the rejected response, in the second row
    assert batch["pair_index"].tolist() == [0, 1]
    for order, text in ((0, "what is it a cat no idea at all"), (1, "what is it no idea at all a cat")):
        ids = batch["teacher_input_ids"][0, order][batch["teacher_attention_mask"][0, order].bool()]
        assert teacher.decode(ids, skip_special_tokens=True).replace(" ##", "").replace(" ", "") == text.replace(
            " ", ""
        )
    late = AlignmentCollator(inner, replace(layout, has_late_interaction=True))(examples)
    assert late["teacher_score_positions"].shape == (2, 2, 1)
    for row, text in enumerate(("what is it a cat", "what is it no idea at all")):
        ids = late["teacher_input_ids"][0, row][late["teacher_attention_mask"][0, row].bool()]
        assert teacher.decode(ids, skip_special_tokens=True).replace(" ##", "") == text
        assert late["teacher_score_positions"][0, row].item() == len(ids) - 1
    units = batch["teacher_units"][0, 1]
    assert list(dict.fromkeys(units[units >= 0].tolist())) == [0, 1, 2, 5, 6, 7, 8, 3, 4]
    chosen = select_order({"x": torch.arange(8).view(2, 2, 2)}, torch.tensor([1, 0]))["x"]
    assert chosen.tolist() == [[2, 3], [4, 5]]


def test_order_is_a_fair_coin_for_each_pair_and_visit():
    keys = torch.randint(0, 2**32, (20_000,), generator=torch.Generator().manual_seed(0))
    flips = [choose_order(keys, seed, visit).double() for seed in (0, 1, 42) for visit in range(4)]
    for flip in flips:
        assert abs(flip.mean() - 0.5) < 0.02
    for i, one in enumerate(flips):
        for other in flips[:i]:
            assert abs((one == other).double().mean() - 0.5) < 0.02
    assert abs((flips[0][1:] == flips[0][:-1]).double().mean() - 0.5) < 0.02
    consecutive = choose_order(torch.arange(20_000), 0, 0).double()
    assert abs(consecutive.mean() - 0.5) < 0.02
    assert torch.equal(choose_order(keys[5:9], 42, 3), choose_order(keys, 42, 3)[5:9])
