"""The image of a model card: maps of one fixed example, so that it shows no training data and models compare."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from ..scoring.scorer import RewardScorer
from .inspection import pair_maps, plot_maps
from .teacher.teacher import InteractionTeacher

_PROMPT = "My cat keeps waking me at five. What can I do?"
_CHOSEN = "Feed her late in the evening and play before bed. Do not get up when she calls, or she will call again."
_REJECTED = "Cats are like that. You could get up at five, too."


def draw_example_maps(teacher: InteractionTeacher, model: PreTrainedModel, tokenizer, path: Path) -> None:
    """Write an image of the teacher's map and of the model's simulated map of a fixed example.

    Args:
        teacher: the teacher.
        model: the reward model, or a PEFT model; its mode (training or evaluation) is restored.
        tokenizer: its tokenizer. With a chat template the example is formatted as messages.
        path: PNG file to write, replaced atomically.
    """
    is_training = model.training
    maps = pair_maps(_example(bool(tokenizer.chat_template)), teacher, {"this model": RewardScorer(model, tokenizer)})
    model.train(is_training)
    scratch = path.with_name(f".{path.name}.tmp")
    plot_maps(maps).savefig(scratch, dpi=80, format="png")
    scratch.replace(path)


def _example(is_conversational: bool) -> dict:
    texts = {"prompt": _PROMPT, "chosen": " " + _CHOSEN, "rejected": " " + _REJECTED}
    if not is_conversational:
        return texts
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {key: [{"role": roles[key], "content": text.strip()}] for key, text in texts.items()}
