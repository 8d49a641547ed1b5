"""The reward loss with the options of `RewardLossOptions`: from `RewardTrainer`'s loss and rewards to the one trained.

Knows no trainer. Without an option and without label columns the loss is returned as it is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from ..training.label_smoothing import smoothed_loss
from .attribute_head import AttributeStates
from .data.labels import SHARES, pair_labels
from .language_head import LanguageHead
from .losses.attributes import attribute_errors
from .losses.length import length_correlation
from .losses.preference import PairLabels, outcome_log_probs, preference_loss
from .losses.ranking import concordance, plackett_luce_loss
from .losses.regularization import regularization_loss, response_log_probs
from .responses import ResponseRows


@dataclass
class RewardLossOutput:
    """Loss and metrics of a batch.

    Args:
        loss: scalar with gradient.
        metrics: for each name of a log its value of every pair, `(pairs,)`, NaN where it has none.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


class RewardLoss:
    """Applies the options of the reward loss to a batch.

    Args:
        args: an `InteractionDistillationConfig`.
        language_head: with `regularization_weight`, the head that reads the responses.
        attributes: with `attribute_weights`, the heads of the attributes.
    """

    def __init__(
        self, args: Any, language_head: LanguageHead | None = None, attributes: AttributeStates | None = None
    ):
        self.args, self.language_head, self.attributes = args, language_head, attributes

    def recording(self, rows: ResponseRows) -> AbstractContextManager:
        """The context in which the model runs on `rows`."""
        contexts = ExitStack()
        if self.language_head is not None:
            contexts.enter_context(self.language_head)
        if self.attributes is not None:
            contexts.enter_context(self.attributes.recording(rows))
        return contexts

    def take_labels(self, inputs: dict[str, torch.Tensor]) -> PairLabels | None:
        """Take the shares out of a batch; with `agreement_margin` they become its `margin` and a majority's label."""
        labels = pair_labels({name: inputs.pop(name) for name in SHARES if name in inputs})
        if labels is None:
            return PairLabels(*_plain_labels(inputs)) if self.args.tie_model != "none" else None
        if not self.args.agreement_margin:
            return labels
        agreement = self.args.agreement_margin * (labels.chosen - labels.rejected)
        inputs["margin"] = inputs["margin"] + agreement if "margin" in inputs else agreement
        return labels.majority()

    def __call__(
        self,
        loss: torch.Tensor,
        logits: torch.Tensor,
        inputs: dict[str, torch.Tensor],
        labels: PairLabels | None,
        rows: ResponseRows,
        token_index: torch.Tensor | None = None,
    ) -> RewardLossOutput:
        """Apply the options.

        Args:
            loss: `RewardTrainer`'s, for labels that all say `chosen`.
            logits: rewards `(2 * pairs, 1)`, chosen rows first.
            inputs: `input_ids`, `attention_mask` `(2 * pairs, length)` and, if the data have it, `margin` `(pairs,)`.
            labels: of `take_labels`.
            rows: all responses; of ranked ones after the model has run.
            token_index: `(pairs, 2 * length)` of packed rows, see `PackedPairs`.
        """
        chosen, rejected = logits.squeeze(-1).chunk(2)
        differences = chosen - rejected
        margins = differences - inputs["margin"] if "margin" in inputs else differences
        output = RewardLossOutput(loss)
        if rows.ranks is not None:
            self._apply_ranks(output, margins.float(), rows)
        elif labels is None:
            output.loss = smoothed_loss(loss, margins, self.args.label_smoothing_factor)
        else:
            self._apply_labels(output, margins.float(), differences, labels)
        if self.attributes is not None:
            self._apply_attributes(output, self.attributes.take(), rows)
        if self.args.length_penalty_weight:
            self._add_length_penalty(output, differences.float(), inputs["attention_mask"])
        if self.language_head is not None:
            self._add_regularization(output, self.language_head, inputs, token_index)
        return output

    def _apply_ranks(self, output, margins, rows: ResponseRows) -> None:
        """Replace the Bradley-Terry loss of best and worst by that of the whole rankings."""
        assert rows.logits is not None and rows.ranks is not None, "the model has not run"
        rewards = rows.logits.float()
        wanted = plackett_luce_loss(rewards, rows.ranks)
        output.loss = output.loss + (wanted + torch.nn.functional.logsigmoid(margins)).mean()
        output.metrics["label/concordance"] = concordance(rewards.detach(), rows.ranks)

    def _apply_labels(self, output, margins, differences, labels: PairLabels) -> None:
        """Replace the Bradley-Terry loss of plain labels, which `RewardTrainer`'s holds beside other terms."""
        args, given = self.args, labels
        labels = labels.smoothed(args.label_smoothing_factor)
        plain = PairLabels(*(torch.full_like(margins, share) for share in (1.0, 0.0)))
        wanted = preference_loss(margins, labels, args.tie_model, args.tie_parameter)
        output.loss = output.loss + (wanted - preference_loss(margins, plain)).mean()
        lead = given.chosen - given.rejected
        is_right = (differences.detach() * lead > 0).float()
        output.metrics["label/accuracy"] = is_right.where(lead != 0, torch.nan)
        if args.tie_model != "none":
            chosen, rejected, _ = outcome_log_probs(margins.detach(), args.tie_model, args.tie_parameter)
            output.metrics["label/tie_probability"] = 1 - chosen.exp() - rejected.exp()

    def _apply_attributes(self, output, predictions: torch.Tensor, rows: ResponseRows) -> None:
        assert rows.attribute_scores is not None, "the collator adds them"
        errors, share = attribute_errors(predictions, rows.attribute_scores), self.args.attribute_loss_weight
        loss = errors.mean()
        output.loss = loss if share == 1 else (1 - share) * output.loss + share * loss
        output.metrics["attribute/loss"] = errors.detach().mean(1)
        for name, own in zip(self.args.attributes, errors.detach().unbind(1), strict=True):
            output.metrics[f"attribute/{name}"] = own

    def _add_length_penalty(self, output, differences, attention_mask) -> None:
        pairs = len(differences)
        if pairs < 2:  # one pair has no correlation
            output.metrics |= dict.fromkeys(
                ("length/loss", "length/correlation"), torch.full_like(differences.detach(), torch.nan)
            )
            return
        chosen, rejected = attention_mask.sum(1).chunk(2)  # the prompt is in both
        correlation = length_correlation(differences, chosen - rejected)
        output.loss = output.loss + self.args.length_penalty_weight * correlation.abs()
        output.metrics["length/loss"] = correlation.detach().abs().expand(pairs)
        output.metrics["length/correlation"] = correlation.detach().expand(pairs)

    def _add_regularization(self, output, head: LanguageHead, inputs, token_index) -> None:
        weight, form = self.args.regularization_weight, self.args.regularization_loss
        log_probs = response_log_probs(
            head.take(),
            head.weights,
            inputs["input_ids"],
            inputs["attention_mask"],
            token_index,
            is_chosen_only=form == "sft",
        )
        losses = regularization_loss(log_probs, form, self.args.regularization_beta)
        output.loss = (1 - weight) * output.loss + weight * losses.mean()
        output.metrics["regularization/loss"] = losses.detach()
        output.metrics["regularization/logps_chosen"] = log_probs[0].detach()


def _plain_labels(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = len(inputs["input_ids"]) // 2
    ones = torch.ones(pairs, device=inputs["input_ids"].device)
    return ones, torch.zeros_like(ones)
