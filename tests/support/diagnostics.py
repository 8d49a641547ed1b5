"""Reward models that are built to have one fault, and pairs on which it shows."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_interdistill.diagnostics.config import DiagnosisConfig

FAST = DiagnosisConfig(resamples=200, batch_size=64)


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
