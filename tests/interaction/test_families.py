"""The matrix of families: one training step each, compared with docs/families.md.

By default the cells of `QUICK`; `python -m pytest tests/interaction/test_families.py` runs the whole grid.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from support import families_table
from support.datasets import ROOT, read_rows
from support.families_table import STUDENT_COLUMNS, STUDENTS, TEACHER_COLUMNS, TEACHERS
from support.models import STUDENT_FAMILIES, build_encoder, build_student
from support.tokenizers import tokenizer_of
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer, InteractionTeacher
from hf_interdistill.interaction import objective as objective_module
from hf_interdistill.interaction.attention.interceptor import layer_of_modules

VERSIONS = ", ".join(f"{each.__name__} {each.__version__.split('+')[0]}" for each in (torch, transformers, trl))
PAGE = ROOT / "docs" / "families.md"
METRICS = {"accuracy": 0.7, "standard_error": 0.05, "pairs": 100, "is_better_than_chance": True}
# A recorded layer's queries and keys come from these, one or both at once.
MAKERS = ("q_proj", "k_proj", "query_key_value", "qkv_proj", "c_attn")
ALWAYS = {"sdpa float32 full", "sdpa bfloat16 LoRA"}


def is_quick(role: str, family: str, column: str) -> bool:
    """Each family in full and as an adapter, in both precisions and, for one in four, with eager attention."""
    if role == "teacher":
        return column in ("sdpa float32", "sdpa bfloat16")
    eager = {"eager float32 full"} if family in ("gemma2", "gpt_neox", "opt", "falcon") else set()
    return column in ALWAYS | eager


def cells(role: str, families, columns) -> list:
    return [
        pytest.param(family, column, marks=[] if is_quick(role, family, column) else [pytest.mark.slow])
        for family in families
        for column in columns
    ]


@pytest.fixture(scope="session")
def documented() -> dict[str, dict]:
    """The outcomes of the committed page."""
    return families_table.read(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def outcomes():
    """What the cells saw; written to `FAMILIES_JSON` at the end."""
    seen: dict[str, dict] = {}
    yield seen
    if os.environ.get("FAMILIES_JSON"):
        path = Path(os.environ["FAMILIES_JSON"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"versions": VERSIONS, "cells": seen}, indent=1), encoding="utf-8")


def fitted(encoder, tokenizer) -> InteractionTeacher:
    return InteractionTeacher(encoder, tokenizer, max_length=256, metrics=METRICS)


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    return Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:4]])


@pytest.fixture(scope="session")
def prepared(pairs, tmp_path_factory) -> tuple[Dataset, InteractionTeacher]:
    """Pairs encoded for student and BERT, once for all students."""
    teacher = fitted(*build_encoder())
    return make_trainer(build_student(), pairs, teacher, tmp_path_factory.mktemp("prepared")).train_dataset, teacher


def make_trainer(student, pairs, teacher, folder, tuning="full") -> InteractionDistillationTrainer:
    lora = None
    if tuning == "LoRA":
        peft = pytest.importorskip("peft")
        lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["score"])
    return InteractionDistillationTrainer(
        student,
        config(folder, max_steps=1, alignment_weight=1.0, learning_rate=1e-2),
        train_dataset=pairs,
        processing_class=tokenizer_of("bytes"),
        teacher=teacher,
        peft_config=lora,
    )


def makers(trainer) -> dict[str, torch.Tensor]:
    """The trainable weights that make queries and keys of the recorded layer."""
    layer = trainer._recorder.layers[0]
    found = {
        f"{name}.{part}": parameter
        for name, module in trainer.model.named_modules()
        if layer_of_modules(trainer.model).get(module) == layer and any(maker in name for maker in MAKERS)
        for part, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and "lora_A" not in name  # at first the other factor is zero, and A has no gradient
    }
    assert found
    return found


def train_one_step(trainer, monkeypatch) -> None:
    """One step; fails unless loss, gradients and weights are what `yes` means in docs/families.md."""
    gradients: dict[str, list[torch.Tensor]] = {"query": [], "key": []}
    student_map = objective_module.student_map

    def spying(record, *rest):
        if record.query.requires_grad:  # copies, so that what comes back is of the alignment loss alone
            record = replace(record, query=record.query.clone(), key=record.key.clone())
            record.query.register_hook(gradients["query"].append)
            record.key.register_hook(gradients["key"].append)
        return student_map(record, *rest)

    monkeypatch.setattr(objective_module, "student_map", spying)
    weights = makers(trainer)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for key in ("loss", "grad_norm", "interaction/loss"):
        assert 0 < float(logs[key]) < float("inf"), f"{key} is {logs[key]}"
    for what, seen in gradients.items():
        assert len(seen) == 1 and seen[0].isfinite().all() and seen[0].abs().sum() > 0, what
    for name, weight in weights.items():
        if "bias" not in name:  # the bias of keys moves no softmax
            assert weight.isfinite().all() and not torch.equal(weight, before[name]), name


def sharing_of(trainer) -> str:
    """What `share_prompt` decided, in words that are the same in every run."""
    sharing = trainer._sharing
    if sharing.disabled_reason is not None:
        return f"no: {sharing.disabled_reason.split(' (their relative')[0]}"
    return "yes" if sharing._window is None else "yes, if a row fits in its attention window"


def compare(documented: dict[str, dict], name: str, outcome: dict) -> None:
    """The page must have this outcome; with other versions than the page's, any clean refusal will do."""
    if families_table.read_versions(PAGE.read_text(encoding="utf-8")) == VERSIONS:
        assert outcome == documented.get(name), f"docs/families.md has another outcome for {name}"


def attempt(work) -> tuple[str, object]:
    """`yes` and the trainer, or the first sentence of the error that refuses a family."""
    try:
        return "yes", work()
    except (ValueError, NotImplementedError) as error:
        return str(error).split(". ")[0].rstrip("."), None


@pytest.mark.parametrize(("family", "column"), cells("student", STUDENTS, STUDENT_COLUMNS))
def test_student(family, column, prepared, documented, outcomes, tmp_path, monkeypatch):
    attention, dtype, tuning = column.split()

    def work():
        student = build_student(family, attention).to(getattr(torch, dtype))
        trainer = make_trainer(student, *prepared, tmp_path, tuning)
        train_one_step(trainer, monkeypatch)
        return trainer

    trained, trainer = attempt(work)
    name = f"student {family}: {column}"
    outcomes[name] = {"trained": trained, "sharing": "" if trainer is None else sharing_of(trainer)}
    compare(documented, name, outcomes[name])


@pytest.mark.parametrize(("family", "column"), cells("teacher", TEACHERS, TEACHER_COLUMNS))
def test_teacher(family, column, pairs, documented, outcomes, tmp_path, monkeypatch):
    attention, dtype = column.split()

    def work():
        if family in STUDENTS:  # a decoder, its window as long as a row
            window = {"sliding_window": 256} if "sliding_window" in STUDENT_FAMILIES.get(family, {}) else {}
            encoder, tokenizer = build_student(family, attention, **window), tokenizer_of("bytes")
        else:
            encoder, tokenizer = build_encoder(family, attention=attention)
        trainer = make_trainer(build_student(), pairs, fitted(encoder.to(getattr(torch, dtype)), tokenizer), tmp_path)
        train_one_step(trainer, monkeypatch)
        return trainer

    name = f"teacher {family}: {column}"
    outcomes[name] = {"trained": attempt(work)[0], "sharing": ""}
    compare(documented, name, outcomes[name])


def test_the_page_is_rendered_from_its_cells(documented):
    expected = [f"student {family}: {column}" for family in STUDENTS for column in STUDENT_COLUMNS]
    expected += [f"teacher {family}: {column}" for family in TEACHERS for column in TEACHER_COLUMNS]
    assert list(documented) == expected
    page = PAGE.read_text(encoding="utf-8")
    versions = families_table.read_versions(page)
    assert families_table.render(documented, versions) == page
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(each.replace(" ", "==") in pins for each in versions.split(", ")), "run the grid with the new pins"


def test_a_page_that_differs_is_detected(documented):
    name = "student llama: sdpa float32 full"
    changed = {**documented, name: {"trained": "it exploded", "sharing": ""}}
    assert families_table.read(families_table.render(changed, VERSIONS))[name]["trained"] == "it exploded"
    assert families_table.render(changed, VERSIONS) != PAGE.read_text(encoding="utf-8")
