"""`interdistill reward`: train a reward model, plain (`alignment_weight: 0`) or interaction-distilled."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from trl import ModelConfig, get_peft_config, get_quantization_config

from ..interaction.config import InteractionDistillationConfig
from ..interaction.trainer import InteractionDistillationTrainer
from ..metrics.training import pair_rewards, reward_metrics
from ..training.checkpoints import checkpoint_to_resume, output_folder
from ..training.costs import peak_memory
from ..training.data_arguments import DataArguments
from ..training.output_dir import OutputDirArguments, prepare_output_dir
from ..utils.data import get_split
from ..utils.fields import as_mapping
from ..utils.sources import refuse_same_folder
from .tables import print_metrics

_NEEDED = {"use_peft": r"lora_|use_rslora|use_dora", "load_in_4bit": r"bnb_4bit_|use_bnb_nested_quant"}
ARGUMENTS = (DataArguments, InteractionDistillationConfig, ModelConfig, OutputDirArguments)


def run(
    data: DataArguments, args: InteractionDistillationConfig, model: ModelConfig, output_dir: OutputDirArguments
) -> dict:
    """Train, save to `output_dir`, evaluate on the test split if there is one; returns the metrics.

    Beside the model there are `trainer_state.json` (all that was logged) and `train_results.json` (time, steps, peak
    memory).
    """
    _refuse_unused_options(args, model)
    prepare_output_dir(output_dir, args, is_removing=False)
    folder = output_folder(args)
    read = {"dataset_name": data.dataset_name, "model": model.model_name_or_path, "teacher_model": args.teacher_model}
    refuse_same_folder("`output_dir`", folder, {f"`{option}`": source for option, source in read.items()})
    splits = data.load()
    train_dataset = get_split(splits, data.dataset_train_split, data.dataset_name)
    test_dataset = data.test_rows(splits)
    trainer = InteractionDistillationTrainer(
        model=model.model_name_or_path,
        args=_with_model_options(args, model),
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        quantization_config=get_quantization_config(model),
        peft_config=_adapter_options(model),
        compute_metrics=reward_metrics,
        preprocess_logits_for_metrics=pair_rewards,
    )
    prepare_output_dir(output_dir, args)
    trained = trainer.train(resume_from_checkpoint=checkpoint_to_resume(args.resume_from_checkpoint, folder))
    costs = {**trained.metrics, "global_step": trained.global_step, **peak_memory()}
    trainer.save_model(folder)
    metrics = trainer.evaluate() if test_dataset is not None else {}
    trainer.save_state()  # `trainer_state.json` with all that was logged, as transformers' own scripts write it
    trainer.save_metrics("train", costs, combined=False)
    public_name = None if Path(data.dataset_name).exists() else data.dataset_name  # no local paths in a model card
    trainer.create_model_card(model_name=Path(folder).name, dataset_name=public_name)
    if trainer.is_world_process_zero():
        if metrics:
            wanted = {key: value for key, value in metrics.items() if "per_second" not in key and "runtime" not in key}
            print_metrics(f"Reward model {folder}", {data.test_split: wanted})
        print(f"Saved to {folder}. Next: interdistill score --model {folder} --input FILE")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=public_name)
    return metrics


def _refuse_unused_options(args: InteractionDistillationConfig, model: ModelConfig) -> None:
    """Raise `ValueError` for an option that would change nothing without another one."""
    for field in dataclasses.fields(model):
        needed = next((name for name, pattern in _NEEDED.items() if re.match(pattern, field.name)), None)
        if needed is None or getattr(model, needed) or getattr(model, field.name) == field.default:
            continue
        raise ValueError(
            f"`{field.name}` is {getattr(model, field.name)!r}, but it changes nothing without `{needed}: true`. Set "
            f"that too, or leave `{field.name}` out."
        )
    if args.batch_eval_metrics:
        raise ValueError(
            "`batch_eval_metrics` is true, but the metrics of this command (ties, calibration) are of all pairs "
            "together. Leave it out."
        )


def _adapter_options(model: ModelConfig):
    """The adapter's settings; TRL's default task type is that of language models."""
    if model.use_peft and model.lora_task_type == "CAUSAL_LM":
        model.lora_task_type = "SEQ_CLS"
    return get_peft_config(model)


def _with_model_options(args: InteractionDistillationConfig, model: ModelConfig) -> InteractionDistillationConfig:
    """The loading options of `ModelConfig` as `model_init_kwargs`; values already set there take precedence."""
    options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    args.model_init_kwargs = {**options, **as_mapping("model_init_kwargs", args.model_init_kwargs)}
    return args
