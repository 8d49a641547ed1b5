"""Safeguards of a training run: no step on NaN, no incomplete checkpoint saved, no damaged checkpoint loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from ..utils.atomic_io import write_atomically
from ..utils.whole_models import adapter_keys, listed
from .checkpoints import (
    CheckpointError,
    as_checkpoint_error,
    checkpoint_to_resume,
    is_resume_requested,
    last_complete_checkpoint,
    output_folder,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer as _Trainer
else:  # a mixin: the trainer that it is mixed into brings `Trainer`
    _Trainer = object

NONFINITE_FILE = "nonfinite_loss.json"


class TrainingSafeguards(_Trainer):
    """Trainer mixin that checks losses, gradients and checkpoints.

    Overrides transformers' `train` (resumes from complete checkpoints only), `_save_checkpoint` and `save_model` (a
    failed write leaves no partial checkpoint and raises `CheckpointError`). A trainer calls `require_finite` on every
    loss. Gradients are checked before each optimizer step, with two exceptions: fp16, whose scaler skips steps that
    overflow, and DeepSpeed, which does not expose them.
    """

    if TYPE_CHECKING:
        model: nn.Module

    def __init__(self, *args, **kwargs):
        self._rows_of_step: list[torch.Tensor] = []
        self._loaded_checkpoint = "the best checkpoint"
        super().__init__(*args, **kwargs)
        self.add_callback(_BeforeStep(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As in `Trainer`, but `True` means the last complete checkpoint, and a damaged one raises an error."""
        folder = output_folder(self.args)
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, folder)
        if checkpoint is None and is_resume_requested(resume_from_checkpoint):
            raise CheckpointError(
                f"`resume_from_checkpoint` is {resume_from_checkpoint!r}, but {folder} has no complete "
                "checkpoint. Train without it."
            )
        return super().train(checkpoint, *args, **kwargs)

    def require_finite(self, loss: torch.Tensor, pair_index: torch.Tensor | None = None) -> None:
        """Stop on a loss that is NaN or infinite: record the batch, save a checkpoint, raise.

        Args:
            loss: loss of this process's batch.
            pair_index: `(pairs,)` dataset rows of the batch, if known.

        Raises:
            FloatingPointError: the loss of any process is not finite.
        """
        if pair_index is not None:
            self._rows_of_step.append(pair_index.detach())
        if not self._is_true_on_all_processes(bool(torch.isfinite(loss.detach()).all())):
            self._stop("The loss is")

    def require_finite_gradients(self) -> None:
        """Stop before an optimizer step on gradients that are NaN or infinite."""
        if self.accelerator.scaler is None:
            gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
            if not self._is_true_on_all_processes(all_finite(gradients)):
                self._stop("The loss is finite, but its gradients are")
        self._rows_of_step.clear()

    def _is_true_on_all_processes(self, is_true: bool) -> bool:
        flag = torch.tensor([is_true], device=self.accelerator.device)
        return bool(self.accelerator.gather(flag).all())

    def _stop(self, what: str) -> None:
        rows = self.accelerator.gather(torch.cat(self._rows_of_step)).tolist() if self._rows_of_step else None
        step, folder = self.state.global_step, Path(output_folder(self.args))
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / NONFINITE_FILE, json.dumps({"global_step": step, "pair_index": rows or []}))
        if self._is_true_on_all_processes(all_finite(self.model.parameters())):
            self._save_checkpoint(self.model, trial=None)
            kept = f"weights and optimizer state from before this batch are saved in checkpoint-{step}"
        else:
            kept = f"the weights are not finite either and are not saved. {self._last_checkpoint()}"
        where = f"The rows of the batch (numbered as in the training dataset) are {rows}" if rows else "It is"
        raise FloatingPointError(
            f"{what} not finite at step {step}. {where}, noted in {folder / NONFINITE_FILE}; {kept}. "
            "Check those rows, lower `learning_rate` or set `max_grad_norm`, then resume with "
            "`resume_from_checkpoint=True` (on the command line `--resume_from_checkpoint true`)."
        )

    def _save_checkpoint(self, model, trial):
        folder = Path(output_folder(self.args)) / f"checkpoint-{self.state.global_step}"
        if not self._is_true_on_all_processes(all_finite(self.model.parameters())):
            raise FloatingPointError(
                f"The weights are not finite at step {self.state.global_step} and are not saved. "
                f"{self._last_checkpoint()}. Lower `learning_rate` or set `max_grad_norm`, then resume with "
                "`resume_from_checkpoint=True` (on the command line `--resume_from_checkpoint true`)."
            )
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError):  # torch's writer raises RuntimeError
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            with as_checkpoint_error(f"Step {self.state.global_step} is not saved", self._last_checkpoint):
                raise

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in `Trainer`."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        with as_checkpoint_error(
            f"The model is not saved in {output_dir or self.args.output_dir}", self._last_checkpoint
        ):
            return super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        adapter = Path(resume_from_checkpoint) / "adapter_model.safetensors"
        if hasattr(self.model, "peft_config") and adapter.is_file():
            with safe_open(adapter, framework="pt") as file:
                self._require_whole(resume_from_checkpoint, adapter_keys(self.model) - set(file.keys()))
        self._loaded_checkpoint = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Raise an error where `Trainer` warns that weights were not in a checkpoint."""
        missing, state = set(load_result.missing_keys), self.model.state_dict()
        loaded = {tensor.data_ptr() for key, tensor in state.items() if key not in missing}
        lost = {key for key in missing & state.keys() if state[key].data_ptr() not in loaded}  # others are tied to one
        self._require_whole(self._loaded_checkpoint, lost)

    def _require_whole(self, checkpoint: str, lost: set[str]) -> None:
        if lost:
            raise CheckpointError(
                f"{checkpoint} lacks weights of the model: {listed(sorted(lost))}. They would stay as they were "
                "before the run. Resume from another checkpoint of the same model, or train again."
            )

    def _last_checkpoint(self) -> str:
        """Which checkpoint is left to resume from, in words."""
        last = last_complete_checkpoint(output_folder(self.args))
        return (
            f"The last complete checkpoint is {last}" if last else "No checkpoint is complete, so start the run again"
        )


class _BeforeStep(TrainerCallback):
    def __init__(self, trainer: TrainingSafeguards):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.require_finite_gradients()


def all_finite(tensors) -> bool:
    """Whether this process's shards of the tensors have no NaN and no infinite value."""
    local = [t.to_local() if hasattr(t, "to_local") else t for t in (tensor.detach() for tensor in tensors)]
    largest = [torch.linalg.vector_norm(t, float("inf")) for t in local if t.numel() and t.is_floating_point()]
    return not largest or bool(torch.stack([each.float().to(largest[0].device) for each in largest]).isfinite().all())
