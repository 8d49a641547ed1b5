"""`interdistill teacher`: train an `InteractionTeacher` on preferences."""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from ..interaction.data.pairs import read_preferences
from ..interaction.data.winners import rows_with_winners
from ..interaction.teacher.config import InteractionTeacherConfig
from ..interaction.teacher.teacher import InteractionTeacher
from ..interaction.teacher.training import held_out_metrics
from ..training.checkpoints import is_resume_requested, output_folder
from ..training.data_arguments import DataArguments
from ..utils.data import get_split
from ..utils.model_config import require_model
from ..utils.sources import refuse_same_folder
from ..utils.whole_models import hub_options
from .tables import print_metrics

ARGUMENTS = (DataArguments, InteractionTeacherConfig)


def run(data: DataArguments, args: InteractionTeacherConfig) -> dict:
    """Train, save to `output_dir`, and measure on the test split if there is one; returns the metrics."""
    if args.teacher_model is None:
        raise ValueError(
            "`teacher_model` is not set: name the encoder or causal language model to start from (a Hub name or a "
            "folder)."
        )
    read: dict[str, Any] = {"`dataset_name`": data.dataset_name, "`teacher_model`": args.teacher_model}
    refuse_same_folder("`output_dir`", output_folder(args), read)
    splits = data.load()
    preferences = get_split(splits, data.dataset_train_split, data.dataset_name)
    options: Any = args.model_init_kwargs  # a mapping, whatever was given
    require_model("teacher", args.teacher_model, **hub_options(options, "trust_remote_code"))
    tests = None  # read before the training, which takes long
    test_rows = data.test_rows(splits)
    if test_rows is not None:
        tests = read_preferences(rows_with_winners(test_rows, data.test_split), data.test_split)
    set_seed(args.seed)  # the score head is new, and the encoder's pooler may be
    teacher = InteractionTeacher.from_pretrained(args.teacher_model, **options)
    metrics = teacher.fit(
        preferences, args=args, resume_from_checkpoint=is_resume_requested(args.resume_from_checkpoint)
    )
    columns = {"held out": metrics}
    if tests is not None:
        margins = teacher.score_pairs(tests, batch_size=args.per_device_eval_batch_size)
        columns[data.test_split] = held_out_metrics(margins)
    if args.should_save:
        print_metrics(f"Teacher {teacher.name}", columns)
        print(f"Saved to {args.output_dir}. Next: interdistill reward --teacher_model {args.output_dir} ...")
    return columns
