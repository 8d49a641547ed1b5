"""A Hub on loopback that this process's own client talks to, and reward models to push."""

from __future__ import annotations

import torch

from hf_interdistill import InteractionTeacher
from hf_interdistill.hub.card import TrainingFacts, build_card
from support.models import build_encoder, build_student
from support.tokenizers import tokenizer_of

TOKEN = "hf_" + "right" * 7
NO_RIGHTS = "hf_" + "other" * 7
FORBIDDEN = (
    ".bin",
    ".pt",
    ".pth",
    "trainer_state.json",
    "interaction_teacher.json",
    "interaction_teacher.safetensors",
)


def card_of(name: str, is_conversational: bool = True, **changes):
    facts = {
        "model_name": name,
        "base_model": None,
        "dataset_name": None,
        "data": "24 pairs for training",
        "settings": {"seed": 42},
        "metrics": {},
        "evaluation": "",
        "max_length": 1024,
        "is_adapter": False,
        "is_conversational": is_conversational,
    }
    return build_card(TrainingFacts(**{**facts, **changes}))


def save_full(folder, *, is_conversational: bool = True, **options):
    """A reward model as a trainer leaves it, with what must not travel beside it."""
    build_student().save_pretrained(folder, **options)
    tokenizer = tokenizer_of("bytes")
    if not is_conversational:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    card_of(folder.name, is_conversational).save(folder / "README.md")
    torch.save({"a": 1}, folder / "training_args.bin")
    for name in ("checkpoint-3", "runs"):
        (folder / name).mkdir()
        torch.save({"a": 1}, folder / name / "optimizer.pt")
        (folder / name / "model.safetensors").write_bytes(b"x")
    (folder / "nonfinite_loss.json").write_text("{}")
    (folder / "maps.png").write_bytes(b"left by an earlier run")
    model, encoder_tokenizer = build_encoder()
    InteractionTeacher(model, encoder_tokenizer, max_length=256).save_pretrained(str(folder / "teacher"))
    return folder


def save_adapter(folder, base_folder, *, modules_to_save=("score",)):
    """A LoRA adapter of a causal language model, with a trained head, and that model."""
    import peft
    from transformers import AutoModelForSequenceClassification

    language_model(base_folder)
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    kind = "SEQ_CLS" if modules_to_save else None  # for SEQ_CLS, PEFT saves the head by itself
    lora = peft.LoraConfig(task_type=kind, target_modules=["q_proj"], modules_to_save=list(modules_to_save))
    model = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "score" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    card_of(folder.name, is_adapter=True).save(folder / "README.md")
    model.create_or_update_model_card(str(folder))  # as saving once more does: PEFT notes the base model's folder
    return folder


def language_model(folder):
    from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

    from support.models import STUDENT_FAMILIES

    set_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**STUDENT_FAMILIES["llama"], initializer_range=0.2))
    model.save_pretrained(folder)
    return folder
