"""Runs models that were trained on flipped labels over the pairs of a diagnosis: rewards of whole texts alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...interaction.data.pairs import read_preference
from ...scoring.formatting import template_kwargs
from ...scoring.opening import LocalScorer
from ..config import DiagnosisConfig
from ..measures.noise import LabelNoise, measure_noise
from .loading import fingerprint, name_of, scorer_beside
from .records import IndexedRow, PairData, RecordStore


def check_noise_models(noise_models: Mapping[Any, Any] | None, model, data) -> dict[float, Any] | None:
    """The models by share, rising; `None` if there are none.

    Raises:
        ValueError: shares that are not numbers between 0 and 0.5, or there is none; one model for two shares, or the
            diagnosed one; data that can be read only once.
    """
    if noise_models is None:
        return None
    if not isinstance(noise_models, Mapping) or not noise_models:
        raise ValueError(
            f"`noise_models` is {noise_models!r}, but must map shares of flipped labels to models, at least one, such "
            "as {0.1: 'runs/flipped-10', 0.3: 'runs/flipped-30'}."
        )
    shares = {_as_share(share): each for share, each in noise_models.items()}
    if len(shares) < len(noise_models):
        raise ValueError(f"`noise_models` has the shares {list(noise_models)}, but each must be named once.")
    seen = [_identity(model)]
    for share, each in shares.items():
        if _identity(each) in seen:
            raise ValueError(
                f"`noise_models` has at {share:g} a model that is the diagnosed one or that another share has too: "
                f"{each if isinstance(each, str) else type(each).__name__}. Each share needs a model trained with it."
            )
        seen.append(_identity(each))
    if isinstance(data, Iterator):
        raise ValueError(
            f"`data` is {type(data).__name__}, which can be read only once, but `noise_models` read the pairs again. "
            "Pass a list, a file or a Hub name."
        )
    return dict(sorted(shares.items()))


def _as_share(share: Any) -> float:
    try:
        number = float(share)
    except (TypeError, ValueError):
        number = np.nan
    if isinstance(share, bool) or not 0 < number < 0.5:
        raise ValueError(
            f"`noise_models` has the share {share!r}, but shares of flipped labels must lie between 0 (the "
            "diagnosed model itself) and 0.5 (labels without information). Write 10 % as 0.1."
        )
    return number


def _identity(model) -> Any:
    return os.path.abspath(model) if isinstance(model, str | os.PathLike) else id(model)


def score_noise_models(
    noise_models: Mapping[float, Any],
    scorer: LocalScorer,
    measured: tuple[PairData, Sequence[dict[str, Any]]],
    config: DiagnosisConfig,
    store: RecordStore,
) -> LabelNoise:
    """Accuracy of models trained on flipped labels, on the pairs that all of them can read.

    Args:
        noise_models: as `check_noise_models` gives them; one at a time is loaded.
        scorer: of the diagnosed model. measured: the pairs, and its records of them.
        config: the settings. store: where records are kept.
    """
    pairs, own_records = measured
    margins = {record["id"]: _margin(record["rewards"]["full"]) for record in own_records if "rewards" in record}
    names, noisy = {}, {}
    for share, model in noise_models.items():
        other = scorer_beside(model, scorer)
        names[share] = name_of(model, other)
        settings = {"model": names[share], "weights": fingerprint(other), "data": pairs.name, "split": pairs.split}
        settings |= {"of": store.name, "share": share, "max_length": config.max_length}
        file, rows = (store.name, f"flipped-{share:g}"), pairs.rows(len(own_records))
        description = f"With {100 * share:g} % flipped labels"
        records = store.collect(file, settings, rows, _PairScorer(other, config), desc=description, unit="pair")
        noisy[share] = _finite_margins(records, share)
    shared = [number for number in margins if all(number in each for each in noisy.values())]
    if not shared:
        raise ValueError(
            f"No pair can be read by {store.name} and all of its `noise_models` ({', '.join(names.values())})."
        )
    columns = {share: (names[share], np.array([each[n] for n in shared])) for share, each in noisy.items()}
    return measure_noise(np.array([margins[n] for n in shared]), columns, len(margins) - len(shared), config)


class _PairScorer:
    """Rewards of pairs, as records: `id`, and `rewards` (chosen, rejected) or `left_out` (why)."""

    def __init__(self, scorer: LocalScorer, config: DiagnosisConfig):
        self.scorer = scorer
        self.max_length = config.max_length or scorer.context_length

    def __call__(self, examples: Sequence[IndexedRow]) -> list[dict[str, Any]]:
        texts = [self._encode(example) for _, example in examples]
        is_read = [self.max_length is None or max(map(len, pair)) <= self.max_length for pair in texts]
        readable = [ids for pair, is_short in zip(texts, is_read, strict=True) if is_short for ids in pair]
        rewards = iter(self.scorer.score_ids(readable))
        return [
            {"id": number, "rewards": [next(rewards), next(rewards)]}
            if is_short
            else {"id": number, "left_out": f"longer than {self.max_length} tokens"}
            for (number, _), is_short in zip(examples, is_read, strict=True)
        ]

    def _encode(self, example: dict[str, Any]) -> list[list[int]]:
        preference = read_preference(example)
        kwargs = template_kwargs(example) if preference.is_conversation else {}
        return [
            self.scorer.formatter.encode(preference.prompt, response, **kwargs)
            for response in (preference.chosen, preference.rejected)
        ]


def _margin(rewards: Sequence[float]) -> float:
    return rewards[0] - rewards[1]


def _finite_margins(records: Sequence[dict[str, Any]], share: float) -> dict[int, float]:
    margins = {record["id"]: _margin(record["rewards"]) for record in records if "rewards" in record}
    broken = [number for number, margin in margins.items() if not np.isfinite(margin)]
    if broken:
        raise ValueError(
            f"Row {broken[0]} has a reward that is not finite from the model with the share {share:g} of flipped "
            "labels: that model is broken."
        )
    return margins
