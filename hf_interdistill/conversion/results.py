"""The result: the original's backbone below a score head of one output."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from ..scoring.raw_reward import answer_with_raw_reward
from ..utils.privacy import public_name
from ..utils.whole_models import SCORE_HEADS
from .formats import Source

# Of the trainers' own, in config.json; what is read with them is in the weights of the result.
_FOREIGN = ("value_head_prefix", "normalize_reward", "mean", "std", "auto_map", "summary_dropout_prob")
_LAST_NORMS = ("ln_f", "final_layer_norm", "final_layernorm", "norm")
_PLACES = {
    "score": "kept in the bias of the score head",
    "norm": "kept in the bias of the last layer norm (the score head has none)",
    "dropped": "left out: a reward is the original's minus this, and differences are the same",
    "none": "none",
}


def result_class(name: str, config: PretrainedConfig) -> Any:
    """An instance without memory (on `meta`) of the sequence classifier of a config, which has one linear head.

    Raises:
        ValueError: transformers has none for this kind of model, or its head is more than one linear layer.
    """
    config = _plain_config(config)
    try:
        with torch.device("meta"):
            shell = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ValueError(
            f"{public_name(name)} is a {config.model_type}, of which transformers has no *ForSequenceClassification: "
            "there is no plain format to convert it to. Serve it with its trainer's own code."
        ) from None
    parts = {part for part, module in shell.named_children() if list(module.parameters())}
    head = getattr(shell, "score", None)
    if parts != {shell.base_model_prefix, "score"} or not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(shell).__name__} has the parts {', '.join(sorted(parts))}, but a value head fits only one linear "
            "layer (`score`) on the last token. Convert a decoder."
        )
    return shell


def _plain_config(config: PretrainedConfig) -> PretrainedConfig:
    config = copy.deepcopy(config)
    for key in [key for key in vars(config) if key in _FOREIGN or key.startswith("vhead_")]:
        delattr(config, key)
    config.num_labels = 1
    answer_with_raw_reward(config)
    return config


def constant_place(shell: Any, constant: float, drop_bias: bool) -> str:
    """Where what a linear head adds to every reward goes: `none`, `score`, `norm`, `dropped`.

    Raises:
        ValueError: there is no place for it, and the user did not allow leaving it out.
    """
    if constant == 0:
        return "none"
    if shell.score.bias is not None:
        return "score"
    if _last_norm(shell) is not None:
        return "norm"
    if drop_bias:
        return "dropped"
    raise ValueError(
        f"The head adds {constant:.6g} to every reward, but the score head of {type(shell).__name__} has no bias, nor "
        "has its last norm. Differences of rewards (rankings, preference losses, advantages of GRPO) do not depend on "
        "it. `drop_bias: true` leaves it out, and the card says so."
    )


def shown_constant(constant: float, place: str) -> str:
    """The constant and where it went, in words."""
    return _PLACES[place] if place == "none" else f"{constant:.6g}, {_PLACES[place]}"


def _last_norm(model: Any) -> nn.LayerNorm | None:
    """The norm with a bias whose output is what the head reads, `None` if there is none."""
    found = [
        module
        for name, module in getattr(model, model.base_model_prefix).named_modules()
        if isinstance(module, nn.LayerNorm)
        and module.bias is not None
        and name.rpartition(".")[2] in _LAST_NORMS
        and not any(part.isdecimal() for part in name.split("."))
    ]
    return found[0] if len(found) == 1 else None


@torch.no_grad()
def assemble(shell: Any, original: Any, source: Source, place: str) -> Any:
    """The result: the shell with the original's backbone (an adapter is merged) and the head as one row.

    Args:
        shell: of `result_class`. original: of `load_original`; it loses its backbone.
        place: of `constant_place`.
    """
    head = source.head
    assert head is not None
    if hasattr(original, "merge_and_unload"):
        original = original.merge_and_unload()
    prefix = shell.base_model_prefix
    backbone = getattr(original, prefix, None)
    if type(backbone) is not type(getattr(shell, prefix)):
        raise ValueError(
            f"{type(original).__name__} has {type(backbone).__name__} as its backbone, but {type(shell).__name__} "
            f"{type(getattr(shell, prefix)).__name__}: their weights do not fit. Serve it with its trainer's own code."
        )
    setattr(shell, prefix, backbone)
    # An adapter may have brought embeddings of new tokens.
    shell.config.get_text_config().vocab_size = len(original.get_input_embeddings().weight)
    row = head.row()
    shell.score = nn.Linear(row.shape[1], 1, bias=place == "score")
    shell.score.weight.copy_(row)
    if place == "score":
        shell.score.bias.fill_(head.constant())
    elif place == "norm":
        norm = _last_norm(shell)
        assert norm is not None and norm.bias is not None
        weight = row[0].double()
        norm.bias.add_((head.constant() * weight / weight.dot(weight)).to(norm.bias))
    shell.to(original.device)
    return shell.eval()


@torch.no_grad()
def reduce_outputs(model: Any, mix: torch.Tensor, name: str) -> Any:
    """A sequence classifier whose several outputs are replaced by one: their sum, weighted by `mix`.

    Raises:
        ValueError: its last layer is not one linear layer.
    """
    found = output_layer(model, len(mix), name)
    parent, _, attribute = found.rpartition(".")
    old = model.get_submodule(found)
    weights = mix.double().to(old.weight.device)
    new = nn.Linear(old.in_features, 1, bias=old.bias is not None)
    new.weight.copy_((weights @ old.weight.double())[None])
    if old.bias is not None:
        new.bias.copy_((weights @ old.bias.double())[None])
    setattr(model.get_submodule(parent), attribute, new.to(old.weight.device))
    config = _plain_config(model.config)
    model.config, model.num_labels = config, 1
    return model.eval()


def output_layer(model: Any, outputs: int, name: str) -> str:
    """Name of the linear layer that gives the logits."""
    found = [
        part
        for part, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and part.split(".")[0] in (*SCORE_HEADS, "classification_head", "logits_proj")
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} in {public_name(name)} has {len(found)} linear layers with {outputs} outputs in "
            f"its head ({', '.join(found) or 'none'}), but one is needed to add its outputs up. Convert another model."
        )
    return found[0]
