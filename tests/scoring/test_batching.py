"""A reward is the same alone and in any batch, or the model is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from support.models import build_student
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from hf_interdistill import RewardScorer

ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "bert": ENCODER,
    "roberta": {**ENCODER, "max_position_embeddings": 516},
    "electra": {**ENCODER, "embedding_size": 32},
    "deberta-v2": {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "modernbert": {**ENCODER, "global_attn_every_n_layers": 2, "local_attention": 16},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},  # its summary reads the last position
}
TEXTS = ["word " * (3 * i + 1) for i in range(6)]


def build(family, tokenizer, **changes):
    config = AutoConfig.for_model(
        family, vocab_size=900, num_labels=1, pad_token_id=tokenizer.pad_token_id, **{**FAMILIES[family], **changes}
    )
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return model.eval()


def read_alone(model, tokenizer, texts=TEXTS) -> list[float]:
    """The oracle: the model itself, one text at a time."""
    rewards = []
    for text in texts:
        ids = torch.tensor([tokenizer(text + tokenizer.eos_token)["input_ids"]])
        with torch.no_grad():
            rewards.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0].item())
    return rewards


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_padded_on_the_side_that_it_reads_rightly(family, side, tokenizer):
    tokenizer.padding_side = side
    model = build(family, tokenizer)
    alone = read_alone(model, tokenizer)
    scorer = RewardScorer(model, tokenizer, batch_size=4)
    assert scorer([None] * len(TEXTS), TEXTS) == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 1e-2


class BatchMean(nn.Linear):
    """A head that compares the texts of a batch."""

    def forward(self, states):
        return super().forward(states - states.mean(0, keepdim=True))


@pytest.mark.parametrize("kind", ["statistics", "prompt tuning"])
def test_models_whose_rewards_depend_on_the_batch_are_refused(kind, tokenizer):
    model = build_student()
    if kind == "statistics":
        head = BatchMean(32, 1, bias=False)
        head.load_state_dict(model.score.state_dict())
        model.score = head
    else:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))
    scorer = RewardScorer(model, tokenizer)
    message = (
        r"different rewards in a batch and alone: padded on the right, \[.*\] instead of \[.*\]; padded on the left"
    )
    with pytest.raises(ValueError, match=message + r".*`batch_size=1`"):
        scorer([None] * len(TEXTS), TEXTS)
    single = RewardScorer(model, tokenizer, batch_size=1)
    rewards = single([None] * len(TEXTS), TEXTS)
    assert rewards == [single([None], [text])[0] for text in TEXTS]


def test_it_is_measured_once(tokenizer, monkeypatch):
    model = build_student()
    calls, forward = [], model.forward

    def counted(**inputs):
        calls.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", counted)
    scorer = RewardScorer(model, tokenizer, batch_size=8)
    scorer([None], ["alone"])
    assert calls == [1]
    scorer([None] * len(TEXTS), TEXTS)
    assert calls == [1, 1, 1, 1, 3, len(TEXTS)] and scorer.last_forward_passes == 1
    scorer([None] * len(TEXTS), TEXTS)
    assert calls[-1] == len(TEXTS) and len(calls) == 7


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}


def test_longrope_reads_texts_within_and_beyond_its_length_apart(tokenizer):
    half = 4
    factors = {"short_factor": [1.0] * half, "long_factor": [3.0, 5.0, 7.0, 9.0]}
    model = build_student(
        "phi3",
        rope_parameters=rope("longrope", original_max_position_embeddings=24, **factors),
        original_max_position_embeddings=24,
    )
    texts = ["word " * count for count in (2, 60, 5, 70, 9)]
    alone = read_alone(model, tokenizer, texts)
    scorer = RewardScorer(model, tokenizer, batch_size=8)
    assert scorer([None] * 5, texts) == pytest.approx(alone, abs=1e-4)
    assert scorer.last_forward_passes == 2


def test_dynamic_positions_are_refused_beyond_their_length(tokenizer):
    model = build_student(rope_parameters=rope("dynamic"), max_position_embeddings=24)
    texts = ["word " * count for count in (2, 5, 9)]
    scorer = RewardScorer(model, tokenizer)
    assert scorer([None] * 3, texts) == pytest.approx(read_alone(model, tokenizer, texts), abs=1e-4)
    with pytest.raises(ValueError, match=r"Texts may have \d+ tokens.*`rope_type='dynamic'`.*24.*`max_length=24`"):
        scorer([None], ["word " * 60])


def test_half_precision_is_not_taken_for_a_fault(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        for dtype in (torch.bfloat16, torch.float16):
            scorer = RewardScorer(build_student().to(dtype), tokenizer)
            assert len(scorer([None] * len(TEXTS), TEXTS)) == len(TEXTS)
