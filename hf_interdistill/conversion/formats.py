"""Recognizes the trainer that saved a checkpoint, and finds its reward head.

After the sources: LLaMA-Factory 0.9 and ms-swift 3 (TRL's value head in a file of its own), TRL 0.11, OpenRLHF 0.11,
the published code of GRM (arXiv 2406.10216) and ArmoRM (arXiv 2406.12845), ms-swift 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..utils.privacy import public_name
from ..utils.whole_models import listed
from .checkpoint import Checkpoint
from .heads import LinearHead, last_place, place_before_padding, read_linear
from .weights import Weights, mix_of

FORMATS = {
    "value_head": "value head of TRL, LLaMA-Factory or ms-swift",
    "openrlhf": "OpenRLHF's value head",
    "grm": "GRM's value head",
    "ms_swift": "ms-swift's score head on a language model",
    "multi_output": "several outputs",
}
_OPENRLHF_CLASSES = ("RewardModel", "CriticModel", "LLMForSequenceRegression")
_REGRESSION = "regression_layer"  # ArmoRM's
# Beside the head that is read. Where there are several heads, the user has said which one it is.
_LEFT_OUT = re.compile(r"^(lm_head|output|embed_out)\.|^(v_head|value_head|score|gating)\.|^reward_transform_matrix$")


@dataclass(frozen=True)
class Source:
    """A recognized checkpoint.

    Args:
        format: one of `FORMATS`.
        head: the head; `None` where it is that of a sequence classifier of transformers, with its `mix`.
        mix_labels: names of the outputs. mix: what each counts.
        head_name: prefix of the head's weights.
        place: from a row of tokens and the id of padding, where the original reads the reward.
        reads_mask: whether padding does not matter for that place.
        notes: what a user should know.
    """

    format: str
    head: LinearHead | None
    mix_labels: tuple[str, ...]
    mix: Any
    head_name: str
    place: Callable[[Sequence[int], int | None], int] = last_place
    reads_mask: bool = True
    notes: tuple[str, ...] = ()

    def leaves_out(self, name: str) -> bool:
        """Whether a weight has no place in the result, and should not have one."""
        return name.startswith(f"{self.head_name}.") or _LEFT_OUT.search(name) is not None


@dataclass(frozen=True)
class Choices:
    """What the user says about the reward; see `ConvertArguments`. `is_stated`: `format` was given."""

    weights: Weights | None = None
    positive_label: str | None = None
    normalize_reward: bool | None = None
    is_stated: bool = False


class PlainModelError(ValueError):
    """There is nothing to convert."""


def recognize(checkpoint: Checkpoint, hidden_size: int, wanted: str | None, choices: Choices) -> Source:
    """Find out the format, and read the head.

    Args:
        hidden_size: of the model. wanted: the format, if the user names one.

    Raises:
        PlainModelError: the checkpoint is a plain reward model.
        ValueError: no format or several fit; the head is not linear, incomplete or broken.
    """
    choices = replace(choices, is_stated=wanted is not None)
    if wanted is None:
        wanted = _detect(checkpoint)
    elif wanted not in FORMATS:
        raise ValueError(f"`format` is {wanted!r}, but must be one of {', '.join(FORMATS)}.")
    if choices.normalize_reward is not None and wanted != "openrlhf":
        raise ValueError(
            f"`normalize_reward` is {choices.normalize_reward}, but only OpenRLHF's models have mean and std, and "
            f"this is {FORMATS[wanted]}. Leave it out."
        )
    return _READERS[wanted](checkpoint, hidden_size, choices)


def _detect(checkpoint: Checkpoint) -> str:
    name, names, config = public_name(checkpoint.name), checkpoint.names, checkpoint.config
    classes = config.get("architectures") or []
    has_score, outputs = "score.weight" in names, _outputs_of(checkpoint)
    has_value_head = any(each.startswith("v_head.") for each in names)
    is_classifier = checkpoint.adapter is None and any(kind.endswith("SequenceClassification") for kind in classes)
    if checkpoint.adapter is not None:
        is_classifier = checkpoint.adapter.get("task_type") == "SEQ_CLS" and (has_score or not has_value_head)
    is_grm = "vhead_layer_type" in config or any(re.match(r"v_head\.summary\.\d", each) for each in names)
    is_openrlhf = (
        "value_head_prefix" in config
        or "value_head.weight" in names
        or any(kind in _OPENRLHF_CLASSES or kind.endswith("ForSequenceRegression") for kind in classes)
    )
    fits = {
        "value_head": has_value_head and not is_grm,
        "grm": has_value_head and is_grm,
        "openrlhf": is_openrlhf,
        "multi_output": f"{_REGRESSION}.weight" in names
        or (is_classifier and checkpoint.adapter is None and outputs > 1 and not is_openrlhf),
        "ms_swift": has_score and not is_classifier and not is_openrlhf,
    }
    found = [each for each, fit in fits.items() if fit]
    if has_value_head and is_classifier:
        found.append("plain")
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{name} could be of several formats: {', '.join(found)}. Say which with `format`: each has a different "
            "head."
        )
    if is_classifier:
        raise PlainModelError(_plain(checkpoint))
    beside = sorted(each for each in names if not re.search(r"(^|\.)(layers?|h|blocks?)\.\d+\.", each))
    raise ValueError(
        f"{name} ({', '.join(classes) or 'no architecture'}) has no head that gives a reward. Its weights outside the "
        f"layers are {listed(beside) or 'none'}. Copy the head's file too (such as value_head.safetensors), or name "
        f"the trainer with `format` ({', '.join(FORMATS)})."
    )


def _plain(checkpoint: Checkpoint) -> str:
    name = public_name(checkpoint.name)
    if checkpoint.adapter is not None:
        return (
            f"{name} is an adapter of a plain reward model already, so there is nothing to convert: "
            "`RewardScorer.from_pretrained` loads it, and `python recipes/serving/export.py` merges it."
        )
    text = (
        f"{name} is a plain reward model with one output already, so there is nothing to convert: "
        "`RewardScorer.from_pretrained` loads it as it is."
    )
    if checkpoint.config.get("problem_type") != "regression":
        text += (
            " Its config does not say `problem_type: regression`, so pipelines and vLLM apply a sigmoid to the "
            "reward: "
            "`python recipes/serving/export.py --dtype float32` writes a copy that says so."
        )
    return text


def _outputs_of(checkpoint: Checkpoint) -> int:
    """Outputs of a sequence classifier: rows of its head, or what its config says."""
    for name in ("score.weight", "classifier.weight"):
        if name in checkpoint.names:
            return len(checkpoint.tensor(name))
    names = checkpoint.config.get("id2label")
    return len(names) if names else int(checkpoint.config.get("num_labels") or 2)


def _value_head(checkpoint: Checkpoint, hidden_size: int, choices: Choices) -> Source:
    return _linear("value_head", checkpoint, "v_head.summary", hidden_size, choices)


def _openrlhf(checkpoint: Checkpoint, hidden_size: int, choices: Choices) -> Source:
    name, config = public_name(checkpoint.name), checkpoint.config
    if not choices.is_stated and "CriticModel" in (config.get("architectures") or []):
        raise ValueError(
            f"{name} is a critic of OpenRLHF (`CriticModel`): its values are those of unfinished answers under one "
            "policy, not rewards. Convert the reward model, or set `format: openrlhf` to use them as rewards."
        )
    prefix = config.get("value_head_prefix")
    if prefix is None:
        there = [each for each in ("value_head", "score") if f"{each}.weight" in checkpoint.names]
        prefix = there[0] if there else "value_head"
    mean: Any = config.get("mean")
    std: Any = config.get("std")
    stated = choices.normalize_reward
    is_normalized = config.get("normalize_reward", False) if stated is None else stated
    notes: tuple[str, ...] = ()
    if not is_normalized and mean is not None:
        notes = (
            f"The config has mean {mean!r} and std {std!r}, which are not used (`normalize_reward` is false, as "
            "OpenRLHF's own default).",
        )
    if not is_normalized or (mean is None and std is None and stated is None):
        mean, std = 0.0, 1.0
    is_number = all(isinstance(each, int | float) and math.isfinite(each) for each in (mean, std))
    if not is_number or std <= 0:
        raise ValueError(
            f"config.json in {name} has mean {mean!r} and std {std!r}, but a normalized reward needs two numbers, and "
            "std above 0. Correct them there, or set `normalize_reward: false`."
        )
    return _linear("openrlhf", checkpoint, prefix, hidden_size, choices, mean=mean, std=std, notes=notes)


def _grm(checkpoint: Checkpoint, hidden_size: int, choices: Choices) -> Source:
    layers = sorted(
        int(found[1]) for each in checkpoint.names if (found := re.fullmatch(r"v_head\.summary\.(\d+)\.weight", each))
    )
    if len(layers) > 1:
        raise ValueError(
            f"The value head of {public_name(checkpoint.name)} has {len(layers)} linear layers with ReLU between them "
            "(`vhead_layer_type: mlp`), but a sequence classifier's score head is one linear layer: no weights of "
            "such a head give the same rewards. Serve it with GRM's own code, or train with `layer_type: linear`."
        )
    prefix = f"v_head.summary.{layers[0]}" if layers else "v_head.summary"
    return _linear("grm", checkpoint, prefix, hidden_size, choices)


def _ms_swift(checkpoint: Checkpoint, hidden_size: int, choices: Choices) -> Source:
    return _linear(
        "ms_swift",
        *(checkpoint, "score", hidden_size, choices),
        outputs=None,
        place=place_before_padding,
        reads_mask=False,
    )


def _multi_output(checkpoint: Checkpoint, hidden_size: int, choices: Choices) -> Source:
    if f"{_REGRESSION}.weight" in checkpoint.names:
        notes: tuple[str, ...] = ()
        if any(each.startswith("gating.") for each in checkpoint.names):
            notes = (
                "The gating network, which chooses other weights for each prompt, is left out: the reward is that of "
                "the given weights, not the model's own `score`.",
            )
        return _linear(
            "multi_output",
            *(checkpoint, _REGRESSION, hidden_size, choices),
            outputs=None,
            place=place_before_padding,
            reads_mask=False,
            notes=notes,
        )
    if checkpoint.adapter is not None:
        raise ValueError(
            f"{public_name(checkpoint.name)} is an adapter, and one with several outputs is not converted. Merge it "
            "first (`merge_and_unload`), and save the result."
        )
    labels = _labels(checkpoint.config, _outputs_of(checkpoint))
    mix = mix_of(labels, choices.weights, choices.positive_label, public_name(checkpoint.name))
    return Source("multi_output", None, labels, mix, head_name="", reads_mask=False)


def _linear(
    kind: str,
    checkpoint: Checkpoint,
    prefix: str,
    hidden_size: int,
    choices: Choices,
    *,
    outputs: int | None = 1,
    mean: float = 0.0,
    std: float = 1.0,
    **facts: Any,
) -> Source:
    weight, bias = read_linear(checkpoint, prefix, hidden_size, outputs)
    labels = _labels(checkpoint.config, len(weight))
    mix = mix_of(labels, choices.weights, choices.positive_label, public_name(checkpoint.name))
    head = LinearHead(weight, bias, mix, float(mean), float(std))
    return Source(kind, head, labels, mix, head_name=prefix, **facts)


def _labels(config: dict[str, Any], outputs: int) -> tuple[str, ...]:
    """Names of the outputs; their numbers where the config does not name each."""
    names = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
    if sorted(names) != list(range(outputs)):
        return tuple(str(number) for number in range(outputs))
    return tuple(names[number] for number in range(outputs))


_READERS: dict[str, Callable[[Checkpoint, int, Choices], Source]] = {
    "value_head": _value_head,
    "openrlhf": _openrlhf,
    "grm": _grm,
    "ms_swift": _ms_swift,
    "multi_output": _multi_output,
}
