"""What the step benchmark trains: a Llama and a BERT with random weights, on texts of set or of real lengths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from hf_interdistill import InteractionTeacher
from hf_interdistill.interaction.data.pairs import read_preference

WORDS = [f"w{i}" for i in range(2000)]
SPECIALS = ["<pad>", "<s>", "</s>", "[CLS]", "[SEP]", "<unk>"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # models are made there: a GPU draws faster


@dataclass(frozen=True)
class Case:
    """One setting: the pairs of a batch, and the sizes of student and teacher.

    Args:
        length: tokens of prompt and response; with `data`, not used.
        pairs: in a batch.
        data: JSONL of preferences whose texts give the lengths.
    """

    length: int
    pairs: int
    data: str | None = None
    hidden: int = 384
    layers: int = 8
    teacher_hidden: int = 128
    teacher_layers: int = 4

    @property
    def setting(self) -> str:
        texts = f"length {self.length}" if self.data is None else f"texts of {'/'.join(Path(self.data).parts[-2:])}"
        student, teacher = f"{self.hidden}x{self.layers}", f"{self.teacher_hidden}x{self.teacher_layers}"
        return f"{texts}, {self.pairs} pairs, student {student}, teacher {teacher}"


def make_tokenizer(is_teacher: bool) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one token a word, so that lengths are exact."""
    vocabulary = {token: number for number, token in enumerate(SPECIALS + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if is_teacher:
        ids = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def make_data(case: Case) -> Dataset:
    """The rows of one batch: random words, or real texts spread evenly over the lengths of their file."""
    rows = _random_rows(case) if case.data is None else _real_rows(case)
    return Dataset.from_list(rows)


def _random_rows(case: Case) -> list[dict]:
    """Three fifths prompt, two fifths response; the rejected response a tenth shorter."""
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())

    prompt = int(0.6 * case.length)
    response = case.length - prompt - 1
    return [
        {"prompt": words(prompt) + " ", "chosen": words(response), "rejected": words(int(0.9 * response))}
        for _ in range(case.pairs)
    ]


def _real_rows(case: Case) -> list[dict]:
    """A batch as it comes at random: pairs at evenly spaced quantiles of the file's lengths, each text as it is."""
    with open(case.data, encoding="utf-8") as lines:
        preferences = [read_preference(json.loads(line)) for line in lines]
    rows = []
    for preference in preferences:
        prompt, chosen, rejected = (" ".join(flat.contents) for flat in preference.flatten())
        rows.append({"prompt": prompt + " ", "chosen": chosen, "rejected": rejected})
    rows.sort(key=lambda row: sum(len(text.split()) for text in row.values()))
    return [rows[int((place + 0.5) * len(rows) / case.pairs)] for place in range(case.pairs)]


def make_student(case: Case, attention: str) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIALS) + len(WORDS),
        hidden_size=case.hidden,
        intermediate_size=case.hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=case.layers,
        num_attention_heads=case.hidden // 64,
        num_key_value_heads=max(1, case.hidden // 128),
        max_position_embeddings=8192,
        num_labels=1,
        pad_token_id=0,
    )
    config._attn_implementation = attention
    with DEVICE:
        return LlamaForSequenceClassification(config)


def make_teacher(case: Case) -> InteractionTeacher:
    config = BertConfig(
        vocab_size=len(SPECIALS) + len(WORDS),
        hidden_size=case.teacher_hidden,
        intermediate_size=4 * case.teacher_hidden,
        num_hidden_layers=case.teacher_layers,
        num_attention_heads=max(1, case.teacher_hidden // 64),
        max_position_embeddings=16384,
        pad_token_id=0,
    )
    # Invented, to keep the warning for untrained teachers quiet: only time and memory are measured here.
    metrics = {"accuracy": 0.5, "standard_error": 0.0, "pairs": 0, "is_better_than_chance": True}
    with DEVICE:
        encoder = BertModel(config)
    return InteractionTeacher(encoder, make_tokenizer(True), metrics=metrics)
