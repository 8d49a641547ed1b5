"""The study's models: the decoder that writes and judges, the reward model, the classifier and the fluency model.

Each function trains one model into a folder; a training cut short goes on from its last checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from rows import Row
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from trl import RewardConfig, RewardTrainer

from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt, label_tokens
from hf_interdistill.training.checkpoints import last_complete_checkpoint

_BEGIN, _END, _PAD = "<s>", "</s>", "<pad>"
_QUESTION_COPIES = (
    500  # of the question among the texts that the vocabulary is made from, so that its words are tokens
)
_BATCHES_SORTED = 50  # rows of so many batches are sorted by length together, which saves padding


def train_tokenizer(rows: Sequence[Row], judge: JudgePrompt, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; every text begins with `<s>`, and the first word has a space like all others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[_BEGIN, _END, _PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    questions = judge.texts(Exchange("", ""))
    tokenizer.train_from_iterator([*(row["text"] for row in rows), *questions * _QUESTION_COPIES], trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, tokenizer.token_to_id(_BEGIN))]
            ),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BEGIN, eos_token=_END, pad_token=_PAD)


def new_decoder(tokenizer, shape: dict) -> GPT2LMHeadModel:
    """An untrained GPT-2 for the tokenizer; `shape` holds fields of `GPT2Config`."""
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **ends, **shape))


@torch.no_grad()
def start_words(decoder: GPT2LMHeadModel, tokenizer, encoder: str) -> None:
    """Let the decoder's word embeddings start as an encoder's, on as many principal axes as the decoder is wide.

    A token starts as the mean of the pieces that the encoder's tokenizer makes of it; tokens without letters or digits
    stay as they are.

    Args:
        decoder: changed in place. tokenizer: its own. encoder: folder or name of the encoder.
    """
    known, reader = (
        AutoModel.from_pretrained(encoder).get_input_embeddings().weight,
        AutoTokenizer.from_pretrained(encoder),
    )
    known = known - known.mean(0)
    own = decoder.get_input_embeddings().weight
    axes = torch.linalg.eigh(known.T @ known).eigenvectors[:, -own.shape[1] :]
    projected = known @ axes
    projected *= decoder.config.initializer_range / projected.std()
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token]).strip()
        if any(letter.isalnum() for letter in text) and token not in tokenizer.all_special_ids:
            own[token] = projected[reader(text, add_special_tokens=False)["input_ids"]].mean(0)


def document(row: Row, order: int | None, is_written: bool, tokenizer, judge: JudgePrompt) -> dict:
    """What one phrase teaches the decoder: to write it and end it, and to answer the judge's question about it.

    Where the question begins, the label is EOS: a text that is being written ends there.

    Args:
        row: the phrase. order: of the options; `None` leaves the question out.
        is_written: whether the words count, or the answer alone. tokenizer, judge: the decoder's.
    """
    phrase = tokenizer(row["text"] + _END)["input_ids"]
    words = phrase if is_written else [-100] * len(phrase)
    if order is None:
        return {"input_ids": phrase, "labels": words}
    is_first = (row["label"] == 1) == (order == 0)
    text = judge.texts(Exchange("", row["text"]))[order] + judge.labels[0 if is_first else 1]
    ids = tokenizer(text)["input_ids"]
    return {"input_ids": ids, "labels": [*words, *[-100] * (len(ids) - len(words) - 1), ids[-1]]}


def decoder_documents(rows: Sequence[Row], tokenizer, judge: JudgePrompt, settings: dict) -> Dataset:
    """The documents of all epochs, batch after batch.

    Args:
        rows: phrases. tokenizer, judge: the decoder's.
        settings: `batch_size`, `seed` and `epochs`, each with `shortest` and `longest` (words of a phrase), `asked`
            (the share of phrases with the question), `swapped` (the share of questions with the options swapped) and
            `is_written` (whether the words count).
    """
    size, rng = settings["batch_size"], random.Random(settings["seed"])
    documents: list[dict] = []
    for epoch in settings["epochs"]:
        shown = []
        for row in rows:
            if epoch["shortest"] <= len(row["text"].split()) <= epoch["longest"]:
                is_asked, order = rng.random() < epoch["asked"], int(rng.random() < epoch["swapped"])
                shown.append(document(row, order if is_asked else None, epoch["is_written"], tokenizer, judge))
        documents.extend(item for batch in _batches(shown, size, rng) for item in batch)
    return Dataset.from_list(documents)


def _batches(documents: list[dict], size: int, rng: random.Random) -> list[list[dict]]:
    """Batches of about equal length, in random order; the last ones that fill no batch are left out."""
    documents = rng.sample(documents, len(documents))
    batches = []
    for start in range(0, len(documents), size * _BATCHES_SORTED):
        part = sorted(documents[start : start + size * _BATCHES_SORTED], key=lambda item: len(item["input_ids"]))
        batches.extend(part[i : i + size] for i in range(0, len(part) - size + 1, size))
    return rng.sample(batches, len(batches))


class DocumentCollator:
    """Batches padded on the left, with positions that count from the first token.

    Where no word counts, the model need give the logits of the last two positions alone, which saves a third of the
    work: `logits_to_keep` says so, and the labels are cut to match.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, documents: Sequence[dict]) -> dict:
        width = max(len(each["input_ids"]) for each in documents)
        ids, labels, mask = [], [], []
        for each in documents:
            gap = width - len(each["input_ids"])
            ids.append([self.pad_token_id] * gap + each["input_ids"])
            labels.append([-100] * gap + each["labels"])
            mask.append([0] * gap + [1] * len(each["input_ids"]))
        labels, mask = torch.tensor(labels), torch.tensor(mask)
        kept = width if (labels[:, :-1] != -100).any() else 2
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": labels[:, -kept:],
            "logits_to_keep": kept,
        }


class WritingAndJudgingLoss:
    """Mean loss of the words plus mean loss of the letters that a batch holds, so that all of its letters weigh as
    much as all of its words. (The phrases are lower case: the letters stand in the questions alone.)

    Args:
        letters: token ids of the judge's labels.
    """

    def __init__(self, letters: tuple[int, int]):
        self.letters = torch.tensor(letters)

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        is_letter = torch.isin(targets, self.letters)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
        parts = [losses[which].mean() for which in ((targets >= 0) & ~is_letter, is_letter) if which.any()]
        return sum(parts)


def train_decoder(
    folder: Path, tokenizer, judge: JudgePrompt, documents: Dataset, encoder: str, settings: dict
) -> None:
    """Train a decoder on documents, in their order.

    Args:
        folder: where to save. tokenizer, judge: the decoder's. documents: see `decoder_documents`.
        encoder: whose word embeddings it starts from.
        settings: `shape` (fields of `GPT2Config`) and `arguments` (fields of `TrainingArguments`).
    """
    args = TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, train_sampling_strategy="sequential", **settings["arguments"]
    )
    set_seed(args.seed)
    decoder = new_decoder(tokenizer, settings["shape"])
    start_words(decoder, tokenizer, encoder)
    trainer = Trainer(
        decoder,
        args,
        DocumentCollator(tokenizer.pad_token_id),
        documents,
        processing_class=tokenizer,
        compute_loss_func=WritingAndJudgingLoss(label_tokens(judge, tokenizer)),
    )
    _finish(trainer, folder)


def train_reward(folder: Path, base: Path, rows: Sequence[Row], settings: dict, arguments: dict) -> None:
    """A reward model on pairs of a positive (chosen) and a negative phrase, with TRL's `RewardTrainer`.

    Args:
        folder: where to save. base: the language model it starts from.
        rows: phrases; each is used at most `settings["pairs_a_row"]` times.
        settings: `pairs_a_row` and `seed`. arguments: fields of `RewardConfig`.
    """
    rng = random.Random(settings["seed"])
    texts = {label: [row["text"] for row in rows if row["label"] == label] for label in (0, 1)}
    count = min(map(len, texts.values()))
    pairs = []
    for _ in range(settings["pairs_a_row"]):
        chosen, rejected = (rng.sample(texts[label], count) for label in (1, 0))
        pairs.extend({"chosen": a, "rejected": b} for a, b in zip(chosen, rejected, strict=True))
    args = RewardConfig(output_dir=str(folder), **arguments)
    trainer = RewardTrainer(str(base), args, train_dataset=Dataset.from_list(pairs))
    _finish(trainer, folder)


def train_classifier(folder: Path, encoder: str, rows: Sequence[Row], dev: Sequence[Row], arguments: dict) -> dict:
    """The independent sentiment classifier, from a pretrained encoder; returns its accuracy on `dev`."""
    tokenizer = AutoTokenizer.from_pretrained(encoder, model_max_length=128)
    args = TrainingArguments(output_dir=str(folder), **arguments)
    set_seed(args.seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)

    def encode(rows: Sequence[Row]) -> Dataset:
        ids = tokenizer([row["text"] for row in rows], truncation=True)
        return Dataset.from_dict({**ids, "labels": [row["label"] for row in rows]})

    trainer = Trainer(
        model,
        args,
        DataCollatorWithPadding(tokenizer),
        encode(rows),
        encode(dev),
        processing_class=tokenizer,
        compute_metrics=lambda out: {"accuracy": float(np.mean(out.predictions.argmax(1) == out.label_ids))},
    )
    _finish(trainer, folder)
    return {"dev_accuracy": trainer.evaluate()["eval_accuracy"], "dev_rows": len(dev)}


def _finish(trainer: Trainer, folder: Path) -> None:
    """Train, from the last whole checkpoint if there is one, and save."""
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    trainer.save_model(str(folder))
