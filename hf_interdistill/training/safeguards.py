"""What keeps a run from harming itself: no step on NaN, no checkpoint that is half written, none that is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from ..utils.atomic_io import write_atomically
from .checkpoints import CheckpointError, checkpoint_to_resume, is_resuming, last_whole_checkpoint, writing

NONFINITE_FILE = "nonfinite_loss.json"


class SafeTraining:
    """For trainers: checks losses, gradients and checkpoints.

    Overrides transformers' `train` (goes on from whole checkpoints only), `_save_checkpoint` and `save_model` (what
    cannot be written is removed and told). A trainer calls `require_finite` on every loss; gradients are looked at
    before each step of the optimizer, except under fp16, whose scaler skips steps that overflow, and DeepSpeed, which
    keeps gradients to itself.
    """

    def __init__(self, *args, **kwargs):
        self._rows_of_step: list[torch.Tensor] = []
        super().__init__(*args, **kwargs)
        self.add_callback(_BeforeStep(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As in `Trainer`, but `True` means the last whole checkpoint, and a damaged one is refused."""
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is None and is_resuming(resume_from_checkpoint):
            raise CheckpointError(
                f"`resume_from_checkpoint` is {resume_from_checkpoint!r}, but {self.args.output_dir} holds no whole "
                "checkpoint. Train without it."
            )
        return super().train(checkpoint, *args, **kwargs)

    def require_finite(self, loss: torch.Tensor, pair_index: torch.Tensor | None = None) -> None:
        """Stop on a loss that is NaN or infinite: note the batch, save a checkpoint, raise.

        Args:
            loss: of this process's batch.
            pair_index: rows of the batch, `(pairs,)`, if they are known.
        """
        if pair_index is not None:
            self._rows_of_step.append(pair_index.detach())
        if not self._is_everywhere(bool(torch.isfinite(loss.detach()).all())):
            self._stop("The loss is")

    def require_finite_gradients(self) -> None:
        """Stop before a step on gradients that are NaN or infinite."""
        if self.accelerator.scaler is None:
            gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
            if not self._is_everywhere(all_finite(gradients)):
                self._stop("The loss is finite, but its gradients are")
        self._rows_of_step.clear()

    def _is_everywhere(self, is_fine: bool) -> bool:
        flag = torch.tensor([is_fine], device=self.accelerator.device)
        return bool(self.accelerator.gather(flag).all())

    def _stop(self, what: str) -> None:
        rows = self.accelerator.gather(torch.cat(self._rows_of_step)).tolist() if self._rows_of_step else None
        step, folder = self.state.global_step, Path(self.args.output_dir)
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / NONFINITE_FILE, json.dumps({"global_step": step, "pair_index": rows or []}))
        if self._is_everywhere(all_finite(self.model.parameters())):
            self._save_checkpoint(self.model, trial=None)
            kept = f"weights and optimizer from before this batch are saved in checkpoint-{step}"
        else:
            kept = f"the weights are not finite either, and not saved. {self._kept()}"
        where = f"The rows of the batch (numbered as in the training dataset) are {rows}" if rows else "It is"
        raise FloatingPointError(
            f"{what} not finite at step {step}. {where}, noted in {folder / NONFINITE_FILE}; {kept}. "
            "Look at those rows, lower `learning_rate` or set `max_grad_norm`, then go on with "
            "`resume_from_checkpoint=True` (on the command line `--resume_from_checkpoint true`)."
        )

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if not self._is_everywhere(all_finite(self.model.parameters())):
            raise FloatingPointError(
                f"The weights are not finite at step {self.state.global_step}, and not saved. {self._kept()}. Lower "
                "`learning_rate` or set `max_grad_norm`, then go on with `resume_from_checkpoint=True` (on the "
                "command line `--resume_from_checkpoint true`)."
            )
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError):  # torch's writer raises RuntimeError
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            with writing(f"Step {self.state.global_step} is not saved", self._kept):
                raise

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in `Trainer`."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        with writing(f"The model is not saved in {output_dir or self.args.output_dir}", self._kept):
            return super().save_model(output_dir, _internal_call)

    def _kept(self) -> str:
        """What is left to go on from."""
        last = last_whole_checkpoint(self.args.output_dir)
        return f"The last whole checkpoint is {last}" if last else "No checkpoint is whole, so the run starts anew"


class _BeforeStep(TrainerCallback):
    def __init__(self, trainer: SafeTraining):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.require_finite_gradients()


def all_finite(tensors) -> bool:
    """Whether no value is NaN or infinite, in what this process holds of the tensors."""
    local = [t.to_local() if hasattr(t, "to_local") else t for t in (tensor.detach() for tensor in tensors)]
    largest = [torch.linalg.vector_norm(t, float("inf")) for t in local if t.numel() and t.is_floating_point()]
    return not largest or bool(torch.stack([each.float().to(largest[0].device) for each in largest]).isfinite().all())
