"""Publishes the model of a trainer on the Hub: model card, final model, models saved during training."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress
from trl.data_utils import is_conversational
from trl.trainer.utils import get_config_model_id

from .. import __version__
from ..hub.card import METHOD_TAG, TeacherFacts, TrainingFacts, build_card
from ..hub.files import CARD, MAPS, stage_model
from ..hub.push import prepare_repository, push_files
from ..utils.privacy import hub_name, public_name
from .example_maps import draw_example_maps

logger = logging.getLogger(__name__)

_TRAINING_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "warmup_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "center_rewards_coefficient"),
    *("bf16", "fp16", "seed"),
)
_METHOD_SETTINGS = (
    *("alignment_weight", "alignment_schedule", "alignment_loss", "alignment_scope", "alignment_control"),
    *("student_layers", "teacher_layers", "share_prompt", "teacher_cache_top_k"),
)


class HubPublishing:
    """Trainer mixin that publishes only the files of the model, as `stage_model` selects them.

    Overrides transformers' `init_hf_repo`, `push_to_hub` and `_push_from_checkpoint`, which upload the whole output
    folder (including `training_args.bin`, a pickle), and TRL's `create_model_card`.
    """

    _dataset_name: str | None = None
    _reads_messages: bool | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, so that denied access is an error before training and not after it."""
        if not self.is_world_process_zero():
            return
        if is_peft_model(self.model):
            _require_public_base(self.model)
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = prepare_repository(name, token=token or self.args.hub_token, private=bool(private))
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """Save the model and upload it with tokenizer, config and model card in one commit.

        Args:
            commit_message, token, revision: as in transformers; the training arguments give the defaults.
            blocking: wait for the upload; otherwise return a `Future`.
            private: create a private repository.
            **kwargs: `model_name`, `dataset_name` (Hub name of the data), `tags` for the model card.

        Returns:
            The commit (or its future) on the first process, `None` on others.

        Raises:
            HubPushError, ValueError: see `push_files` and `stage_model`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": self.hub_model_id.split("/")[-1], **kwargs})
        self._finish_current_push()
        return self._upload(commit_message, token, revision, is_waiting=blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self._finish_current_push()  # its files are about to be replaced
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for file in stage_model(checkpoint_folder, self.hub_model_id):
            if file.path_in_repo not in (CARD, MAPS):
                target = Path(self.args.output_dir, file.path_in_repo)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(checkpoint_folder, file.path_in_repo), target)
        message = f"Training in progress, step {self.state.global_step}"
        job = self._upload(message, self.args.hub_token, None, is_waiting=False)
        job.add_done_callback(_log_failure)
        self.push_in_progress = PushInProgress([job])

    def _upload(self, message: str | None, token: str | None, revision: str | None, *, is_waiting: bool):
        files = stage_model(self.args.output_dir, self.hub_model_id)
        options = {"token": token, "revision": revision or self.args.hub_revision}
        if message:
            options["commit_message"] = message
        if is_waiting:
            return push_files(files, self.hub_model_id, **options)
        return HfApi().run_as_future(push_files, files, self.hub_model_id, **options)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `README.md` to the output folder and, outside of training, an image of maps (`maps.png`).

        Args:
            model_name: name of the model; by default the name of its repository or folder.
            dataset_name: Hub name of the training and evaluation dataset; local folders are left out. Later cards of
                this trainer reuse it.
            tags: additional tags.
        """
        if not self.is_world_process_zero():
            return
        self._dataset_name = hub_name(dataset_name) or self._dataset_name
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        has_maps = self.teacher is not None and not self.is_in_train and not is_sharded
        if has_maps:
            model = self.accelerator.unwrap_model(self.model)
            draw_example_maps(self.teacher, model, self.processing_class, folder / MAPS)
        name = model_name or (self.hub_model_id or folder.absolute().name).split("/")[-1]
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        build_card(self._facts(name, [tag for tag in tags if tag != METHOD_TAG], has_maps)).save(folder / CARD)

    def _facts(self, name: str, tags: list[str], has_maps: bool) -> TrainingFacts:
        is_adapter = is_peft_model(self.model)
        evaluation = next((entry for entry in reversed(self.state.log_history) if "eval_accuracy" in entry), {})
        libraries = ("trl", "transformers", "torch", "datasets", "tokenizers")
        return TrainingFacts(
            model_name=name,
            base_model=hub_name(get_config_model_id(self.model.config)),
            dataset_name=self._dataset_name,
            data=f"{_count(self.train_dataset)} for training, {_count(self.eval_dataset)} for evaluation, as "
            f"{'messages' if self._is_conversational() else 'plain text'}",
            settings=self._settings(),
            metrics={key: value for key, value in sorted(evaluation.items()) if _is_metric(key, value)},
            evaluation=f"step {evaluation.get('step')}, {_count(self.eval_dataset)}",
            max_length=self.args.max_length,
            is_adapter=is_adapter,
            is_conversational=self._is_conversational(),
            teacher=self._teacher_facts(),
            has_maps=has_maps,
            tags=[*tags, *(["lora"] if is_adapter else [])],
            versions={"hf_interdistill": __version__}
            | {library: version(library) for library in (*libraries, *(["peft"] if is_adapter else []))},
        )

    def _teacher_facts(self) -> TeacherFacts | None:
        if self.teacher is None:
            return None
        model_type = self.teacher.network.encoder.config.model_type
        return TeacherFacts(self.teacher.name, model_type, self.teacher.metrics)

    def _settings(self) -> dict[str, Any]:
        names = (*_METHOD_SETTINGS, *_TRAINING_SETTINGS) if self.teacher is not None else _TRAINING_SETTINGS
        values = {name: getattr(self.args, name) for name in names}
        values = {name: getattr(value, "value", value) for name, value in values.items() if value is not None}
        if self.teacher is not None:
            values["teacher_max_length"] = self.teacher_max_length
        return {**values, "processes": self.args.world_size, "optimizer steps": self.state.global_step}

    def _is_conversational(self) -> bool:
        if self._reads_messages is None:
            row = next(iter(self.train_dataset), {}) if self.train_dataset is not None else {}
            has_text = "chosen" in row
            template = getattr(self.processing_class, "chat_template", None)
            self._reads_messages = is_conversational({"chosen": row["chosen"]}) if has_text else bool(template)
        return self._reads_messages


def _require_public_base(model) -> None:
    """Raise `ValueError` if the adapter's base model is a local folder."""
    name = model.active_peft_config.base_model_name_or_path
    if hub_name(name) is None:
        raise ValueError(
            f"The adapter is trained on the folder {public_name(str(name))!r}, which nobody else has, so nobody could "
            "load what is pushed. Train on the base model's Hub name, or push the adapter merged after training: "
            "`interdistill push --merge true`."
        )


def _log_failure(job: Future) -> None:
    """Log a failed upload during training: transformers waits for these uploads but ignores their result."""
    if not job.cancelled() and job.exception() is not None:
        logger.error(f"The model of a checkpoint was not pushed; training continues. {job.exception()}")


def _count(dataset) -> str:
    if isinstance(dataset, dict):
        return ", ".join(f"{_count(part)} of `{name}`" for name, part in dataset.items())
    if dataset is None:
        return "no pairs"
    return f"{len(dataset):,} pairs" if isinstance(dataset, Dataset) else "a stream of pairs"


def _is_metric(key: str, value: Any) -> bool:
    is_cost = any(part in key for part in ("runtime", "per_second", "num_tokens"))
    return key.startswith("eval_") and isinstance(value, int | float) and not is_cost
