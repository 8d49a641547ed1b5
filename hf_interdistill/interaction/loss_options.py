"""Options of the reward loss: forms of labels, and what keeps a reward model robust."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from ..utils.fields import as_mapping
from .losses.preference import TIE_MODELS
from .losses.regularization import REGULARIZATION_LOSSES

LOSS_CHOICES = {"tie_model": TIE_MODELS, "regularization_loss": REGULARIZATION_LOSSES}


@dataclass
class RewardLossOptions:
    """Options of the reward loss, with the alignment or without it. All are off by default.

    Two columns of the dataset are labels, read wherever they are there. `preference_probability` is the probability,
    or the share of annotators, that `chosen` is better (0.5: undecided; below it `rejected` is better).
    `tie_probability` is that of a tie (1 or true: a tie); the rest is that of `rejected`. With a tie alone the rest is
    that of `chosen`. The loss is the cross-entropy of these shares. `label_smoothing_factor` moves that part of each
    winner's share to the other response; `margin` is subtracted from the reward difference for every outcome.

    A dataset of `prompt`, `completions` and `ranks` (a list each, 1 for the best response) has two or more ranked
    responses in a row. They are read in one row where the prompt is shared, and the loss is that of Plackett-Luce;
    equal ranks may occur. The alignment, `regularization_*`, `length_penalty_weight`, `center_rewards_coefficient` and
    TRL's metrics are of the best and the worst response. Options of labels (`tie_model`, `agreement_margin`,
    `label_smoothing_factor`) are refused. `label/concordance` is the share of differently ranked responses in order.

    TRL's `accuracy` and the metrics of pairs in evaluation take `chosen` as the better response; `label/accuracy` goes
    by the shares. `InteractionTeacher.fit` and `compare` go by them too, and leave out pairs without a winner; of
    ranked responses they read the best and the worst.

    Args:
        tie_model: how likely a tie is: `davidson` or `rao_kupper` (see `losses.preference`). It needs the column
            `tie_probability`. `none`: a tie is half a win for each response.
        tie_parameter: Davidson's nu (above 0) or Rao and Kupper's theta (above 1). Unset: 2 or 3, with which equal
            rewards tie in one of two cases.
        agreement_margin: reward difference asked of a pair on which all annotators agree. Each pair's margin is this
            times the difference of its two shares, and its label is the majority's. It needs the column
            `preference_probability`. 0: shares are labels. Source: the margins of Llama 2 (arXiv 2307.09288).
        regularization_weight: weight of GRM's regularization (arXiv 2406.10216), from 0 to below 1; the reward loss
            has the rest. The language-model head reads the hidden states from which the reward is read. Tied
            embeddings are used as they are; another head is loaded from the checkpoint and frozen. It is never saved,
            so inference is unchanged.
        regularization_loss: `sft`, `-log sigmoid(beta * log p(chosen))`, or `dpo`, with
            `log p(chosen) - log p(rejected)`.
        regularization_beta: its temperature, above 0.
        length_penalty_weight: weight of the absolute correlation of reward and length within pairs, over a batch (of
            each process and micro-batch). Source: ODIN's length loss (arXiv 2402.07319) on the one reward head.
        attribute_weights: what each attribute counts in the reward, by name, such as
            `{"helpfulness": 0.65, "verbosity": -0.4}`. The columns `chosen_scores` and `rejected_scores` hold a score
            for each. A linear head is trained for each by the squared error. The reward is their weighted sum, so the
            saved model has one output; the heads are saved beside it (`scoring.attributes`).
        attribute_loss_weight: weight of that error, above 0 and up to 1; the preference loss has the rest, so with 1
            the scores are all that is learnt.
    """

    tie_model: str = field(
        default="none", metadata={"help": "Model of ties (column tie_probability).", "choices": list(TIE_MODELS)}
    )
    tie_parameter: float | None = field(
        default=None, metadata={"help": "Davidson's nu or Rao and Kupper's theta; unset: 2 or 3."}
    )
    agreement_margin: float = field(
        default=0.0, metadata={"help": "Reward difference asked of a pair on which all annotators agree."}
    )
    regularization_weight: float = field(
        default=0.0, metadata={"help": "Weight of GRM's language-model loss; the reward loss has the rest."}
    )
    regularization_loss: str = field(
        default="sft", metadata={"help": "Form of GRM's loss.", "choices": list(REGULARIZATION_LOSSES)}
    )
    regularization_beta: float = field(default=0.1, metadata={"help": "Temperature of GRM's loss."})
    length_penalty_weight: float = field(
        default=0.0, metadata={"help": "Weight of the correlation of reward and length within pairs of a batch."}
    )
    attribute_weights: dict[str, float] | str | None = field(
        default=None, metadata={"help": "What each attribute of chosen_scores/rejected_scores counts; JSON."}
    )
    attribute_loss_weight: float = field(
        default=0.5, metadata={"help": "Weight of the regression of attributes; the preference loss has the rest."}
    )

    @property
    def attributes(self) -> dict[str, float]:
        """`attribute_weights` by name; empty without."""
        return as_mapping("attribute_weights", self.attribute_weights)


def changed_loss_options(args: RewardLossOptions) -> dict[str, Any]:
    """The options that are not their defaults, by name."""
    values = {each.name: getattr(args, each.name) for each in fields(RewardLossOptions)}
    return {each.name: values[each.name] for each in fields(RewardLossOptions) if values[each.name] != each.default}


def check_loss_options(args) -> None:
    """Raise `ValueError` for values out of range, and for options that change nothing or contradict each other.

    Args:
        args: an `InteractionDistillationConfig`.
    """
    _require_range("agreement_margin", args.agreement_margin, 0 <= args.agreement_margin < math.inf, "0 or positive")
    weight, beta = args.regularization_weight, args.regularization_beta
    _require_range("regularization_weight", weight, 0 <= weight < 1, "from 0 to below 1 (GRM's is 0.01)")
    _require_range("regularization_beta", beta, 0 < beta < math.inf, "positive (GRM's is 0.1)")
    penalty = args.length_penalty_weight
    _require_range("length_penalty_weight", penalty, 0 <= penalty < math.inf, "0 or positive")
    _check_ties(args)
    _check_attributes(args)
    if not weight:
        defaults = RewardLossOptions()
        for name in ("regularization_loss", "regularization_beta"):
            if getattr(args, name) != getattr(defaults, name):
                raise ValueError(
                    f"`{name}` is {getattr(args, name)!r}, but changes nothing without `regularization_weight`. Set "
                    f"that (0.01, say), or leave `{name}` out."
                )
    if penalty and args.per_device_train_batch_size < 2:
        raise ValueError(
            f"`length_penalty_weight` is {penalty} and `per_device_train_batch_size` 1, but one pair has no "
            "correlation: the penalty would have no gradient. Raise the batch size; 8 or more is better."
        )


def _check_attributes(args) -> None:
    """Check the attributes, which may be JSON."""
    share = args.attribute_loss_weight
    _require_range("attribute_loss_weight", share, 0 < share <= 1, "above 0 and at most 1")
    if args.attribute_weights is None:
        if share != RewardLossOptions().attribute_loss_weight:
            raise ValueError(
                f"`attribute_loss_weight` is {share}, but changes nothing without `attribute_weights`. Set that, or "
                "leave it out."
            )
        return
    weights = args.attribute_weights = as_mapping("attribute_weights", args.attribute_weights)
    for name, value in weights.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not isinstance(name, str) or not name or not is_number:
            raise ValueError(
                f"`attribute_weights` has {value!r} for {name!r}, but must have a finite number for each name of an "
                "attribute."
            )
    if not any(weights.values()):
        raise ValueError(
            f"`attribute_weights` is {weights}, but the reward would be 0 for every text. Give at least one attribute "
            "a weight other than 0."
        )
    unread = {
        "tie_model": "none",
        "agreement_margin": 0,
        "label_smoothing_factor": 0,
        "center_rewards_coefficient": None,
    }
    for name, default in unread.items():
        if share == 1 and getattr(args, name) != default:
            raise ValueError(
                f"`{name}` is {getattr(args, name)!r}, but changes nothing with `attribute_loss_weight` 1, which "
                "leaves the preferences out. Lower that, or leave it out."
            )


def _check_ties(args) -> None:
    model, parameter = args.tie_model, args.tie_parameter
    if model == "none":
        if parameter is not None:
            raise ValueError(
                f"`tie_parameter` is {parameter}, but changes nothing without a tie model. Set `tie_model` to "
                "'davidson' or 'rao_kupper', or leave it out."
            )
        return
    if args.agreement_margin:
        raise ValueError(
            f"`agreement_margin` is {args.agreement_margin} and `tie_model` '{model}', but the margin makes a label "
            "of the majority, which has no ties. Set one of them."
        )
    if parameter is not None:
        least, name = (0, "nu") if model == "davidson" else (1, "theta")
        rule = f"above {least} (it is the {name} of '{model}')"
        _require_range("tie_parameter", parameter, least < parameter < math.inf, rule)


def _require_range(name: str, value: float, is_in_range: bool, rule: str) -> None:
    if not is_in_range:  # so it is for NaN
        raise ValueError(f"`{name}` is {value}, but must be {rule}.")
