"""The language-model head that GRM's regularization keeps beside the reward head, and the hidden states it reads."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from ..utils.fields import as_mapping
from ..utils.model_config import text_config
from ..utils.privacy import public_name
from ..utils.whole_models import load_with_report, without_load_report
from .config import InteractionDistillationConfig

# Config fields by which a model changes the logits after its language-model head, and values that change nothing.
_AFTER_HEAD = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1, "lm_head_multiplier": 1}
_FIX = "Train with `regularization_weight=0`."


class LanguageHead:
    """Output embeddings for the states from which the reward is read; a context manager that records these states.

    Args:
        model: the reward model, with or without PEFT, not wrapped for several processes.
        start: name or folder it was loaded from, or `None` if a model was passed.
        args: `model_init_kwargs` and `trust_remote_code` are used to load the head.
        is_sharded: whether FSDP or DeepSpeed holds the weights.

    Raises:
        ValueError: no output embeddings; sharded weights; no head named `score`; logits that are more than
            a linear function of the states.
    """

    def __init__(self, model: Any, start: str | None, args: InteractionDistillationConfig, is_sharded: bool = False):
        self._model = model
        self._states: torch.Tensor | None = None
        base = model.get_base_model() if is_peft_model(model) else model
        config = text_config(base)
        if is_sharded:
            raise ValueError(
                "`regularization_weight` needs the whole language-model head, but FSDP or DeepSpeed shards the "
                f"weights. Use DDP or one process. {_FIX}"
            )
        score = getattr(base, "score", None)
        if not isinstance(score, nn.Module):
            raise ValueError(
                f"`regularization_weight` reads the states before the module `score`, but {type(base).__name__} has "
                f"none. Use a decoder's `*ForSequenceClassification`. {_FIX}"
            )
        self._score = score
        changed = [name for name, none in _AFTER_HEAD.items() if getattr(config, name, none) not in (none, None)]
        if changed:
            raise ValueError(
                f"`regularization_weight` reads words by a linear head, but {type(base).__name__} changes the logits "
                f"after it (`{changed[0]}` is {getattr(config, changed[0])}). {_FIX}"
            )
        self._frozen = None if getattr(config, "tie_word_embeddings", False) else _load_head(base, start, args)

    @property
    def weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output embeddings `(vocabulary, hidden)`, and their bias `(vocabulary,)` or `None`."""
        if self._frozen is None:
            return self._model.get_input_embeddings().weight, None
        return self._frozen

    def to(self, device: torch.device) -> LanguageHead:
        """Move a head that was loaded."""
        if self._frozen is not None:
            weight, bias = self._frozen
            self._frozen = weight.to(device), None if bias is None else bias.to(device)
        return self

    def take(self) -> torch.Tensor:
        """What the score head read in the last forward pass, `(rows, length, hidden)`; it is then released."""
        states, self._states = self._states, None
        assert states is not None, "the model ran outside of the context"
        return states

    def __enter__(self) -> LanguageHead:
        self._hook = self._score.register_forward_pre_hook(self._record)
        return self

    def __exit__(self, *error) -> None:
        self._hook.remove()

    def _record(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._states = inputs[0]


def _load_head(base: Any, start: str | None, args: InteractionDistillationConfig):
    """The head of the checkpoint, frozen, in the dtype of the model's embeddings."""
    if start is None:
        raise ValueError(
            f"`regularization_weight` needs the language-model head, which a {type(base).__name__} does not hold: its "
            "config has `tie_word_embeddings` false. Pass the model by its name or folder, so that the head is loaded "
            f"from there. {_FIX}"
        )
    trust = {"trust_remote_code": True} if args.trust_remote_code else {}
    options = {**trust, **as_mapping("model_init_kwargs", args.model_init_kwargs)}
    options = {key: value for key, value in options.items() if key not in ("device_map", "num_labels")}
    with without_load_report():
        model, report = load_with_report(AutoModelForCausalLM, start, **options)
    head = model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if module is head}
    lost = [shown for key, shown in report.missing.items() if key.rpartition(".")[0] in names]
    if head is None or lost:
        raise ValueError(
            f"`regularization_weight` needs the language-model head, but {public_name(start)} has none"
            f"{f' (`{lost[0]}` is missing)' if lost else ''}. Start from a language model. {_FIX}"
        )
    dtype = base.get_input_embeddings().weight.dtype
    bias = getattr(head, "bias", None)
    return head.weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
