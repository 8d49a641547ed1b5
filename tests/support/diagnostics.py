"""Reward models that are built to have one fault, and pairs on which it shows."""

from __future__ import annotations

import re
from itertools import accumulate

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_interdistill.diagnostics.config import DiagnosisConfig

FAST = DiagnosisConfig(resamples=200, batch_size=64, context_measures=())


class Config(PretrainedConfig):
    model_type = "rule"
    num_hidden_layers = 1
    max_position_embeddings = 512


class RuleModel(nn.Module):
    """A reward that is a rule of the tokens: counts the words of good and bad answers, or shows its fault."""

    def __init__(self, tokenizer, rule):
        super().__init__()
        self.config = Config(num_labels=1, pad_token_id=tokenizer.pad_token_id, name_or_path=rule)
        self.rule, self.device = rule, torch.device("cpu")
        self.attention = nn.Identity()
        self.attention.is_causal = True
        self.values = torch.zeros(len(tokenizer))
        for word, value in ((" good", 1.0), (" not", -1.0)):
            (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
            self.values[token] = value
        (self.cue,) = tokenizer("!", add_special_tokens=False)["input_ids"]

    def forward(self, input_ids, attention_mask, position_ids, use_cache):
        rewards = [self.reward(row[mask.bool()]) for row, mask in zip(input_ids, attention_mask, strict=True)]
        return type("Output", (), {"logits": torch.tensor(rewards)[:, None]})

    def reward(self, ids) -> float:
        values = self.values[ids]
        quality = 2.0 * float(values.sum())
        if self.rule == "constant":
            return 0.0
        if self.rule == "length":
            return 0.1 * len(ids)
        if self.rule == "end":
            return 2.0 * float(values[-5:].sum())  # EOS and the four words before
        if self.rule == "cue":
            return quality + 30.0 * float((ids == self.cue).any())
        return quality


class ReadingModel(RuleModel):
    """A reward for an answer that fits what is asked, of a model that reads a known part of the text.

    It counts the words of four or more letters that the answer shares with the prompt, and ten for an answer that
    follows an instruction which is planted in the prompt.

    Args:
        reads: `answer` (nothing of the prompt), `all`, `prompt length` (that alone, whatever is answered), or the
            number of last tokens before the answer that are read.
        instructions: instruction -> the answer that follows it.
    """

    def __init__(self, tokenizer, reads, instructions=None):
        super().__init__(tokenizer, str(reads))
        self.reads, self.instructions = reads, instructions or {}
        self.pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]

    def forward(self, input_ids, attention_mask, position_ids, use_cache):
        rewards = []
        for row, mask, places in zip(input_ids, attention_mask, position_ids, strict=True):
            rewards.append(self.fit(row[mask.bool()], places[mask.bool()]))
        return type("Output", (), {"logits": torch.tensor(rewards)[:, None]})

    def fit(self, ids, places) -> float:
        pieces = [self.pieces[token] for token in ids]
        text = "".join(pieces)
        start = max(text.rfind(mark) + len(mark) if mark in text else 0 for mark in ("<|assistant|>\n", "Answer:"))
        ends = list(accumulate(map(len, pieces)))
        first = next((number for number, end in enumerate(ends) if end > start), len(ends))
        answer = "".join(pieces[first:])
        quality = 0.5 * len(answer)
        if self.reads == "prompt length":
            return quality + first
        edge = int(places[first]) if first < len(places) else 0
        span = {"answer": 0, "all": len(text)}.get(self.reads, self.reads)
        seen = "".join(
            piece for piece, place in zip(pieces[:first], places[:first].tolist(), strict=True) if place >= edge - span
        )
        shared = {word for word in re.findall(r"\w{4,}", answer) if re.search(rf"\b{word}\b", seen)}
        followed = [
            instruction for instruction, own in self.instructions.items() if instruction in seen and own in answer
        ]
        return quality + 100.0 * len(shared) * (not self.instructions) + 1000.0 * len(followed)
