"""The image of a model card: maps of one fixed example, so that it shows no training data and models compare."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from ..scoring.batching import evaluation_mode
from ..scoring.scorer import RewardScorer
from ..utils.atomic_io import atomic_replacement
from .inspection import PairMaps, pair_maps, plot_maps
from .teacher.teacher import InteractionTeacher

_PROMPT = "My cat keeps waking me at five. What can I do?"
_CHOSEN = "Feed her late in the evening and play before bed. Do not get up when she calls, or she will call again."
_REJECTED = "Cats are like that. You could get up at five, too."


def example_maps(
    teacher: InteractionTeacher, model: PreTrainedModel, tokenizer, name: str, layers: tuple[int, int] = (-1, -1)
) -> PairMaps:
    """The teacher's map and the model's simulated map of a fixed example.

    Args:
        teacher: the teacher.
        model: the reward model, or a PEFT model; its mode (training or evaluation) is restored.
        tokenizer: its tokenizer. With a chat template the example is formatted as messages.
        name: name of the model's map in the image.
        layers: layer of the student and of the teacher.
    """
    is_training = model.training
    scorers = {name: RewardScorer(model, tokenizer)}
    student_layer, teacher_layer = layers
    example = _example(bool(tokenizer.chat_template))
    try:
        with evaluation_mode(model):
            return pair_maps(example, teacher, scorers, student_layer=student_layer, teacher_layer=teacher_layer)
    finally:
        model.train(is_training)


def draw_example_maps(maps: PairMaps, path: Path) -> None:
    """Write an image of maps as a PNG file, replaced atomically."""
    with atomic_replacement(path) as scratch:
        plot_maps(maps).savefig(scratch, dpi=80, format="png")


def _example(is_conversational: bool) -> dict:
    texts = {"prompt": _PROMPT, "chosen": " " + _CHOSEN, "rejected": " " + _REJECTED}
    if not is_conversational:
        return texts
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {key: [{"role": roles[key], "content": text.strip()}] for key, text in texts.items()}
