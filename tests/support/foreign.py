"""Checkpoints as other trainers write them, and their rewards by plain torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main
from support.models import MORE_STUDENT_FAMILIES, STUDENT_FAMILIES, build_student, read_weights
from support.tokenizers import tokenizer_of

HIDDEN = 32
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = ["Paris.", "It is Lyon, I think.", "I do not know, but it may be a city in the north of the country."]


def build_policy(family: str = "llama", seed: int = 0, **changes):
    """A tiny language model whose hidden states differ from text to text."""
    known = {**STUDENT_FAMILIES, **MORE_STUDENT_FAMILIES}[family]
    shape = {key: value for key, value in {**known, **changes}.items() if value is not None}
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0 if "embed" in name or "wte" in name else 4.0)
    return model.eval()


def save_policy(folder: Path, tokenizer=None, dtype: str = "float32", **options):
    """A language model with its tokenizer, stored as `dtype`; in memory it is float32."""
    build_policy(**options).to(getattr(torch, dtype)).save_pretrained(folder)
    (tokenizer_of("bytes") if tokenizer is None else tokenizer).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_head(outputs: int = 1, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, HIDDEN, generator=generator)
    return weight, torch.randn(outputs, generator=generator)


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON file; `None` removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def add_weights(folder: Path, removed: str = "\0", **tensors: torch.Tensor) -> None:
    """Put weights into model.safetensors (`_dot_` is a dot), and take out those that begin with `removed`."""
    stored = read_weights(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in stored.items() if not name.startswith(removed)}
    named = {name.replace("_dot_", "."): tensor for name, tensor in tensors.items()}
    save_file({**weights, **named}, folder / "model.safetensors", metadata={"format": "pt"})


def save_value_head(folder: Path, weight, bias, kind: str = "safetensors") -> None:
    """TRL's value head as LLaMA-Factory and ms-swift write it."""
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    if kind == "safetensors":
        save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
    else:
        torch.save(head, folder / "value_head.bin")


@torch.no_grad()
def last_states(model, rows: list[list[int]]) -> torch.Tensor:
    """The hidden state at the last token of each row, `(rows, hidden)`."""
    states = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1] for row in rows]
    return torch.stack(states)


def linear_rewards(model, rows, weight, bias=None) -> list[float]:
    """Rewards of token rows read with a head of one output at the last token."""
    return nn.functional.linear(last_states(model, rows), weight, bias)[:, 0].tolist()


def rows_of(tokenizer) -> list[list[int]]:
    """Conversations and plain texts with EOS, rendered here and not by the package."""
    rows = []
    for answer in ANSWERS:
        messages = [*QUESTION, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        rows.append([*tokenizer(f"Question: why? {answer}")["input_ids"], tokenizer.eos_token_id])
    return rows


def save_sequence_classifier(folder: Path, outputs: int, labels: list[str] | None = None, family: str = "llama"):
    """A sequence classifier with several outputs."""
    model = build_student(family, num_labels=outputs)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: number for number, label in enumerate(labels)}
    model.save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return model.eval()


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def convert(source, output, *arguments) -> RewardScorer:
    """Convert on the command line; the scorer of what it wrote, which is a plain reward model."""
    assert main(["convert", "--model", str(source), "--output", str(output), "--device", "cpu", *arguments]) == 0
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification") and config["id2label"] == {"0": "reward"}
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    return RewardScorer.from_pretrained(str(output), batch_size=4)


def assert_rewards(scorer, rows, expected) -> None:
    """The scorer gives these rewards, which differ from row to row."""
    found = scorer.score_ids(rows)
    assert found == pytest.approx(expected, abs=1e-5 * max(map(abs, expected)) + 1e-5)
    assert len({round(reward, 3) for reward in expected}) == len(rows)
