"""The arms of the study: soft labels and a writing loss on top of the study's alignment objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from objectives import ObjectiveTrainer
from torch import nn


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        arguments: settings of `StudyConfig` (`alignment_weight` is 0 unless given here).
        teacher: `fitted` on the rows the student is trained on; `clean`, fitted on the same rows without cues and
            flipped labels; `untrained`, the encoder as it comes; `none`; or a name of the config's `teacher_variants`.
        margin: by how much the reward of the chosen response must be ahead (TRL's `margin` column).
        smoothing: probability given to the label being wrong.
        score_share: part of each pair's target that is the teacher's own judgement, `sigmoid` of its margin.
        sft_share: part of the loss that is GRM's writing loss. Source: Yang et al., arXiv 2406.10216, its SFT form.
        sft_beta: temperature of the writing loss.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    teacher: str = "none"
    margin: float = 0.0
    smoothing: float = 0.0
    score_share: float = 0.0
    sft_share: float = 0.0
    sft_beta: float = 0.1

    def __post_init__(self):
        if self.teacher == "none" and (self.score_share or self.arguments.get("alignment_weight")):
            raise ValueError(
                "An arm with `alignment_weight` or `score_share` needs a teacher: 'fitted' or 'untrained'."
            )
        for name in ("smoothing", "score_share", "sft_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must lie between 0 and 1.")


def soft_targets(arm: Arm, pairs: int, teacher_margins: torch.Tensor | None) -> torch.Tensor | None:
    """Probability that the chosen response is the better one, `(pairs,)`; `None` where every label is believed."""
    if not arm.smoothing and not arm.score_share:
        return None
    targets = torch.full((pairs,), 1 - arm.smoothing)
    if arm.score_share:
        targets = (1 - arm.score_share) * targets + arm.score_share * torch.sigmoid(teacher_margins)
    return targets


class StudyTrainer(ObjectiveTrainer):
    """`ObjectiveTrainer` with soft labels and a writing loss.

    Overrides `compute_loss` and `_set_signature_columns_if_needed`.

    Args:
        targets: probability that the chosen response of each training row is the better one, `(rows,)`.
        arm: its `sft_share` and `sft_beta` weigh the writing loss.
    """

    def __init__(self, *args, targets: torch.Tensor | None = None, arm: Arm, **kwargs):
        self.targets, self.arm = targets, arm
        super().__init__(*args, **kwargs)
        if arm.sft_share:
            self.model.score.register_forward_pre_hook(self._note_states)

    def _note_states(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._states = inputs[0]

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns.append("length")  # which the sampler of batches of similar length reads

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.targets is not None:
            # a soft label t on the margin d: -t log s(d) - (1 - t) log s(-d) = -log s(d) + (1 - t) d
            chosen, rejected = outputs.logits[:, 0].chunk(2)
            doubt = 1 - self.targets[inputs["pair_index"].cpu()].to(loss)
            loss = loss + (doubt * (chosen - rejected)).mean()
        if self.arm.sft_share:
            words = self.model.get_input_embeddings().weight
            written = writing_loss(
                self._states, words, inputs["input_ids"], inputs["attention_mask"], self.arm.sft_beta
            )
            loss = (1 - self.arm.sft_share) * loss + self.arm.sft_share * written
            del self._states
        return (loss, outputs) if return_outputs else loss


def writing_loss(
    states: torch.Tensor, words: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, beta: float
) -> torch.Tensor:
    """`-log sigmoid(beta * log p(chosen response))`, mean over pairs, the next token read off the word embeddings.

    Source: the SFT form of GRM (Yang et al., arXiv 2406.10216); log p is the sum over the response's tokens, which are
    those after the common beginning of the two rows. The tied head is ours.

    Args:
        states: last hidden states: of the two rows of each pair, `(2 * pairs, length, hidden)`, chosen first, or of
            packed rows, `(pairs, packed, hidden)`, in which the chosen row comes first.
        words: `(vocabulary, hidden)`. input_ids, attention_mask: `(2 * pairs, length)`, padded on the right.
    """
    chosen, rejected = input_ids.chunk(2)
    masks = attention_mask.bool().chunk(2)
    common = ((chosen == rejected) & masks[0] & masks[1]).long().cumprod(1).sum(1)
    places = torch.arange(1, chosen.shape[1], device=chosen.device)
    is_written = masks[0][:, 1:] & (places >= common[:, None])
    pairs, slots = is_written.nonzero(as_tuple=True)
    logits = nn.functional.linear(states[pairs, slots].float(), words.float())
    logs = -nn.functional.cross_entropy(logits, chosen[:, 1:][is_written], reduction="none")
    totals = logs.new_zeros(len(chosen)).index_add(0, pairs, logs)
    return -nn.functional.logsigmoid(beta * totals).mean()
