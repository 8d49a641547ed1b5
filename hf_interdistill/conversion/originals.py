"""The complete original model and its rewards, computed as its own trainer computes them."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from ..scoring.loading import require_whole
from ..utils.privacy import public_name
from ..utils.sources import loading
from ..utils.whole_models import (
    LoadReport,
    adapter_keys,
    load_with_report,
    refuse_missing,
    refuse_unused,
    without_load_report,
)
from .checkpoint import WRAPPER, Checkpoint, plain_name
from .formats import Source

_COPY = "Copy or download all of its files."
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def model_config(checkpoint: Checkpoint, wanted: str | None) -> PretrainedConfig:
    """The config of a checkpoint's model, of a class of transformers.

    Args:
        wanted: the format, if the user names one: then code beside the checkpoint is left alone, and not a reason to
            stop.

    Raises:
        ValueError: a model with code of its own, quantized weights, or a kind that transformers does not know.
    """
    name, config = public_name(checkpoint.name), dict(checkpoint.config)
    kind = config.get("model_type")
    known = kind in transformers_kinds()
    if config.pop("auto_map", None) and not (known and wanted):
        raise ValueError(
            f"{name} has code of its own (`auto_map` in config.json), which is not run here. "
            + (
                "If it is one of the formats as published, say so with `format`: its weights are then read with "
                f"transformers' own {kind}."
                if known
                else f"Its `model_type` {kind!r} is not one of transformers' own, so it cannot be converted."
            )
        )
    if not known:
        raise ValueError(
            f"config.json in {name} has `model_type` {kind!r}, which transformers does not know. Correct it, or "
            "install the version of transformers that has it."
        )
    if config.get("quantization_config"):
        raise ValueError(
            f"{name} has quantized weights (`quantization_config`), and rewards of quantized weights are not carried "
            "over exactly. Save it with `model.dequantize()` first, or convert the model that was quantized."
        )
    return transformers_kinds()[kind].from_dict(config)


def transformers_kinds():
    """Config classes of transformers by `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING


def load_original(checkpoint: Checkpoint, source: Source, config: PretrainedConfig, device: str) -> Any:
    """The original in float32: a language model (a PEFT model where it is an adapter) or a sequence classifier.

    Args:
        device: `meta` looks at names and shapes alone, without an adapter.

    Raises:
        IncompleteModelError: weights that are missing, of another shape, or without a place.
    """
    if source.head is None:
        return _load_classifier(checkpoint, config, device)
    base = checkpoint.name if checkpoint.adapter is None else checkpoint.adapter["base_model_name_or_path"]
    where: Any = checkpoint.folder if checkpoint.adapter is None else base
    revision = None if checkpoint.adapter is None else checkpoint.adapter.get("revision")
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    if any(stored.startswith(WRAPPER) for _, stored in checkpoint.files.values()):
        options["key_mapping"] = {f"^{re.escape(WRAPPER)}": ""}
    with without_load_report(), loading(where):
        model, report = load_with_report(
            AutoModelForCausalLM, str(where), config=config, dtype=torch.float32, device_map=device, **options
        )
    report = _with_tied_embeddings(checkpoint, model, report, device)
    head = {f"{name}." for name, module in model.named_modules() if module is model.get_output_embeddings()}
    lost = {key: shown for key, shown in report.missing.items() if not key.startswith(tuple(head))}
    refuse_missing(base, lost.values(), _COPY)
    if checkpoint.adapter is None:
        unused = [key for key in report.unused if not source.leaves_out(key) and key.endswith((".weight", ".bias"))]
        refuse_unused(base, unused, "Name the trainer that saved it with `format`.")
        return model.eval()
    return model.eval() if device == "meta" else _with_adapter(checkpoint, source, model).eval()


def _load_classifier(checkpoint: Checkpoint, config: PretrainedConfig, device: str) -> Any:
    with without_load_report(), loading(checkpoint.folder):
        model, report = load_with_report(
            *(AutoModelForSequenceClassification, str(checkpoint.folder)),
            config=config,
            dtype=torch.float32,
            device_map=device,
        )
    require_whole(checkpoint.name, model, report)
    return model.eval()


def _with_tied_embeddings(checkpoint: Checkpoint, model: Any, report: LoadReport, device: str) -> LoadReport:
    """Where embeddings are tied and stored under the name of the LM head alone, they are taken from there."""
    lost = [key for key in report.missing if key.endswith(_EMBEDDINGS)]
    if len(lost) != 1 or "lm_head.weight" not in checkpoint.names or not model.config.tie_word_embeddings:
        return report
    embeddings = model.get_input_embeddings().weight
    stored = checkpoint.tensor("lm_head.weight")
    if stored.shape != embeddings.shape:
        return report
    if device != "meta":
        with torch.no_grad():
            embeddings.copy_(stored)
    return LoadReport({key: shown for key, shown in report.missing.items() if key not in lost}, report.unused)


def _with_adapter(checkpoint: Checkpoint, source: Source, model: Any) -> Any:
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    assert checkpoint.adapter is not None
    folder, base = str(checkpoint.folder), checkpoint.adapter["base_model_name_or_path"]
    config = PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter in {public_name(checkpoint.name)} has virtual tokens ({config.peft_type}), which cannot be "
            "merged into the weights of a plain model. Convert one of LoRA or of full training."
        )
    config.task_type = "CAUSAL_LM"
    heads = source.head_name.split(".")[0]
    config.modules_to_save = [each for each in config.modules_to_save or [] if each != heads] or None
    weights = load_peft_weights(folder, device="cpu")
    rows = [tensor.shape[0] for key, tensor in weights.items() if key.endswith(_EMBEDDINGS) and "lora" not in key]
    if rows and rows[0] != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows[0], mean_resizing=False)
    try:
        adapted = PeftModel.from_pretrained(model, folder, config=config)
    except RuntimeError as error:
        raise ValueError(
            f"The adapter in {public_name(checkpoint.name)} does not fit its base model {public_name(base)} "
            f"({str(error).strip().splitlines()[-1]:.200}). Name the one that it was trained on with `base_model`."
        ) from error
    expected = adapter_keys(adapted)
    refuse_missing(checkpoint.name, sorted(expected - weights.keys()), _COPY)
    own = {plain_name(key.replace("base_layer.", "")) for key in adapted.get_base_model().state_dict()}
    beside = {key: plain_name(key) for key in weights if key not in expected}  # embeddings may be there twice
    unused = [key for key, name in beside.items() if name not in own and not source.leaves_out(name)]
    refuse_unused(checkpoint.name, unused, "Use the base model that it was trained on (`base_model`).")
    return adapted


@torch.no_grad()
def original_rewards(model: Any, source: Source, rows: list[list[int]], pad_token_id: int | None) -> list[float]:
    """Rewards of token rows, one by one: the hidden state where the original reads, through the original's head.

    Args:
        model: of `load_original`.
        pad_token_id: the original's, which matters where its place depends on padding.
    """
    rewards = []
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if source.head is None:
            logits = model(**inputs).logits[0].float()
            rewards.append(float((logits * source.mix.to(logits.device)).sum()))
            continue
        states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1]
        place = source.place(row, pad_token_id)
        rewards.append(float(source.head.rewards(states[:, place])[0]))
    return rewards
