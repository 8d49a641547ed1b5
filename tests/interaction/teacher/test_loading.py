"""A teacher is loaded whole or not at all; an encoder to start from may lack its pooler."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.models import read_weights
from support.teachers import LEARNABLE, settings, small_teacher
from support.tokenizers import tokenizer_of
from transformers import BertConfig, BertForMaskedLM, BertModel

from hf_interdistill import InteractionTeacher

ENCODER, HEAD = "model.safetensors", "interaction_teacher.safetensors"


@pytest.fixture
def folder(tmp_path):
    teacher = small_teacher()
    teacher.metrics = {"accuracy": 0.7, "is_better_than_chance": True}
    teacher.save_pretrained(str(tmp_path / "teacher"))
    return tmp_path / "teacher"


def load(folder, **options) -> InteractionTeacher:
    return InteractionTeacher.from_pretrained(str(folder), **options)


def without(folder, file: str, part: str) -> None:
    stored = read_weights(folder / file)
    kept = {key: value for key, value in stored.items() if part not in key}
    assert len(kept) < len(stored)
    save_file(kept, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "part"),
    [(ENCODER, "encoder.layer.1."), (ENCODER, "word_embeddings"), (ENCODER, "pooler"), (HEAD, "weight")],
)
def test_a_part_of_a_teacher_is_refused(folder, file, part):
    load(folder)
    without(folder, file, part)
    with pytest.raises(ValueError, match=rf"holds only a part of its model.*{part}.*--resume_from_checkpoint true"):
        load(folder)


def test_a_head_of_another_shape_or_cut_short_is_refused(folder):
    content = (folder / HEAD).read_bytes()
    save_file({"weight": torch.zeros(1, 64), "bias": torch.zeros(1)}, folder / HEAD)
    with pytest.raises(ValueError, match=r"interaction_teacher.safetensors of the teacher in .* weight\."):
        load(folder)
    (folder / HEAD).write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"interaction_teacher.safetensors of the teacher in .* cannot be read"):
        load(folder)


def test_an_encoder_may_lack_its_pooler_alone(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertForMaskedLM(BertConfig(vocab_size=900, pad_token_id=0, **shape)).save_pretrained(tmp_path)
    tokenizer_of("wordpiece").save_pretrained(tmp_path)
    assert not load(tmp_path).is_fitted
    without(tmp_path, ENCODER, "layer.0.")
    with pytest.raises(ValueError, match=r"holds only a part of its model.*encoder.layer.0"):
        load(tmp_path)


def test_options_reach_encoder_tokenizer_and_head(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "repository" / "inner")
    inner = load(tmp_path / "repository", subfolder="inner")
    expected = load(folder)
    assert inner.is_fitted and torch.equal(inner.network.score.weight, expected.network.score.weight)
    assert inner.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    with pytest.warns(FutureWarning, match="`torch_dtype` of InteractionTeacher.from_pretrained is now `dtype`"):
        assert load(folder, torch_dtype=torch.bfloat16).network.encoder.dtype == torch.bfloat16


def test_options_for_a_loaded_encoder_are_refused():
    network = small_teacher().network.encoder
    with pytest.raises(ValueError, match=r"loaded already, so `dtype` would change nothing"):
        InteractionTeacher.from_pretrained(network, tokenizer_of("wordpiece"), dtype=torch.bfloat16)


class Shifted(BertModel):
    """An encoder of the user's own, which no config names."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.flip(-1)
        return output


def test_a_teacher_that_loads_as_another_is_named_at_the_end_of_fit(tmp_path):
    teacher = small_teacher()
    teacher.fit(LEARNABLE, args=settings(tmp_path / "plain", max_steps=1))
    own = Shifted(teacher.network.encoder.config)
    with pytest.raises(ValueError, match=r"scores pairs differently after loading.*that `AutoModel` loads"):
        InteractionTeacher(own, teacher.tokenizer).fit(LEARNABLE, args=settings(tmp_path / "own", max_steps=1))
    assert (tmp_path / "own" / "interaction_teacher.json").exists()
