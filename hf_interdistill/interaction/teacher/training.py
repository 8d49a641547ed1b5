"""Training of a teacher's network: held-out split, stages (single responses, then pairs), metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...utils.binomial import accuracy_interval
from ..data.pairs import Preference, read_preferences
from ..data.preference_tokenizer import tokenize_without_units
from ..data.teacher_inputs import PairLayout
from ..data.winners import rows_with_winners
from .config import InteractionTeacherConfig
from .pair_encoder import PairEncoder
from .stage_records import stage_record
from .stages import Stage, StageData, clear, run_stage


def split_by_prompt(preferences: Sequence[Preference], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of a training and a held-out part that share no prompt."""
    prompts: dict[str, list[int]] = {}
    for index, preference in enumerate(preferences):
        prompts.setdefault(json.dumps(preference.prompt, default=str), []).append(index)
    groups = list(prompts.values())
    held_out: list[int] = []
    for group in np.random.default_rng(seed).permutation(len(groups)):
        if len(held_out) >= fraction * len(preferences):
            break
        held_out += groups[group]
    training = sorted(set(range(len(preferences))) - set(held_out))
    if not training or not held_out:
        raise ValueError(
            f"{len(preferences)} preferences with {len(groups)} distinct prompts cannot be split into a training and "
            f"a held-out part (`eval_fraction={fraction}`): give more prompts or an `eval_dataset`."
        )
    return training, sorted(held_out)


def split_preferences(
    preferences, eval_dataset, args: InteractionTeacherConfig
) -> tuple[list[Preference], list[Preference]]:
    """Preferences for training and held-out ones: `eval_dataset`, or `args.eval_fraction` of the prompts.

    Of rows with label columns `chosen` is the response that won, of ranked ones the best; rows without a winner are
    left out.
    """
    rows = read_preferences(rows_with_winners(preferences, "preferences"), "preferences")
    if eval_dataset is not None:
        return rows, read_preferences(rows_with_winners(eval_dataset, "eval_dataset"), "eval_dataset")
    training, held_out = split_by_prompt(rows, args.eval_fraction, args.seed)
    return [rows[i] for i in training], [rows[i] for i in held_out]


def train_network(
    network: PairEncoder,
    tokenizer,
    layout: PairLayout,
    preferences: tuple[list[Preference], list[Preference]],
    args: InteractionTeacherConfig,
    *,
    folder: Path,
    encoder: str,
    callbacks=None,
    is_resumed: bool = False,
) -> None:
    """Train on single responses, then on pairs, each with early stopping on the held-out loss.

    Args:
        network: changed in place.
        tokenizer: of the network.
        layout: the rows in which it reads a pair.
        preferences: those to train on, and the held-out ones.
        args: settings of each stage.
        folder: for the files of the stages.
        encoder: digest of the encoder that the first stage starts from.
        callbacks: for the `Trainer` of each stage.
        is_resumed: load finished stages and resume an interrupted one; otherwise their files are removed first.
    """
    data = StageData(*([tokenize_without_units(tokenizer, item) for item in part] for part in preferences))
    network.requires_grad_(True)
    single_rows = replace(layout, has_late_interaction=True)
    record = stage_record(encoder, data.train, data.held_out, layout, args)
    own = {"interaction_layers": str(network.interaction_layers), "num_train_epochs": str(args.num_train_epochs)}
    single = Stage(folder / "single", args.warm_start_epochs, single_rows, is_pairwise=False, record=record)
    pair = Stage(folder / "pair", args.num_train_epochs, layout, is_pairwise=True, record={**record, **own})
    if not is_resumed:
        with args.main_process_first(desc="clearing the stages"):
            if args.should_save:
                clear(single)
                clear(pair)
    if single.epochs:
        run_stage(network, single, data, args, callbacks=callbacks, is_resumed=is_resumed)
        if layout.has_late_interaction:
            network.freeze_below_cross_layers()
    run_stage(network, pair, data, args, callbacks=callbacks, is_resumed=is_resumed)


def held_out_metrics(margins: torch.Tensor) -> dict[str, Any]:
    """Metrics from the margins of both reading orders, `(pairs, 2)`; ties count half."""
    right = (margins.sign() / 2 + 0.5).double()
    accuracy = float((margins.mean(1).sign() / 2 + 0.5).double().mean())
    pairs = len(margins)
    error = math.sqrt(max(accuracy * (1 - accuracy), 1e-12) / pairs)
    return {
        "accuracy": accuracy,
        "accuracy_chosen_first": float(right[:, 0].mean()),
        "accuracy_rejected_first": float(right[:, 1].mean()),
        "order_agreement": float((right[:, 0] == right[:, 1]).double().mean()),
        "pairs": pairs,
        "standard_error": error,
        "is_better_than_chance": accuracy_interval(accuracy, pairs)[0] > 0.5,
    }


def chance_warning(name: str, metrics: dict[str, Any] | None) -> str | None:
    """A warning about a teacher that is not shown to be better than chance, or was never trained; else `None`.

    Args:
        name: of the teacher. metrics: of `held_out_metrics`, `None` if it was never trained.
    """
    if metrics is None:
        return (
            f"THE TEACHER {name} WAS NEVER TRAINED ON PREFERENCES. A raw encoder knows nothing of them, and its map "
            "is a guess. Call `teacher.fit(preferences)` or run `interdistill teacher` first."
        )
    if metrics["is_better_than_chance"]:
        return None
    low, high = accuracy_interval(metrics["accuracy"], metrics["pairs"])
    found = f"held-out accuracy {metrics['accuracy']:.3f} on {metrics['pairs']} pairs, 95 % interval {low:.3f} to"
    fix = (
        "Give it more preferences, more `warm_start_epochs`, another learning rate or a stronger encoder, or train "
        "with `alignment_weight=0`."
    )
    if high <= 0.5:
        return (
            f"THE TEACHER {name} IS NO BETTER THAN CHANCE: {found} {high:.3f}. Distilling its map teaches noise. {fix}"
        )
    return (
        f"THE TEACHER {name} MAY BE NO BETTER THAN CHANCE: {found} {high:.3f}, which includes 0.5. Distilling the map "
        f"of such a teacher teaches noise. Evaluate it on more pairs (`eval_dataset`, `eval_fraction`) to know. {fix}"
    )
