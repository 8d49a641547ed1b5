"""Regression of attribute scores. Pure tensor code."""

from __future__ import annotations

import torch


def attribute_errors(predictions: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Squared errors of attribute scores, `(pairs, attributes)`: the mean of both responses of a pair.

    Source: the regression of SteerLM's attribute model (arXiv 2310.05344), whose attributes HelpSteer names.

    Args:
        predictions, scores: `(2 * pairs, attributes)`, chosen rows, then rejected rows.
    """
    chosen, rejected = (predictions - scores).square().chunk(2)
    return (chosen + rejected) / 2
