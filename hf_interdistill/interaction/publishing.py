"""Publishes the model of a trainer on the Hub: model card, final model, models saved during training."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ..scoring.reloading import require_same_when_reloaded
from ..training.checkpoints import output_folder
from ..utils.privacy import hub_name, public_name
from .example_maps import draw_example_maps, example_maps
from .loss_options import changed_loss_options
from .teacher.reading import is_decoder

if TYPE_CHECKING:
    from torch import nn
    from trl import RewardTrainer as _RewardTrainer

    from .config import InteractionDistillationConfig
    from .inspection import PairMaps
    from .teacher.teacher import InteractionTeacher
else:  # a mixin: the trainer that it is mixed into brings `RewardTrainer`
    _RewardTrainer = object

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


class HubPublishing(_RewardTrainer):
    """Trainer mixin that publishes only the files of the model, as `stage_model` selects them.

    Overrides transformers' `init_hf_repo`, `push_to_hub` and `_push_from_checkpoint`, which upload the whole output
    folder (including `training_args.bin`, a pickle), and TRL's `create_model_card`.
    """

    if TYPE_CHECKING:
        args: InteractionDistillationConfig
        model: nn.Module
        teacher: InteractionTeacher | None
        teacher_max_length: int
        # transformers sets both to `None` first, and declares no other type.
        hub_model_id: str | None  # type: ignore[assignment]
        push_in_progress: PushInProgress | None  # type: ignore[assignment]

        def explained_share(self) -> tuple[float | None, float | None]: ...

    _dataset_name: str | None = None
    _reads_messages: bool | None = None
    _maps_before: PairMaps | None = None

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, so that denied access is an error before training and not after it."""
        if not self.is_world_process_zero():
            return
        if is_peft_model(self.model):
            _require_public_base(self.model)
        name = self.args.hub_model_id or Path(output_folder(self.args)).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = prepare_repository(name, token=token or self.args.hub_token, private=bool(private))
        self.push_in_progress = None

    def push_to_hub(  # type: ignore[override]  # transformers declares the commit alone, and returns these too
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
        self.require_reloadable()
        if not self.is_world_process_zero():
            return None
        repo_id = self._repo_id()
        self.create_model_card(**{"model_name": repo_id.split("/")[-1], **kwargs})
        self._finish_current_push()
        upload = self._uploading(commit_message, token, revision)
        return upload() if blocking else HfApi().run_as_future(upload)

    def require_reloadable(self, folder: str | None = None) -> None:
        """Load what was saved on the first process: see `require_same_when_reloaded`.

        Args:
            folder: where it was saved; by default the output folder.

        Raises:
            ReloadError, IncompleteModelError: it is not the model that was trained.
        """
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            folder = folder or output_folder(self.args)
            require_same_when_reloaded(model, self.processing_class, folder, is_sharded=self._is_sharded)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self._finish_current_push()  # its files are about to be replaced
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for file in stage_model(checkpoint_folder, self._repo_id()):
            if file.path_in_repo not in (CARD, MAPS):
                target = Path(output_folder(self.args), file.path_in_repo)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(checkpoint_folder, file.path_in_repo), target)
        message = f"Training in progress, step {self.state.global_step}"
        job = HfApi().run_as_future(_logging_failures(self._uploading(message, self.args.hub_token, None)))
        self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]  # it takes and keeps a list

    def _repo_id(self) -> str:
        assert self.hub_model_id is not None, "`init_hf_repo` comes first"
        return self.hub_model_id

    def _uploading(self, message: str | None, token: str | None, revision: str | None) -> Callable[[], CommitInfo]:
        """A call that uploads the files that the output folder has now."""
        repo_id = self._repo_id()
        files = stage_model(output_folder(self.args), repo_id)
        upload = partial(push_files, files, repo_id, token=token, revision=revision or self.args.hub_revision)
        return partial(upload, commit_message=message) if message else upload

    def create_model_card(  # type: ignore[override]  # TRL's arguments, which are not transformers'
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
        folder = Path(output_folder(self.args))
        folder.mkdir(parents=True, exist_ok=True)
        has_maps = False
        if self.teacher is not None and not self.is_in_train and not self._is_sharded:
            has_maps = True
            maps = self.example_maps("student after training")
            before = self._maps_before
            draw_example_maps(maps if before is None else before.with_students_of(maps), folder / MAPS)
        name = model_name or (self.hub_model_id or folder.absolute().name).split("/")[-1]
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        build_card(self._facts(name, [tag for tag in tags if tag != METHOD_TAG], has_maps)).save(folder / CARD)

    def keep_maps(self) -> None:
        """Keep the maps of the untrained student for the picture of the model card; a resumed run has none."""
        if self.is_world_process_zero() and not self._is_sharded:
            self._maps_before = self.example_maps("student before training")

    def example_maps(self, name: str) -> PairMaps:
        """Maps of the teacher and of the current model, for the example of model cards.

        If several pairs of layers are aligned, the maps are of the last pair.
        """
        model = self.accelerator.unwrap_model(self.model)
        layers = self.args.student_layers[-1], self.args.teacher_layers[-1]
        assert self.teacher is not None, "without a teacher there are no maps"
        return example_maps(self.teacher, model, self.processing_class, name, layers)

    def _facts(self, name: str, tags: list[str], has_maps: bool) -> TrainingFacts:
        is_adapter = is_peft_model(self.model)
        evaluation = _last_evaluation(self.state.log_history)
        config: Any = self.model.config
        libraries = ("trl", "transformers", "torch", "datasets", "tokenizers")
        return TrainingFacts(
            model_name=name,
            base_model=hub_name(get_config_model_id(config)),
            dataset_name=self._dataset_name,
            data=f"{_count(self.train_dataset)} for training, {_count(self.eval_dataset)} for evaluation, as "
            f"{'messages' if self._is_conversational() else 'plain text'}",
            settings=self._settings(),
            metrics={key: value for key, value in sorted(evaluation.items()) if _is_metric(key, value)},
            evaluation=f"step {evaluation.get('step')}, {_count(self.eval_dataset)}",
            explained=self.explained_share() if self.teacher is not None else (None, None),
            evaluation_pairs=len(self.eval_dataset) if isinstance(self.eval_dataset, Dataset) else None,
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
        encoder = self.teacher.network.encoder
        return TeacherFacts(self.teacher.name, encoder.config.model_type, self.teacher.metrics, is_decoder(encoder))

    def _settings(self) -> dict[str, Any]:
        names = (*_METHOD_SETTINGS, *_TRAINING_SETTINGS) if self.teacher is not None else _TRAINING_SETTINGS
        values = {name: getattr(self.args, name) for name in names} | changed_loss_options(self.args)
        values = {name: getattr(value, "value", value) for name, value in values.items() if value is not None}
        if self.teacher is not None:
            values["teacher_max_length"] = self.teacher_max_length
        return {**values, "processes": self.args.world_size, "optimizer steps": self.state.global_step}

    def _is_conversational(self) -> bool:
        if self._reads_messages is None:
            row: dict[str, Any] = next(iter(self.train_dataset), {}) if self.train_dataset is not None else {}
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


def _logging_failures(upload: Callable[[], CommitInfo]) -> Callable[[], CommitInfo]:
    """An upload that logs its failure: transformers waits for those of checkpoints but ignores their result.

    Not a callback of the `Future`: who waits for that may go on before its callbacks have run.
    """

    def logged() -> CommitInfo:
        try:
            return upload()
        except Exception as error:
            logger.error(f"The model of a checkpoint was not pushed; training continues. {error}")
            raise

    return logged


def _count(dataset) -> str:
    if isinstance(dataset, dict):
        return ", ".join(f"{_count(part)} of `{name}`" for name, part in dataset.items())
    if dataset is None:
        return "no pairs"
    return f"{len(dataset):,} pairs" if isinstance(dataset, Dataset) else "a stream of pairs"


def _last_evaluation(log_history: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of the last evaluation, for all its sets."""
    evaluations = [entry for entry in log_history if any(re.match(r"eval_(.+_)?accuracy$", key) for key in entry)]
    last = evaluations[-1].get("step") if evaluations else None
    return {key: value for entry in evaluations if entry.get("step") == last for key, value in entry.items()}


def _is_metric(key: str, value: Any) -> bool:
    is_cost = any(part in key for part in ("runtime", "per_second", "num_tokens"))
    return key.startswith("eval_") and isinstance(value, int | float) and not is_cost
