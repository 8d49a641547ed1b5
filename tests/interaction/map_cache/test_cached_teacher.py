"""The maps of a cache equal the teacher's: families, keys, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.datasets import ROOT
from support.models import build_encoder, build_student
from support.tokenizers import tokenizer_of
from trl.trainer.reward_trainer import DataCollatorForPreference

from hf_interdistill import InteractionTeacher
from hf_interdistill.interaction.attention.map_sources import dense
from hf_interdistill.interaction.data.collator import AlignmentCollator
from hf_interdistill.interaction.data.map_keys import map_key
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer
from hf_interdistill.interaction.data.teacher_inputs import TeacherInput
from hf_interdistill.interaction.map_cache.cached_teacher import CachedTeacher
from hf_interdistill.interaction.map_cache.codec import MapFormat


@pytest.fixture
def teacher():
    """One that encodes a pair in one row, so that the order matters."""
    return InteractionTeacher(*build_encoder(), max_length=256, interaction_layers=0)


def make_batch(rows, teacher, count=5):
    tokenize = PreferenceTokenizer(tokenizer_of("bytes"), teacher.tokenizer)
    examples = [tokenize(row, number) for number, row in enumerate(rows[:count])]
    collate = AlignmentCollator(
        DataCollatorForPreference(pad_token_id=3), replace(teacher.layout, max_length=128), has_map_keys=True
    )
    batch = collate(examples)
    inputs = {name.removeprefix("teacher_"): value for name, value in batch.items() if name.startswith("teacher_")}
    return batch, inputs


FAMILIES = [("bert", 0), ("bert", 1), ("roberta", 0), ("modernbert", 1), ("deberta-v2", 0)]


@pytest.mark.parametrize(("family", "interaction_layers"), FAMILIES)
def test_maps_and_margins_of_teacher_families(rows, tmp_path, family, interaction_layers):
    teacher = InteractionTeacher(
        *build_encoder(family), max_length=256, interaction_layers=interaction_layers
    ).freeze()
    batch, inputs = make_batch(rows, teacher)
    segments, order = batch["segments"], torch.tensor([0, 1, 1, 0, 1])
    margins, sources = teacher.forward(inputs, order, [-1], segments.shape[1])
    for _ in range(2):  # read by the teacher, read from the disk
        cached = CachedTeacher(teacher, str(tmp_path), [-1], MapFormat("exact"))
        kept_margins, kept = cached.forward(inputs, batch["map_key"], order, segments, is_caching_both_orders=False)
        torch.testing.assert_close(kept_margins, margins, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dense(kept[0]), dense(sources[0]), rtol=1e-5, atol=1e-7)
        assert torch.equal(kept[0].present, sources[0].present)
    assert cached.pairs_computed == 0
    cached.forward(inputs, batch["map_key"], 1 - order, segments, is_caching_both_orders=False)
    assert cached.pairs_computed == (0 if interaction_layers else 5)  # rows of their own have no order


def test_processes_find_what_others_wrote(rows, tmp_path, teacher):
    teacher.freeze()
    batch, inputs = make_batch(rows, teacher, count=4)

    def part(pairs):
        return {name: tensor[pairs] for name, tensor in inputs.items()}, batch["map_key"][pairs]

    def read(cached, pairs, order):
        values, keys = part(pairs)
        order = torch.full((len(pairs),), order)
        return cached.forward(values, keys, order, batch["segments"][pairs], is_caching_both_orders=True)

    ranks = [CachedTeacher(teacher, str(tmp_path), [-1], MapFormat(), process_index=index) for index in range(2)]
    own = [read(ranks[0], [0, 1], 0), read(ranks[1], [2, 3], 0)]
    assert [rank.pairs_computed for rank in ranks] == [4, 4] and len(list(tmp_path.glob("*/maps-*.bin"))) == 2
    for rank in ranks:
        rank.refresh()
    swapped = [read(ranks[1], [0, 1], 0), read(ranks[0], [2, 3], 0)]
    read(ranks[1], [0, 1], 1)
    assert [rank.pairs_computed for rank in ranks] == [4, 4]
    for (margins, rows_of), (other_margins, others) in zip(own, swapped, strict=True):
        assert torch.equal(margins, other_margins) and torch.equal(dense(rows_of[0]), dense(others[0]))


def test_keys_tell_inputs_apart(rows, teacher):
    batch, _ = make_batch(rows, teacher, count=3)
    keys = {tuple(key) for pair in batch["map_key"].tolist() for key in pair}
    assert len(keys) == 6  # each pair, each order
    again, _ = make_batch(rows[:1], teacher, count=1)  # alone, so padded otherwise
    assert torch.equal(again["map_key"][0], batch["map_key"][0])
    base = TeacherInput(ids=[1, 2, 3], types=[0, 0, 1], units=[-1, 0, 1], score_positions=[1, 2])
    changed = [
        replace(base, ids=[1, 2, 4]),
        replace(base, types=[0, 1, 1]),
        replace(base, units=[-1, 1, 1]),
        replace(base, score_positions=[0, 2]),
        replace(base, ids=[1, 2], types=[3, 0, 0, 1]),  # the same numbers, parted elsewhere
    ]
    assert len({map_key([base], 2), map_key([base], 3), *(map_key([other], 2) for other in changed)}) == 7
    assert map_key([replace(base)], 2) == map_key([base], 2) != map_key([base, base], 2)


SCRIPT = """
import json, os, sys
import torch
from datasets import Dataset
from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer

torch.set_num_threads(1)
folder, cache = sys.argv[1:]
world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
rows = [json.loads(line) for line in open(f"{folder}/rows.jsonl")]
args = InteractionDistillationConfig(
    output_dir=f"{folder}/run", teacher_model=f"{folder}/teacher", alignment_weight=1.0, num_train_epochs=3,
    per_device_train_batch_size=4 // world, learning_rate=1e-3, logging_steps=1, bf16=False, use_cpu=True,
    report_to="none", disable_tqdm=True, save_strategy="no", teacher_cache=cache, teacher_cache_precision="exact",
)
trainer = InteractionDistillationTrainer(f"{folder}/student", args, train_dataset=Dataset.from_list(rows))
trainer.train()
losses = [entry["interaction/loss"] for entry in trainer.state.log_history if "loss" in entry]
with open(f"{folder}/log{world}-{rank}.json", "w") as file:
    computed = trainer.objective.cached_teacher.pairs_computed
    json.dump({"computed": computed, "losses": [float(loss) for loss in losses]}, file)
"""


@pytest.mark.slow
def test_two_processes_share_computed_maps(tmp_path, rows):
    build_student().save_pretrained(tmp_path / "student")
    tokenizer_of("bytes").save_pretrained(tmp_path / "student")
    teacher = InteractionTeacher(*build_encoder(), max_length=256, interaction_layers=0)  # so that the order matters
    teacher.save_pretrained(str(tmp_path / "teacher"))
    lines = [json.dumps({key: row[key] for key in ("prompt", "chosen", "rejected")}) for row in rows[:8]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for cache, launcher in (
        ("a", []),
        ("b", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        command = [sys.executable, *launcher, str(tmp_path / "train.py"), str(tmp_path), str(tmp_path / cache)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
    one, first, second = (json.loads((tmp_path / f"log{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert one["computed"] == 16  # each pair in both orders
    assert first["computed"] == second["computed"] == 8  # by one of them
    assert len(list((tmp_path / "b").glob("*/maps-*.bin"))) == 2
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-4)
