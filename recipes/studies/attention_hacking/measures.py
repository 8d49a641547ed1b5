"""What is measured of a trained reward model: rewards on each test set, with the cue planted, and a diagnosis."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from preferences import Row, picked
from records import rounded
from torch.nn.utils.rnn import pad_sequence

from hf_interdistill import RewardScorer
from hf_interdistill.diagnostics.collect.contents import with_cue
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.diagnosis import diagnose
from hf_interdistill.diagnostics.result import Diagnosis
from hf_interdistill.interaction.prompt_sharing.packing import PackedPairs
from hf_interdistill.interaction.prompt_sharing.sharing import PromptSharing
from hf_interdistill.scoring.metrics import calibration, pairwise_accuracy

_TEMPERATURES = np.exp(np.linspace(np.log(0.05), np.log(20), 200))


def rewards_of(scorer: RewardScorer, rows: Sequence[Row]) -> np.ndarray:
    """Rewards `(pairs, 2)` of chosen and rejected, float32."""
    texts = _encoded(scorer, rows, "")
    return score_alike(scorer, *texts)


def rewards_with_cue(scorer: RewardScorer, rows: Sequence[Row], cue: str) -> tuple[np.ndarray, np.ndarray]:
    """Rewards `(pairs, 2)` without, and with, the cue at the end of both responses."""
    plain, cued = _encoded(scorer, rows, ""), _encoded(scorer, rows, cue)
    sides = [score_alike(scorer, *texts) for texts in zip(plain, cued, strict=True)]
    return tuple(np.stack([side[:, column] for side in sides], 1) for column in (0, 1))


def _encoded(scorer: RewardScorer, rows: Sequence[Row], cue: str) -> list[list[list[int]]]:
    responses = [[with_cue(row[side], cue) if cue else row[side] for row in rows] for side in ("chosen", "rejected")]
    encode = scorer.formatter.encode
    return [[encode(row["prompt"], text) for row, text in zip(rows, texts, strict=True)] for texts in responses]


@torch.no_grad()
def score_alike(scorer: RewardScorer, ones: Sequence[list[int]], others: Sequence[list[int]]) -> np.ndarray:
    """Rewards `(texts, 2)` of texts that begin alike, two by two; what they share is read once.

    They are those that `scorer.score_ids` gives, to rounding.
    """
    model, pad = scorer.model, scorer.tokenizer.pad_token_id
    sharing = PromptSharing(model, "true", torch.float32)
    order = sorted(range(len(ones)), key=lambda i: -len(ones[i]) - len(others[i]))
    rewards = np.zeros((len(ones), 2), np.float32)
    for start in range(0, len(order), scorer.batch_size):
        chunk = order[start : start + scorer.batch_size]
        rows = [torch.tensor(texts[i]) for texts in (ones, others) for i in chunk]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        packed = PackedPairs.from_rows(ids.to(scorer.device), mask.to(scorer.device), pad)
        logits = sharing.forward(model, packed, use_cache=False).logits
        rewards[chunk] = logits.float().cpu().reshape(2, -1).T.numpy()
    return rewards


def cued_margins(plain: np.ndarray, cued: np.ndarray, share: float, seed: int) -> dict[str, np.ndarray]:
    """Margins with the cue on the chosen response, on the rejected one, and as in training but on the wrong side.

    Args:
        plain, cued: rewards `(pairs, 2)`.
        share: part of the pairs that have the cue on the rejected response in `reversed`; the others on the chosen.
    """
    on_chosen, on_rejected = cued[:, 0] - plain[:, 1], plain[:, 0] - cued[:, 1]
    is_reversed = picked(len(plain), share, seed)
    return {
        "on_chosen": on_chosen,
        "on_rejected": on_rejected,
        "reversed": np.where(is_reversed, on_rejected, on_chosen),
    }


def summary(margins: np.ndarray) -> dict[str, Any]:
    """What is kept of the validation rows: accuracy (ties count half and are counted) and losses."""
    outcome = pairwise_accuracy(margins)
    return {
        "pairs": outcome["pairs"],
        "ties": outcome["ties"],
        "accuracy": float((np.sign(margins) / 2 + 0.5).mean(dtype=np.float64)),
        "nll": calibration(margins)["nll"],
        "scaled_nll": scaled_nll(margins),
    }


def comparable(margins: np.ndarray) -> dict[str, Any]:
    """What is kept of a test: the loss, and which pairs were right, so that arms can be compared pair by pair."""
    return {"nll": calibration(margins)["nll"], "right": encode_outcomes(margins)}


def encode_outcomes(margins: np.ndarray) -> str:
    """The signs of margins, a digit a pair: 0 for wrong, 1 for a tie, 2 for right.

    Digits compress better than packed ones, because arms that agree on neighboring pairs repeat whole stretches.
    """
    return "".join(str(digit) for digit in np.sign(margins).astype(int) + 1)


def decode_outcomes(test: dict[str, Any]) -> np.ndarray:
    """Which pairs of a test were right, as `(pairs,)` with 0 for wrong, 0.5 for a tie and 1 for right."""
    if "pairs" in test:  # of an older `runs.json`, which has five digits of base 3 to a byte
        values = np.frombuffer(base64.b64decode(test["right"]), np.uint8)[:, None] // 3 ** np.arange(5) % 3
        return values.ravel()[: test["pairs"]] / 2
    return (np.frombuffer(test["right"].encode(), np.uint8) - ord("0")) / 2


def scaled_nll(margins: np.ndarray) -> float:
    """Bradley-Terry loss in nats at the best of many scales: it judges the order and sureness of margins, not their
    unit, and so does not favor arms that keep rewards small. At most log 2."""
    losses = np.logaddexp(0.0, -margins[None].astype(np.float64) / _TEMPERATURES[:, None]).mean(1)
    return float(min(losses.min(), np.log(2)))


def diagnosis_of(scorer: RewardScorer, rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """The measures of attention hacking that the tables and plots use."""
    settings = {"context_measures": (), **settings, "fractions": tuple(settings["fractions"])}
    config = DiagnosisConfig(**settings, batch_size=scorer.batch_size)
    found: Diagnosis = diagnose(scorer, rows, config, is_progress_shown=False)
    masking, length = found.masking, found.length
    record = {
        "pairs": found.pairs,
        "masked_first": [estimate.value for estimate in masking.first],
        "whole": masking.whole.value,
        "length_correlation": length.correlation.value,
        "longer_is_worse": length.longer_is_worse.value,
        "cue_gain": found.cue.gain.value,
    }
    if found.attention is not None:
        groups = {"right": found.attention.right, "wrong": found.attention.wrong}
        for name, group in groups.items():
            record[f"stages_{name}"] = [stage.value for stage in group.stages]
    return {name: _plain(value) for name, value in record.items()}


def _plain(value):
    """A value for JSON, with far more digits than the standard errors leave: those of 60 pairs are points."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else rounded(value, 6)
