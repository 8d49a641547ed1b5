"""Losses of pairs whose label is a distribution: shares of annotators, and ties by a model. Pure tensor code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

TIE_MODELS = ("none", "davidson", "rao_kupper")
# Both give a pair of equal rewards a tie in one of two cases.
DEFAULT_TIE_PARAMETERS = {"davidson": 2.0, "rao_kupper": 3.0}


@dataclass(frozen=True)
class PairLabels:
    """What annotators said of a batch of pairs.

    Args:
        chosen: `(pairs,)` probability that the chosen response is the better one.
        tie: `(pairs,)` probability of a tie; the rest is that of the rejected response.
    """

    chosen: torch.Tensor
    tie: torch.Tensor

    @property
    def rejected(self) -> torch.Tensor:
        return 1 - self.chosen - self.tie

    def smoothed(self, factor: float) -> PairLabels:
        """The labels if each winner is named wrongly with probability `factor`. Ties stay."""
        return PairLabels(self.chosen + factor * (self.rejected - self.chosen), self.tie)

    def majority(self) -> PairLabels:
        """All weight on the response that more annotators prefer; equal shares count half for each. No ties."""
        return PairLabels(0.5 + 0.5 * (self.chosen - self.rejected).sign(), torch.zeros_like(self.tie))


def outcome_log_probs(
    margins: torch.Tensor, tie_model: str = "none", tie_parameter: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probabilities that the chosen response wins, that the rejected one does, and of a tie, each `(pairs,)`.

    Source: Bradley and Terry (1952); Davidson (1970): `exp(m/2) : exp(-m/2) : nu`; Rao and Kupper (1967):
    `sigmoid(m - log theta)`, `sigmoid(-m - log theta)` and what is left. Both as in arXiv 2409.17431 (Davidson's `nu`
    is twice that paper's).

    Args:
        margins: `(pairs,)` chosen minus rejected rewards, `m`.
        tie_model: `none` (Bradley-Terry, which has no ties: its third entry is `None`), `davidson` or `rao_kupper`.
        tie_parameter: Davidson's `nu`, above 0, or Rao and Kupper's `theta`, above 1; that of
            `DEFAULT_TIE_PARAMETERS` if `None`.
    """
    if tie_model == "none":
        return logsigmoid(margins), logsigmoid(-margins), None
    parameter = margins.new_tensor(DEFAULT_TIE_PARAMETERS[tie_model] if tie_parameter is None else tie_parameter)
    if tie_model == "davidson":
        outcomes = torch.stack([margins / 2, -margins / 2, parameter.log().expand_as(margins)])
        chosen, rejected, tie = outcomes.log_softmax(0)
        return chosen, rejected, tie
    threshold = parameter.log()
    chosen, rejected = logsigmoid(margins - threshold), logsigmoid(-margins - threshold)
    return chosen, rejected, chosen + rejected + (parameter**2 - 1).log()


def preference_loss(
    margins: torch.Tensor, labels: PairLabels, tie_model: str = "none", tie_parameter: float | None = None
) -> torch.Tensor:
    """Cross-entropy of labels and modeled outcomes, `(pairs,)`, nats.

    Without a tie model a tie is half a win of each response.

    Args:
        margins, tie_model, tie_parameter: as in `outcome_log_probs`.
        labels: of the same pairs.
    """
    chosen, rejected, tie = outcome_log_probs(margins, tie_model, tie_parameter)
    if tie is None:
        return -(labels.chosen + labels.tie / 2) * chosen - (labels.rejected + labels.tie / 2) * rejected
    return -labels.chosen * chosen - labels.rejected * rejected - labels.tie * tie
