"""Builds the model card of a training run: metadata that the Hub accepts, and text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..utils.binomial import accuracy_interval
from ..utils.privacy import hub_name
from .citations import PAPER, citations
from .loading_section import LOADING, loading_section, with_loading_section, with_section

METHOD_TAG = "interaction-distillation"
_ADAPTER_TAGS = ("lora", "peft")
_OWN_HEADLINE = re.compile(r"^\*\*Accuracy \d", re.MULTILINE)  # see `_headline`


@dataclass(frozen=True)
class TeacherFacts:
    """What a model card says about the teacher.

    Args:
        name: Hub name of the teacher, or name of its class.
        model_type: `model_type` of its encoder's config; decides which architecture is cited.
        metrics: held-out metrics on preferences (`accuracy`, `standard_error`, `pairs`, `is_better_than_chance`);
            `None` if it was not trained on preferences.
        is_decoder: whether it is a decoder without its causal mask.
    """

    name: str
    model_type: str
    metrics: dict[str, Any] | None = None
    is_decoder: bool = False


@dataclass(frozen=True)
class TrainingFacts:
    """What a model card says about a training run.

    Args:
        model_name: name of the model, or of its repository.
        base_model: Hub name of the model that was fine-tuned; `None` if it has none.
        dataset_name: Hub name of the training and evaluation dataset; `None` if it has none.
        data: description of the data.
        settings: settings by name.
        metrics: metrics of the last evaluation. evaluation_pairs: how many pairs it was on; `None` if that is unknown.
        evaluation: what the last evaluation was on.
        explained: share of the teacher's map that the student explained before the first step and at the end of
            training, each `None` where unknown.
        max_length: tokens above which pairs were dropped.
        teacher: the teacher; `None` for a plain reward model.
        has_maps: whether there is an image `maps.png`.
        versions: library versions by name.
    """

    model_name: str
    base_model: str | None
    dataset_name: str | None
    data: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    evaluation: str
    max_length: int | None
    is_adapter: bool
    is_conversational: bool
    teacher: TeacherFacts | None = None
    evaluation_pairs: int | None = None
    has_maps: bool = False
    tags: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    explained: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class CardExtras:
    """What a card says beyond the run.

    Args:
        license: SPDX id in lower case, as the Hub writes it; the card's own comes first.
        license_name, license_link: where the license is `other`.
        language: ISO codes; those of the card come first.
        benchmarks: Markdown about benchmarks; `None` leaves what the card has.
        headline: main figures, for the top of a card that has none of the trainer.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: list[str] = field(default_factory=list)
    benchmarks: str | None = None
    headline: str | None = None


def build_card(facts: TrainingFacts) -> ModelCard:
    """The card of a run; `card_for_repository` adapts it to a repository."""
    teacher = facts.teacher
    return ModelCard.from_template(
        _metadata(facts),
        template_str=files(__package__).joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        paper=PAPER,
        loading=loading_section(
            facts.model_name, is_adapter=facts.is_adapter, is_conversational=facts.is_conversational
        ),
        teacher=None if teacher is None else f"`{teacher.name}`",
        teacher_accuracy=None if teacher is None else _teacher_accuracy(teacher),
        learnt=_learnt(*facts.explained),
        teacher_caution=_teacher_caution(facts.metrics),
        headline=_headline(facts),
        citations=citations(None) if teacher is None else citations(teacher.model_type, is_decoder=teacher.is_decoder),
        **{
            name: getattr(facts, name)
            for name in (
                *("model_name", "base_model", "dataset_name", "data", "settings", "metrics", "evaluation"),
                *("max_length", "has_maps", "versions"),
            )
        },
    )


def _metadata(facts: TrainingFacts) -> ModelCardData:
    tags = [*facts.tags, "trl", "reward-trainer", "reward-model", "generated_from_trainer"]
    tags += [METHOD_TAG] if facts.teacher is not None else []
    tags += ["conversational"] if facts.is_conversational else []
    accuracy = facts.metrics.get("eval_accuracy")
    results = None
    if accuracy is not None and facts.dataset_name is not None:
        results = [
            EvalResult(
                task_type="text-classification",
                task_name="Pairwise preference",
                dataset_type=facts.dataset_name,
                dataset_name=facts.dataset_name,
                metric_type="accuracy",
                metric_name="Accuracy of preferring the chosen answer",
                metric_value=round(accuracy, 4),
            )
        ]
    return ModelCardData(
        model_name=facts.model_name,
        base_model=facts.base_model,
        base_model_relation=_relation(facts.base_model, facts.is_adapter),
        datasets=None if facts.dataset_name is None else [facts.dataset_name],
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-classification",
        metrics=None if accuracy is None else ["accuracy"],
        eval_results=results,
        tags=tags,
    )


def _relation(base_model: str | None, is_adapter: bool) -> str | None:
    if base_model is None:
        return None
    return "adapter" if is_adapter else "finetune"


def card_for_repository(
    card: ModelCard | None,
    repo_id: str,
    *,
    base_model: str | None,
    is_adapter: bool,
    is_conversational: bool,
    extras: CardExtras,
) -> ModelCard:
    """A run's card adapted to a repository: the repository's name and loading code, without local paths.

    Args:
        card: the card of the run, also one that PEFT wrote with the local path of the base model; `None` makes a card
            that only says how to load the model.
        repo_id: repository that the card is for.
        base_model: Hub name of the base model; `None` takes it from the card, if it is a Hub name there.
        extras: license, language and benchmarks.
    """
    name = repo_id.split("/")[-1]
    card = ModelCard(f"---\ntags: [reward-model]\n---\n\n# {name}\n") if card is None else ModelCard(card.content)
    data = card.data
    assert isinstance(data, ModelCardData)
    old = data.get("model_name")
    base_model = base_model or hub_name(data.base_model if isinstance(data.base_model, str) else None)
    data.base_model, data["base_model_relation"] = base_model, _relation(base_model, is_adapter)
    data.library_name = "peft" if is_adapter else "transformers"
    data.pipeline_tag, data.model_name = "text-classification", name
    data.tags = [
        tag
        for tag in data.tags or []
        if not tag.startswith("base_model:") and (is_adapter or tag not in _ADAPTER_TAGS)
    ]
    if data.license is None and extras.license is not None:
        data.license, data.license_name, data.license_link = extras.license, extras.license_name, extras.license_link
    if extras.language and not data.language:
        data.language = extras.language
    section = loading_section(repo_id, is_adapter=is_adapter, is_conversational=is_conversational)
    card.text = with_loading_section(card.text.replace(f"# {old}\n", f"# {name}\n", 1), section)
    if extras.headline is not None and not _OWN_HEADLINE.search(card.text):
        card.text = with_section(card.text, "headline", extras.headline, before=LOADING)
    if extras.benchmarks is not None:
        card.text = with_section(card.text, "benchmarks", extras.benchmarks)
    return card


def _headline(facts: TrainingFacts) -> str | None:
    """The accuracy with its interval and baselines; `None` without an evaluation."""
    accuracy, pairs = facts.metrics.get("eval_accuracy"), facts.evaluation_pairs
    if accuracy is None:
        return None
    text = f"**Accuracy {accuracy:.3f}**"
    baselines = ["chance is 0.5"]
    teacher = facts.metrics.get("eval_interaction/teacher_accuracy")
    if teacher is not None:
        baselines.append(f"its teacher has {teacher:.3f}")
    if pairs:
        low, high = accuracy_interval(accuracy, pairs)
        text += f" (95 % interval {low:.3f} to {high:.3f}, {pairs:,} pairs)"
        if low <= 0.5 <= high:
            baselines.append("these pairs do not show that the model is better than that")
    where = f" on [{facts.dataset_name}](https://huggingface.co/datasets/{facts.dataset_name})"
    return f"{text} of preferring the better answer{where if facts.dataset_name else ''}; {', '.join(baselines)}."


def _teacher_accuracy(teacher: TeacherFacts) -> str:
    if teacher.metrics is None:
        return "It was **not trained on preferences**."
    metrics = teacher.metrics
    text = (
        f"Its own held-out accuracy is {metrics['accuracy']:.3f} +- {metrics['standard_error']:.3f} "
        f"({metrics['pairs']} pairs, both reading orders averaged; chance is 0.5)."
    )
    if metrics["is_better_than_chance"]:
        return text
    low, high = accuracy_interval(metrics["accuracy"], metrics["pairs"])
    return f"{text} **These pairs do not show that it is better than chance (95 % interval {low:.3f} to {high:.3f}).**"


def _learnt(before: float | None, after: float | None) -> str | None:
    if after is None:
        return None
    start = "" if before is None else f", {before:.3f} before training"
    return (
        f"Of the teacher's map this model explains {after:.3f} (1 - KL(teacher, model) / KL(teacher, equal attention) "
        f"on the last training pairs{start}; 1 is the whole map, 0 no more than equal attention)."
    )


def _teacher_caution(metrics: dict[str, float]) -> str | None:
    for name, teacher in metrics.items():
        prefix = name.removesuffix("interaction/teacher_accuracy")
        student = metrics.get(f"{prefix}accuracy")
        if prefix != name and student is not None and teacher <= student:
            return (
                f"In the last evaluation the teacher was no more accurate ({teacher:.3f}) than this model "
                f"({student:.3f}), so what it could teach is in doubt."
            )
    return None
