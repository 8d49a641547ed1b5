"""What a training starts from: a complete checkpoint, its tokenizer, and an adapter that trains the head."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import is_peft_available

from ..scoring.loading import adapter_prefix, is_adapter, require_sequence_classification
from ..utils.fields import as_mapping
from ..utils.privacy import public_name
from ..utils.sources import loading
from ..utils.whole_models import (
    SCORE_HEADS,
    LoadReport,
    adapter_keys,
    hub_options,
    is_head_weight,
    listed,
    load_with_report,
    refuse_missing,
    without_load_report,
)
from .config import InteractionDistillationConfig

logger = logging.getLogger(__name__)

# Of the options of `from_pretrained`, those that say where weights go, not what they are.
_PLACEMENT = ("device_map", "max_memory", "offload_folder", "quantization_config", "dtype")


def require_whole_start(name: str, args: InteractionDistillationConfig) -> LoadReport:
    """Weights that are missing from the checkpoint to start from: at most the score head.

    It reads names and shapes: the weights go to the meta device.

    Args:
        name: folder or Hub name.
        args: `model_init_kwargs` and `trust_remote_code` are used as `RewardTrainer` uses them.

    Raises:
        ValueError: an adapter instead of a full model.
        IncompleteModelError: another weight than the head's is missing or has another shape.
    """
    options = _loading_options(args)
    if is_adapter(name, options):
        raise ValueError(
            f"{public_name(name)} holds an adapter. Trained as it is, its base model's weights would be changed and "
            "not saved. Start from a full model: merge the adapter (`merge_and_unload`) and save the result. To train "
            "the adapter on, pass `PeftModel.from_pretrained(base_model, name, is_trainable=True)`."
        )
    stored = AutoConfig.from_pretrained(name, **hub_options(options))
    if getattr(stored, "quantization_config", None) is None:  # quantizers need the device that they run on
        options = {key: value for key, value in options.items() if key not in _PLACEMENT} | {"device_map": "meta"}
    with without_load_report():
        model, report = load_with_report(AutoModelForSequenceClassification, name, num_labels=1, **options)
    reshaped = [shown for key, shown in report.missing.items() if key != shown and is_head_weight(model, key)]
    if reshaped and not options.get("ignore_mismatched_sizes"):
        raise ValueError(
            f"{public_name(name)} has a head for another number of outputs than the one of a reward model "
            f"({listed(reshaped)}). To start with a new head, set `model_init_kwargs` to "
            '`{"ignore_mismatched_sizes": true}`.'
        )
    lost = [shown for key, shown in report.missing.items() if not is_head_weight(model, key)]
    refuse_missing(
        name,
        lost,
        "Of a model to train from, only the score head may be missing. Copy or download all of its files (each shard "
        "that the "
        "index names).",
    )
    return report


def load_tokenizer(name: str, args: InteractionDistillationConfig):
    """The tokenizer beside a model, from the same `subfolder`, `revision`, `cache_dir` and with the same `token`."""
    return AutoTokenizer.from_pretrained(name, **hub_options(_loading_options(args)))


def _loading_options(args: InteractionDistillationConfig) -> dict[str, Any]:
    trust = {"trust_remote_code": True} if args.trust_remote_code else {}
    return {**trust, **as_mapping("model_init_kwargs", args.model_init_kwargs)}


def adapter_for_rewards(peft_config, args: InteractionDistillationConfig):
    """The adapter's settings with the task type of a reward model, and the base model's revision, where unset.

    Args:
        peft_config: a `PeftConfig`; it is left as it is.
        args: `model_init_kwargs` name the base model's revision.

    Raises:
        ValueError: another task type; a base model in a subfolder, which an adapter's file cannot name.
    """
    require_sequence_classification("`peft_config`", peft_config.task_type)
    peft_config = copy.deepcopy(peft_config)
    if peft_config.task_type is None:
        logger.info("`peft_config` has no `task_type`: it is set to 'SEQ_CLS', so that the score head is trained too.")
        peft_config.task_type = "SEQ_CLS"
    init = as_mapping("model_init_kwargs", args.model_init_kwargs)
    if init.get("subfolder"):
        raise ValueError(
            f"The base model is in the subfolder {init['subfolder']!r}, which an adapter's config cannot name: nobody "
            "could load the adapter. Save the base model in a folder or repository of its own and start from that."
        )
    if peft_config.revision is None:
        peft_config.revision = init.get("revision")
    return peft_config


def checked_start(bound: inspect.BoundArguments) -> tuple[inspect.BoundArguments, LoadReport | None]:
    """Arguments of `RewardTrainer` with the right tokenizer and adapter, and what the model's checkpoint lacks."""
    given, report = bound.arguments, None
    model, args = given["model"], given["args"]
    if isinstance(model, str):
        with loading(model):
            report = require_whole_start(model, args)
            if given.get("processing_class") is None:
                given["processing_class"] = load_tokenizer(model, args)
    if given.get("peft_config") is not None:
        given["peft_config"] = adapter_for_rewards(given["peft_config"], args)
    return bound, report


def require_trained_head(model: Any, report: LoadReport | None = None) -> None:
    """Raise `ValueError` for an adapter that leaves a part of the reward untrained or unsaved.

    Args:
        model: what is trained; a model without an adapter is left alone.
        report: what the base model's checkpoint lacks, if known.
    """
    if not is_peft_model(model):
        if _has_adapter_layers(model):
            raise ValueError(
                "The model has an adapter without PEFT's wrapper (of `add_adapter`, `load_adapter` or "
                "`inject_adapter_in_model`), so what is saved could not be loaded as a reward model. Use "
                "`peft.get_peft_model`, or pass `peft_config`."
            )
        return
    base = model.get_base_model()
    if is_peft_model(base):
        raise ValueError(
            "The adapter is on a model that has an adapter already, and only the outer one would be saved. Merge the "
            "inner one (`merge_and_unload`), save the result, and put the new adapter on that."
        )
    if list(model.peft_config) != ["default"]:
        raise ValueError(
            f"The model has the adapters {', '.join(model.peft_config)}, but PEFT saves only the one called 'default' "
            "where reward models are loaded from. Train one adapter of that name."
        )
    config = model.peft_config["default"]
    require_sequence_classification("The adapter", config.task_type)
    config.task_type = "SEQ_CLS"
    untrained = sorted(_untrained(model, base, report))
    if untrained:
        raise ValueError(
            f"The adapter does not train and save {listed(untrained)}, so rewards would come from untrained weights, "
            "or would differ from those of the saved adapter. Set `task_type='SEQ_CLS'` and "
            f"`modules_to_save={sorted({name.split('.')[0] for name in untrained})}` in the PEFT config; load an "
            "adapter with `is_trainable=True`."
        )


def _has_adapter_layers(model: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _untrained(model: Any, base: nn.Module, report: LoadReport | None) -> set[str]:
    """Names of the weights that must be trained and saved with an adapter, and are not."""
    prefix = adapter_prefix(model.active_peft_config)
    saved = {key.removeprefix(prefix) for key in adapter_keys(model)}
    missing = set() if report is None else set(report.missing)
    untrained = missing - saved
    for name, child in base.named_children():
        is_needed = name in SCORE_HEADS or (report is None and name != base.base_model_prefix)
        if not is_needed or not any(True for _ in child.parameters()):
            continue
        original = getattr(child, "original_module", child)
        names = {f"{name}.{inner}".replace(".base_layer", "") for inner, _ in original.named_parameters()}
        is_trained = any(parameter.requires_grad for parameter in child.parameters())
        untrained |= {each for each in names if "lora_" not in each} - (saved if is_trained else set())
    return untrained
