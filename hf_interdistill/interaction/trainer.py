"""`InteractionDistillationTrainer`: TRL's `RewardTrainer` with an alignment loss added in `compute_loss`.

Overrides `_prepare_dataset`, `_set_signature_columns_if_needed` and `compute_loss`. The loss itself is in `objective`;
`AlignmentLearning` logs and evaluates, `HubPublishing` publishes the model, `TrainingSafeguards` checks losses and
checkpoints.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import ClassVar

import torch
from datasets import Dataset
from torch import nn
from trl import RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from ..hub.citations import PAPER
from ..scoring.batching import LengthScaling, require_padding_independence
from ..scoring.formatting import RewardFormatter
from ..scoring.raw_reward import answer_with_raw_reward
from ..training.checkpoints import output_folder
from ..training.safeguards import TrainingSafeguards
from ..utils.atomic_io import require_writable
from ..utils.model_config import text_config
from ..utils.versions import warn_if_untested
from ..utils.whole_models import LoadReport
from .attribute_head import AttributeSaving, AttributeStates
from .config import InteractionDistillationConfig, refuse_reentrant_checkpointing
from .data.attributes import ATTRIBUTE_COLUMNS, mean_scores
from .data.collator import ALIGNMENT_KEYS, AlignmentCollator, PairIndexCollator
from .data.dataset_checks import check_columns, check_lengths, check_rows
from .data.labels import SHARES
from .data.preference_tokenizer import PreferenceTokenizer
from .data.preparation import (
    add_pair_index,
    log_pair_statistics,
    tokenize_conversations,
    tokenize_pairs,
    warn_of_date,
    without_own_names,
)
from .data.rankings import RANKING_COLUMNS, read_rankings, without_long
from .grouping import LengthGrouping, with_lengths
from .language_head import LanguageHead
from .learning import AlignmentLearning
from .losses.schedules import scheduled_weight
from .losses.triton.dispatch import require_device
from .map_cache.cached_teacher import CachedTeacher, MapCacheCallback
from .map_cache.codec import MapFormat
from .objective import AlignmentObjective, AlignmentSettings
from .prompt_sharing.sharing import PromptSharing
from .publishing import HubPublishing
from .responses import ResponseRows
from .reward_loss import RewardLoss
from .starting_point import checked_start, require_trained_head
from .teacher.teacher import InteractionTeacher
from .teacher.training import chance_warning
from .validation import check_arguments, load_teacher, named_datasets, require_trainable_below

logger = logging.getLogger(__name__)


class InteractionDistillationTrainer(
    AlignmentLearning, AttributeSaving, LengthGrouping, TrainingSafeguards, HubPublishing, RewardTrainer
):
    """Trains a reward model that simulates the token-interaction map of a bidirectional teacher.

    Source: our reconstruction of arXiv 2508.02618: `loss = RewardTrainer's loss + weight * alignment loss`, where
    the alignment loss is the mean over units of `KL(teacher row || simulated student row)`. Inference is unchanged.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, ...: as in `RewardTrainer`, with an
            `InteractionDistillationConfig` for `args`.
        teacher: an `InteractionTeacher`, or its folder or name; `args.teacher_model` by default. Not needed with
            `alignment_weight=0`.

    Logs, in addition to RewardTrainer's keys: `interaction/loss`, `interaction/intra`, `interaction/inter` (nats for
    `kl`), `interaction/explained`, `interaction/explained_intra`, `interaction/explained_inter` (the share of the
    teacher's map that was learnt, see `AlignmentLearning`; also at step 0), `interaction/weight`,
    `interaction/teacher_accuracy`; those of the options of the reward loss, where they are on (see
    `RewardLossOptions`): `label/accuracy` (of the pairs with a winner), `label/tie_probability`, `length/loss`,
    `length/correlation`, `regularization/loss`, `regularization/logps_chosen`; `label/concordance` of ranked
    responses; `attribute/loss` and `attribute/NAME`, squared errors. With the prefix `eval_` in evaluation.

    Raises:
        ValueError: no teacher; slow tokenizers; layers that do not exist or have no softmax attention; reentrant
            checkpointing; an adapter that the alignment loss does not train; missing columns.
        FloatingPointError: the loss or a gradient is not finite. The row indices of the batch and a checkpoint are
            saved first.
        CheckpointError: a checkpoint to resume from is damaged, or a checkpoint cannot be written.

    Relations: with `alignment_weight=0` it trains exactly as `RewardTrainer`. `RewardScorer` loads the result, as any
    loader of an `AutoModelForSequenceClassification`. A subclass overrides `build_objective` for another alignment.
    """

    args: InteractionDistillationConfig
    model: nn.Module
    hub_model_id: str | None  # type: ignore[assignment]  # transformers sets it later, and declares no type
    _signature_columns: list[str] | None  # type: ignore[assignment]

    _tag_names: ClassVar = [*RewardTrainer._tag_names, "interaction-distillation"]  # type: ignore[misc]
    _name = "Interaction Distillation"
    _paper = PAPER

    def __init__(self, model, args=None, *rest, teacher: InteractionTeacher | str | None = None, **kwargs):
        warn_if_untested()
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = InteractionDistillationConfig(f"{name.split('/')[-1]}-Reward")
        if not isinstance(args, InteractionDistillationConfig):
            raise TypeError(
                f"`args` is a {type(args).__name__}, but InteractionDistillationTrainer needs an "
                "InteractionDistillationConfig (it has every field of RewardConfig)."
            )
        require_writable("output_dir", output_folder(args), "checkpoints would be lost")
        if args.teacher_cache is not None and args.alignment_weight:
            require_writable("teacher_cache", args.teacher_cache, "the teacher's maps would not be kept")
        given = inspect.signature(RewardTrainer).bind(model, args, *rest, **kwargs).arguments
        check_arguments(args, given)
        self.teacher = load_teacher(teacher, args)
        if self.teacher is not None:
            self.teacher.check_layers(args.teacher_layers)
            self.teacher.check_length(args.teacher_max_length or self.teacher.max_length)
        self.objective: AlignmentObjective | None = None
        self._is_date_checked = False
        self._is_train_next = given.get("train_dataset") is not None  # an evaluation set may be named `train` too
        self._dropped = torch.zeros(1, dtype=torch.long).share_memory_()
        signature = inspect.signature(RewardTrainer.__init__)
        bound, report = checked_start(signature.bind(self, model, args, *rest, **kwargs))
        super().__init__(*bound.args[1:], **bound.kwargs)
        self._check_model(report)
        answer_with_raw_reward(self.model.config)
        for name, dataset in named_datasets(self.train_dataset, self.eval_dataset).items():
            check_lengths(dataset, name, self.model)
        self._sharing = self._build_prompt_sharing()
        self._reward_loss = self._build_reward_loss(model if isinstance(model, str) else None)
        if self.teacher is None:
            pad = text_config(self.model).pad_token_id
            self.data_collator = PairIndexCollator(self.data_collator, pad, list(args.attributes))
        else:
            self._set_up_alignment(args, self.teacher)

    def _check_model(self, report: LoadReport | None) -> None:
        """Refuse an adapter without a trained head, and rewards that depend on the other texts of a batch."""
        require_trained_head(self.model, report)
        scaling = LengthScaling.of(self.model)
        if scaling is not None:
            scaling.refuse_longer(self.args.max_length, "max_length")
        if not self._is_sharded:
            with self.accelerator.autocast():
                require_padding_independence(self.model, self.processing_class)

    def _set_up_alignment(self, args: InteractionDistillationConfig, teacher: InteractionTeacher) -> None:
        if args.gradient_checkpointing:  # checked again: RewardTrainer may have changed it (PEFT with ZeRO-3)
            refuse_reentrant_checkpointing(args.gradient_checkpointing_kwargs, is_set_by_trl=True)
        require_device(args.alignment_kernel, self.accelerator.device)
        teacher.freeze().to(self.accelerator.device)
        self.teacher_max_length = teacher.check_length(args.teacher_max_length or teacher.max_length)
        self.objective = self.build_objective(self._open_map_cache(args, teacher))
        self._recorder = self.objective.build_recorder(self.model)
        require_trainable_below(self.model, self._recorder.layers)
        self.data_collator = AlignmentCollator(
            self.data_collator,
            replace(teacher.layout, max_length=self.teacher_max_length),
            has_map_keys=args.teacher_cache is not None,
            pad_token_id=text_config(self.model).pad_token_id,
            attributes=list(args.attributes),
        )
        warning = chance_warning(teacher.name, teacher.metrics)
        if warning:
            logger.warning(warning)

    def build_objective(self, cached_teacher: CachedTeacher | None) -> AlignmentObjective:
        """The alignment objective of this run; a subclass can return another one.

        Args:
            cached_teacher: the teacher with its cache; `None` without `teacher_cache`.
        """
        assert self.teacher is not None, "without a teacher there is no alignment, and no objective is built"
        settings = AlignmentSettings.from_config(self.args)
        autocast = self.accelerator.autocast
        return AlignmentObjective(self.teacher, settings, cached_teacher=cached_teacher, autocast=autocast)

    def _open_map_cache(
        self, args: InteractionDistillationConfig, teacher: InteractionTeacher
    ) -> CachedTeacher | None:
        if args.teacher_cache is None:
            return None
        cached_teacher = CachedTeacher(
            teacher,
            args.teacher_cache,
            args.teacher_layers,
            MapFormat(args.teacher_cache_precision, args.teacher_cache_top_k),
            autocast=self.accelerator.mixed_precision,
            process_index=self.accelerator.process_index,
        )
        self.add_callback(MapCacheCallback(cached_teacher))
        return cached_teacher

    def _build_prompt_sharing(self) -> PromptSharing:
        """`auto` shares no prompts without alignment, so that such runs equal `RewardTrainer`'s to the last bit."""
        choice = "false" if self.args.share_prompt == "auto" and self.teacher is None else self.args.share_prompt
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        return PromptSharing(self.model, choice, autocast)

    def _build_reward_loss(self, start: str | None) -> RewardLoss:
        head, weights = None, self.args.attributes
        if weights:
            self._attributes = AttributeStates(self.model, weights, self._mean_scores, self._is_sharded)
        if self.args.regularization_weight:
            head = LanguageHead(self.model, start, self.args, is_sharded=self._is_sharded)
            head = head.to(self.accelerator.device)
        return RewardLoss(self.args, head, self._attributes)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        is_training, self._is_train_next = self._is_train_next, False
        check_columns(dataset, dataset_name, is_text_needed=self.teacher is not None)
        if isinstance(dataset, Dataset):  # rows are read as Python values, whatever form they are given out in
            dataset = dataset.with_format(None)
        dataset = without_own_names(dataset)
        if args.attributes:
            means = mean_scores(dataset, list(args.attributes), dataset_name)
            self._mean_scores = self.__dict__.get("_mean_scores", means)  # of the training data, which come first
        dataset = read_rankings(dataset, processing_class, name=dataset_name, num_proc=args.dataset_num_proc)
        if "pair_index" not in get_dataset_column_names(dataset):
            check_rows(dataset, dataset_name, RewardFormatter(processing_class))
        if self.teacher is None:
            dataset = tokenize_conversations(
                add_pair_index(dataset),
                processing_class,
                name=dataset_name,
                num_proc=args.dataset_num_proc,
                is_training=is_training,
            )
        else:
            dataset = tokenize_pairs(
                dataset,
                PreferenceTokenizer(processing_class, self.teacher.tokenizer),
                name=dataset_name,
                num_proc=args.dataset_num_proc,
                max_length=args.max_length,
                dropped=self._dropped,
                is_training=is_training,
            )
        if not self._is_date_checked:
            self._is_date_checked = True
            warn_of_date(dataset, processing_class)
        columns = get_dataset_column_names(dataset)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        prepared = without_long(prepared, args.max_length, columns)
        prepared = with_lengths(prepared, args) if is_training else prepared
        log_pair_statistics(dataset, prepared, dataset_name, args.max_length)
        if hasattr(self, "model"):  # else checked when the model is there
            check_lengths(prepared, dataset_name, self.model)
        return prepared

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        known = self._signature_columns or []
        added = (*PreferenceTokenizer.COLUMNS, *SHARES, *RANKING_COLUMNS, *ATTRIBUTE_COLUMNS)
        self._signature_columns = known + [column for column in added if column not in known]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = {key: inputs[key] for key in ALIGNMENT_KEYS if key in inputs}
        inputs = {key: value for key, value in inputs.items() if key not in batch}
        labels = self._reward_loss.take_labels(inputs)
        rows = ResponseRows.take(inputs)
        self._sharing.verify_once(model, inputs["input_ids"], inputs["attention_mask"], gather=self.accelerator.gather)
        packed = rows.pack(self._sharing)
        if rows.ranks is not None and self.model.training:  # `RewardTrainer` counts those of pairs
            self._total_train_tokens += int(self.accelerator.gather_for_metrics(rows.num_other_tokens).sum())
        token_index = None if packed is None else packed.token_index
        with self._recorder if self.objective is not None else nullcontext(), self._reward_loss.recording(rows):
            loss, outputs = super().compute_loss(
                rows.model(model, self._sharing, packed),
                inputs,
                return_outputs=True,
                num_items_in_batch=num_items_in_batch,
            )
        reward = self._reward_loss(loss, outputs.logits, inputs, labels, rows, token_index)
        self._log_reward_loss(reward.metrics)
        loss = reward.loss
        if self.objective is not None:
            alignment = self.objective(
                batch,
                self._recorder.records,
                token_index=token_index,
                num_pairs=self._num_new_pairs(len(batch["pair_key"])),
                **self._visit(),
            )
            self._recorder.release()
            weight = scheduled_weight(
                self.args.alignment_weight, self.args.alignment_schedule, self.state.global_step, self.state.max_steps
            )
            loss = loss + weight * alignment.loss
            self._log_alignment(alignment, weight)
        if self.model.training:
            self.require_finite(loss, batch.get("pair_index"))
        return (loss, outputs) if return_outputs else loss

    def log_start(self) -> None:
        """As in `AlignmentLearning`; the maps of the untrained student are kept for the model card."""
        super().log_start()
        self.keep_maps()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in `Trainer`; then the saved model is loaded, and must have the tokens and rewards of this one."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self.require_reloadable(output_dir)
