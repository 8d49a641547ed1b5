"""What the trainer and the teacher are given is checked before anything is loaded, tokenized or trained."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from support.models import build_student
from support.training_runs import config, losses
from transformers import AutoModelForCausalLM

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction import trainer as trainer_module
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer

USER, ASSISTANT = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}


@pytest.fixture
def no_work(monkeypatch):
    """Fails if a teacher is loaded or a row is tokenized."""

    def work(*args, **kwargs):
        raise AssertionError("work began")

    monkeypatch.setattr(trainer_module, "load_teacher", work)
    monkeypatch.setattr(PreferenceTokenizer, "__call__", work)


@pytest.fixture
def build(dataset, tmp_path, tokenizer, fitted_teacher):
    def make(train=dataset, model=None, eval_dataset=None, **changes):
        return InteractionDistillationTrainer(
            build_student() if model is None else model,
            config(tmp_path, **changes),
            train_dataset=train,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )

    return make


def test_arguments_are_checked_before_work(build, dataset, tmp_path, no_work):
    wrong = dataset.rename_column("chosen", "choosen")
    with pytest.raises(ValueError, match=r"train dataset has no column `chosen`.*is `choosen` meant"):
        build(wrong)
    with pytest.raises(ValueError, match="The eval dataset has no column `chosen`"):
        build(eval_dataset=wrong)
    with pytest.raises(ValueError, match="The hard dataset has no column `chosen`"):
        build(eval_dataset={"easy": dataset, "hard": wrong}, alignment_weight=0)
    with pytest.raises(ValueError, match="train dataset is empty"):
        build(dataset.select([]))
    with pytest.raises(ValueError, match="train dataset is empty"):
        build(IterableDataset.from_generator(lambda: iter(())))
    with pytest.raises(TypeError, match="train dataset is a list, but must be"):
        build(dataset.to_list())
    with pytest.raises(TypeError, match=r"train dataset is a DatasetDict.* choose one"):
        build(DatasetDict(train=dataset))
    with pytest.raises(ValueError, match="`eval_dataset` is an empty mapping"):
        build(eval_dataset={})
    with pytest.raises(ValueError, match="`eval_strategy` is 'epoch', but there is no `eval_dataset`"):
        build(eval_strategy="epoch")
    with pytest.raises(ValueError, match="`num_labels=2`, but a reward model has one output"):
        build(model=build_student(num_labels=2))
    with pytest.raises(ValueError, match="`num_labels` in `model_init_kwargs` is 3, but"):
        build(model=str(save(tmp_path)), model_init_kwargs={"num_labels": 3})
    with pytest.raises(ValueError, match="The model is a LlamaForCausalLM, a language model, but"):
        build(model=AutoModelForCausalLM.from_config(build_student().config))
    with pytest.raises(FileNotFoundError, match=r"model \./nowhere is not there"):
        build(model="./nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a folder without a model: it has no config.json"):
        build(model=str(tmp_path / "bare"))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file, but must be the folder"):
        build(model=str(tmp_path / "file"))
    for option in ("output_dir", "teacher_cache"):
        with pytest.raises(PermissionError, match=f"`{option}` .*cannot be written"):
            build(**{option: str(tmp_path / "file")})
    with pytest.raises(ValueError, match="`max_length` is 0"):
        build(max_length=0)


def save(tmp_path, **changes):
    build_student(**changes).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.parametrize("weight", [0, 0.3])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [USER], "chosen": [{"from": "gpt", "value": "So."}]}, "ShareGPT's format"),
        ({"prompt": [USER], "chosen": [{"role": "gpt", "content": "So."}]}, "unknown role 'gpt'"),
        ({"prompt": [USER], "chosen": []}, "Column `chosen` is an empty conversation"),
        ({"prompt": [USER], "chosen": None}, r"Column `chosen` holds None.* missing \(null\)"),
        ({"prompt": [USER], "chosen": [{"role": "assistant", "content": None}]}, "without `content`"),
        ({"prompt": "How?", "chosen": "So."}, "mix text and messages"),
    ],
)
def test_rows_are_checked_as_the_scorer_checks_them(build, dataset, row, message, weight):
    data = IterableDataset.from_generator(lambda: iter([{"rejected": [ASSISTANT], **row}]))
    with pytest.raises(ValueError, match=f"Row 0: .*{message}"):
        build(data, alignment_weight=weight)
    if "prompt" in row and row["prompt"] != "How?" and "from" not in str(row):
        first = {key: [USER] if key == "prompt" else [ASSISTANT] for key in ("prompt", "chosen", "rejected")}
        with pytest.raises(ValueError, match=f"eval dataset: Row 1: .*{message}"):
            rows = Dataset.from_list([first, {"rejected": [ASSISTANT], **row}])
            build(eval_dataset=rows, alignment_weight=weight)


def test_a_prompt_text_beside_whole_conversations_says_what_to_do(build, dataset):
    whole = dataset.map(lambda row: {side: row["prompt"] + row[side] for side in ("chosen", "rejected")})
    mixed = whole.remove_columns("prompt").add_column("prompt", ["How?"] * len(whole))
    with pytest.raises(ValueError, match=r"mix text and messages.*`dataset.remove_columns\('prompt'\)`"):
        build(mixed)


@pytest.mark.parametrize("weight", [0, 0.3])
@pytest.mark.parametrize("is_text", [False, True])
def test_a_prompt_that_the_responses_repeat_is_counted(build, dataset, caplog, weight, is_text):
    def repeat(row, index):
        parts = {name: row[name][0]["content"] if is_text else row[name] for name in row}
        if index < 3:
            parts |= {side: parts["prompt"] + parts[side] for side in ("chosen", "rejected")}
        return parts

    rows = dataset.select(range(8)).to_list()
    data = Dataset.from_list([repeat(row, index) for index, row in enumerate(rows)])
    with caplog.at_level(logging.WARNING):
        build(data, alignment_weight=weight, max_length=None)
    assert "train dataset: in 3 of 8 pairs both responses begin with the prompt" in caplog.text
    caplog.clear()
    build(dataset, alignment_weight=weight)
    assert "begin with the prompt" not in caplog.text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_margins_are_numbers_in_every_row(build, dataset, value):
    margins = [0.5] * len(dataset)
    margins[5] = value
    data = dataset.add_column("margin", margins)
    with pytest.raises(ValueError, match=r"train dataset: Row 5: `margin` is (None|nan|inf), but .*finite"):
        build(data)
    trainer = build(data.select(range(5)).to_iterable_dataset())
    with pytest.raises(ValueError, match=r"Row 1: `margin` is"):
        trainer.data_collator([{**row, "pair_index": n} for n, row in enumerate(data.select([4, 5]))])


def test_images_are_not_read_and_said_so(build, dataset, caplog):
    with caplog.at_level(logging.WARNING):
        build(dataset.add_column("images", ["cat.png"] * len(dataset)))
    assert "The train dataset has the column `images`, which a reward model of text does not read" in caplog.text


def test_texts_beyond_the_positions(build, dataset, caplog):
    short = {"gpt2": {"n_positions": 64}, "llama": {"max_position_embeddings": 64}}
    with pytest.raises(ValueError, match=r"longest text of the train dataset has \d+ tokens, more than the 64 .*GPT2"):
        build(model=build_student("gpt2", "eager", **short["gpt2"]))
    with caplog.at_level(logging.WARNING):
        build(model=build_student("llama", **short["llama"]), max_steps=1)
    assert "more than the 64 positions of Llama" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer = build(eval_dataset=dataset.select(range(4)), max_steps=1)
        trainer.train()
    assert "positions of Llama" not in caplog.text and len(losses(trainer)) == 1
