"""`InteractionDistillationTrainer`: TRL's `RewardTrainer` with an alignment loss in `compute_loss`.

Overrides: `_prepare_dataset`, `_set_signature_columns_if_needed`, `compute_loss`, `evaluate`; what is
published, and how, is `HubPublishing`'s; what is checked on the way is `SafeTraining`'s.
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import ClassVar

import torch
from trl import RewardTrainer
from trl.trainer.utils import get_config_model_id

from ..hub.citations import PAPER
from ..training.safeguards import SafeTraining
from ..utils.versions import warn_if_untested
from .attention.map_sources import Rows, UniformRows, shuffled_rows
from .attention.maps import UnitTokens, end_to_end, student_map
from .attention.recorder import AttentionRecorder, resolve_layers
from .config import InteractionDistillationConfig, refuse_reentrant_checkpointing
from .data.collator import ALIGNMENT_KEYS, AlignmentCollator, PairIndexCollator
from .data.orders import choose_order
from .data.preference_tokenizer import PreferenceTokenizer
from .data.preparation import add_pair_index, check_columns, report, tokenize_pairs
from .losses.alignment import AlignmentResult, alignment_loss, mean_alignment
from .losses.schedules import scheduled_weight
from .losses.triton.dispatch import require_device
from .map_cache.cached_teacher import CachedTeacher, MapCacheCallback
from .map_cache.codec import MapFormat
from .prompt_sharing.packing import PackedPairs
from .prompt_sharing.sharing import PromptSharing
from .publishing import HubPublishing
from .teacher.teacher import InteractionTeacher
from .teacher.training import chance_warning
from .validation import load_teacher, require_trainable_below, require_writable

logger = logging.getLogger(__name__)


class InteractionDistillationTrainer(SafeTraining, HubPublishing, RewardTrainer):
    """Trains a reward model that simulates the token-interaction map of a bidirectional teacher.

    Source: after arXiv 2508.02618, a reconstruction: `loss = RewardTrainer's loss + weight * alignment loss`, where
    the alignment loss is the mean over units of `KL(teacher row || simulated student row)`. Inference is unchanged.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, ...: as in `RewardTrainer`, with an
            `InteractionDistillationConfig` for `args`.
        teacher: an `InteractionTeacher`, or the folder or name of one; `args.teacher_model` if left out. Not needed
            with `alignment_weight=0`.

    Logs, beside RewardTrainer's: `interaction/loss`, `interaction/intra`, `interaction/inter` (nats for `kl`),
    `interaction/weight`, `interaction/teacher_accuracy`; with the prefix `eval_` in evaluation.

    Raises:
        ValueError: no teacher; slow tokenizers; layers that do not exist or have no softmax attention; reentrant
            checkpointing; an adapter that the alignment cannot reach; missing columns.
        FloatingPointError: the loss or a gradient is not finite (after a checkpoint was saved and the batch's rows
            noted).
        CheckpointError: a checkpoint to go on from is damaged, or one cannot be written.

    Relations: with `alignment_weight=0` it trains as `RewardTrainer` does, to the last bit. `RewardScorer` reads the
    result; so does any code that loads an `AutoModelForSequenceClassification`.
    """

    _tag_names: ClassVar = [*RewardTrainer._tag_names, "interaction-distillation"]
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
        require_writable("output_dir", args.output_dir, "checkpoints would be lost")
        self.teacher = load_teacher(teacher, args)
        self._dropped = torch.zeros(1, dtype=torch.long).share_memory_()
        super().__init__(model, args, *rest, **kwargs)
        self._sharing, self._is_sharing_checked = self._prompt_sharing(), False
        if self.teacher is None:
            self.data_collator = PairIndexCollator(self.data_collator)
            return
        if args.gradient_checkpointing:  # again: RewardTrainer may have changed it (PEFT with ZeRO-3)
            refuse_reentrant_checkpointing(args.gradient_checkpointing_kwargs)
        require_device(args.alignment_kernel, self.accelerator.device)
        layers = self.model.config.get_text_config().num_hidden_layers
        self._student_layers = resolve_layers(args.student_layers, layers, "student_layers")
        self.teacher.check_layers(args.teacher_layers)
        require_trainable_below(self.model, self._student_layers)
        self._recorder = AttentionRecorder(self.model, self._student_layers, args.alignment_rope)
        self.teacher_max_length = self.teacher.check_length(args.teacher_max_length or self.teacher.max_length)
        self._cached_teacher: CachedTeacher | None = None
        self.data_collator = AlignmentCollator(
            self.data_collator,
            replace(self.teacher.layout, max_length=self.teacher_max_length),
            has_map_keys=args.teacher_cache is not None,
        )
        self.teacher.freeze().to(self.accelerator.device)
        if args.teacher_cache is not None:
            self._open_cache(args)
        warning = chance_warning(self.teacher.name, self.teacher.metrics)
        if warning:
            logger.warning(warning)

    def _open_cache(self, args: InteractionDistillationConfig) -> None:
        require_writable("teacher_cache", args.teacher_cache, "the teacher's maps would not be kept")
        self._cached_teacher = CachedTeacher(
            self.teacher,
            args.teacher_cache,
            args.teacher_layers,
            MapFormat(args.teacher_cache_precision, args.teacher_cache_top_k),
            autocast=self.accelerator.mixed_precision,
            process_index=self.accelerator.process_index,
        )
        self.add_callback(MapCacheCallback(self._cached_teacher))

    def _prompt_sharing(self) -> PromptSharing:
        """How this run shares prompts: `auto` leaves runs without alignment as they are in `RewardTrainer`."""
        choice = "false" if self.args.share_prompt == "auto" and self.teacher is None else self.args.share_prompt
        precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
        sharing = PromptSharing(self.model, choice, precisions.get(self.accelerator.mixed_precision, self.model.dtype))
        if choice == "auto" and sharing.reason is not None:
            logger.info(f"Two passes a pair instead of one (`share_prompt`): {sharing.reason}.")
        return sharing

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        check_columns(dataset, dataset_name, is_text_needed=self.teacher is not None)
        if self.teacher is None:
            dataset = add_pair_index(dataset)
        else:
            dataset = tokenize_pairs(
                dataset,
                PreferenceTokenizer(processing_class, self.teacher.tokenizer),
                name=dataset_name,
                num_proc=args.dataset_num_proc,
                max_length=args.max_length,
                dropped=self._dropped,
            )
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        report(dataset, prepared, dataset_name, args.max_length)
        return prepared

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        for column in PreferenceTokenizer.COLUMNS:
            if column not in self._signature_columns:
                self._signature_columns.append(column)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        alignment = {key: inputs[key] for key in ALIGNMENT_KEYS if key in inputs}
        inputs = {key: value for key, value in inputs.items() if key not in alignment}
        if not self._is_sharing_checked:
            self._check_sharing(model, inputs)
        packed = self._sharing.pack(inputs["input_ids"], inputs["attention_mask"])
        with self._recorder if self.teacher is not None else nullcontext():
            loss, outputs = super().compute_loss(
                model if packed is None else self._reading_packed(model, packed),
                inputs,
                return_outputs=True,
                num_items_in_batch=num_items_in_batch,
            )
        if self.teacher is not None:
            once = len(alignment["pair_key"]) if self.model.training else _pairs_once(self.accelerator, alignment)
            result, teacher_accuracy = self._align(alignment, packed, once)
            weight = scheduled_weight(
                self.args.alignment_weight, self.args.alignment_schedule, self.state.global_step, self.state.max_steps
            )
            loss = loss + weight * result.loss
            self._log_alignment(result, weight, teacher_accuracy, once)
        if self.model.training:
            self.require_finite(loss, alignment.get("pair_index"))
        return (loss, outputs) if return_outputs else loss

    def _check_sharing(self, model, inputs: dict[str, torch.Tensor]) -> None:
        """Read the first batch in one row and in two, on every process, and go back to two where rewards differ."""
        self._is_sharing_checked = True
        if self._sharing.reason is not None:
            return
        deviation = self._sharing.deviation(model, inputs["input_ids"], inputs["attention_mask"])
        deviation = float(self.accelerator.gather(deviation.reshape(1)).max())
        if deviation <= 1:
            return
        message = (
            f"{type(self.model).__name__} gives other rewards for a pair in one row than for two rows (their relative "
            f"difference is {deviation:.3g} times what rounding explains)"
        )
        if self.args.share_prompt == "true":
            raise ValueError(f"{message}. Set `share_prompt` to 'auto' or 'false'.")
        logger.warning(f"{message}: making two passes.")
        self._sharing.reason = message

    def _reading_packed(self, model, packed: PackedPairs):
        """What `RewardTrainer` calls as the model: same arguments, same rewards, one row a pair."""
        return lambda use_cache, **inputs: self._sharing.forward(model, packed, use_cache=use_cache)

    def _align(
        self, batch: dict[str, torch.Tensor], packed: PackedPairs | None, once: int
    ) -> tuple[AlignmentResult, torch.Tensor]:
        """Alignment loss of the batch just recorded, and the teacher's accuracy on it, over its first `once` pairs."""
        visit = int(self.state.epoch or 0) + 1 if self.model.training else 0
        order = choose_order(batch["pair_key"], self.args.seed, visit)
        inputs = {key.removeprefix("teacher_"): value for key, value in batch.items() if key.startswith("teacher_")}
        segments = batch["segments"].clone()
        segments[once:] = -1  # no unit of theirs counts
        with self.accelerator.autocast():
            if self._cached_teacher is None:
                margins, sources = self.teacher.forward(inputs, order, self.args.teacher_layers, segments.shape[1])
            else:
                epochs = self.state.num_train_epochs if self.model.training else 1
                margins, sources = self._cached_teacher.forward(
                    inputs, batch["map_key"], order, batch["segments"], is_caching_both_orders=1 < epochs < sys.maxsize
                )
        units, index, records = batch["student_units"], batch["student_index"], self._recorder.records
        if packed is None:
            records = [end_to_end(record) for record in records]
        else:
            index = packed.places.gather(1, index)
        tokens = UnitTokens.from_units(units, units >= 0, segments.shape[1])
        results = [
            alignment_loss(
                student_map(record, index, tokens),
                self._controlled(source, segments),
                segments,
                loss=self.args.alignment_loss,
                scope=self.args.alignment_scope,
                queries=self.args.alignment_queries,
                kernel=self.args.alignment_kernel,
            )
            for record, source in zip(records, sources, strict=True)
        ]
        self._recorder.release()
        result, scale = mean_alignment(results), len(segments) / max(once, 1)
        by_scope = {scope: value * scale for scope, value in result.by_scope.items()}
        result = replace(result, loss=result.loss * scale, by_scope=by_scope)
        return result, (margins.sign() / 2 + 0.5)[:once].sum() / max(once, 1)

    def _controlled(self, source: Rows, segments: torch.Tensor) -> Rows:
        if self.args.alignment_control == "uniform":
            return UniformRows(source)
        return shuffled_rows(source, segments) if self.args.alignment_control == "shuffled" else source

    def _log_alignment(
        self, result: AlignmentResult, weight: float, teacher_accuracy: torch.Tensor, once: int
    ) -> None:
        scopes = result.by_scope
        values = torch.stack(
            [result.loss.detach(), scopes["intra"], scopes["inter"], teacher_accuracy.to(result.loss)]
        )
        gathered = self.accelerator.gather(once * torch.cat([torch.ones_like(values[:1]), values])[None]).sum(0)
        loss, intra, inter, accuracy = (gathered[1:] / gathered[0]).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        # The mean over batches that is logged would weigh a short last one too much: in evaluation pairs are counted.
        times = 1 if self.model.training else int(gathered[0])
        metrics["interaction/loss"] += [loss] * times
        metrics["interaction/intra"] += [intra] * times
        metrics["interaction/inter"] += [inter] * times
        metrics["interaction/weight"].append(weight)
        if self.teacher.is_fitted:
            metrics["interaction/teacher_accuracy"] += [accuracy] * times
        if self.model.training and int(self._dropped):  # a stream; a dataset is counted when it is prepared
            metrics["interaction/dropped_pairs"] = [int(self._dropped)]

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        teacher, student = metrics.get("eval_interaction/teacher_accuracy"), metrics.get("eval_accuracy")
        if teacher is not None and student is not None and teacher <= student:
            logger.warning(
                f"The teacher judges these pairs no better ({teacher:.3f}) than the reward model ({student:.3f}): "
                "what it can teach is in doubt. A longer `InteractionTeacher.fit` or a stronger encoder may help."
            )
        return metrics


def _pairs_once(accelerator, batch: dict[str, torch.Tensor]) -> int:
    """How many of this process's pairs in a batch of evaluation are there for the first time.

    accelerate fills the last batch of several processes up with pairs from the start.
    """
    pairs, state = len(batch["pair_key"]), accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return pairs
    return min(max(state.remainder - accelerator.process_index * pairs, 0), pairs)
