"""Late interaction: two rows that attend to each other in the top layers, against attention written out."""

from __future__ import annotations

import pytest
import torch
from support.models import build_encoder
from support.teachers import LEARNABLE, batch_of, settings, small_teacher

from hf_interdistill import InteractionTeacher
from hf_interdistill.interaction.attention.map_sources import dense
from hf_interdistill.interaction.attention.maps import pool_attention
from hf_interdistill.interaction.teacher.late_interaction import with_partner

FIRST = torch.zeros(4, dtype=torch.long)


def late_teacher(family="bert", layers=1, attention=None):
    model, tokenizer = build_encoder(family)
    if attention:
        model.set_attn_implementation(attention)
    return InteractionTeacher.from_pretrained(model, tokenizer, max_length=200, interaction_layers=layers).freeze()


def last_layer_by_hand(encoder, states, mask):
    """BERT's last layer over both rows of each pair together: its states and its mean attention.

    states, mask: of the layer below, `(pairs, 2, length, ...)`.
    """
    layer = encoder.encoder.layer[-1]
    states, mask = states.flatten(1, 2), mask.flatten(1, 2)
    own = layer.attention.self

    def heads(linear):
        return linear(states).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)

    query, key, value = heads(own.query), heads(own.key), heads(own.value)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    attention = scores.masked_fill(~mask[:, None, None].bool(), -torch.inf).softmax(-1)
    mixed = layer.attention.output((attention @ value).transpose(1, 2).flatten(2), states)
    return layer.output(layer.intermediate(mixed), mixed), attention.mean(1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rewards_and_map_are_those_of_both_rows_together_in_the_last_layer(rows, attention):
    teacher = late_teacher(attention=attention)
    batch, units = batch_of(teacher, rows[:4])
    margins, sources = teacher.forward(batch, FIRST, [-1], units)
    flat = {name: value.flatten(0, 1) for name, value in batch.items()}
    inputs = {name: flat[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in flat}
    with torch.no_grad():
        below = teacher.network.encoder(**inputs, output_hidden_states=True).hidden_states[-2]
        states, weights = last_layer_by_hand(
            teacher.network.encoder, below.unflatten(0, (-1, 2)), batch["attention_mask"]
        )
    length = batch["input_ids"].shape[2]
    score_positions = batch["score_positions"][..., 0] + torch.tensor([0, length])
    read = states.gather(1, score_positions[..., None].expand(-1, -1, states.shape[-1]))
    rewards = read @ teacher.network.score.weight[0] + teacher.network.score.bias
    torch.testing.assert_close(margins, rewards[:, 0] - rewards[:, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        dense(sources[0]), pool_attention(weights, batch["units"].flatten(1), units), rtol=1e-3, atol=1e-5
    )
    alone = teacher.network(**{name: value for name, value in flat.items() if name != "units"}, is_pairwise=False)
    assert ((alone[0::2, 0] - alone[1::2, 0]) - margins).abs().max() > 1e-3  # the other response has a say


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "electra"])
def test_families_interact_in_the_last_layer_and_swap_with_their_responses(rows, family):
    teacher = late_teacher(family)
    margins = teacher.score_pairs(rows[:4], is_progress_shown=False)
    assert torch.equal(margins[:, 0], margins[:, 1]) and margins.std() > 0
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:4]]
    torch.testing.assert_close(teacher.score_pairs(swapped, is_progress_shown=False), -margins)
    batch, units = batch_of(teacher, rows[:4])
    again, sources = teacher.forward(batch, FIRST, [-1], units)
    torch.testing.assert_close(again, margins[:, 0], rtol=1e-4, atol=1e-5)
    sums = dense(sources[0]).sum(-1)
    assert ((sums > 0) == sources[0].present).all() and (sums < 1 + 1e-5).all()


def test_pairs_of_a_batch_do_not_interact(rows):
    teacher = late_teacher(layers=2)
    whole = teacher.score_pairs(rows[:4], batch_size=4, is_progress_shown=False)
    for number, row in enumerate(rows[:4]):
        alone = teacher.score_pairs([row], is_progress_shown=False)
        torch.testing.assert_close(alone[0], whole[number], rtol=1e-4, atol=1e-5)
    assert (late_teacher(layers=1).score_pairs(rows[:4], is_progress_shown=False) - whole).abs().max() > 1e-3


def test_partners_by_hand():
    rows = torch.arange(8).view(4, 2)
    assert with_partner(rows, 1).tolist() == [[0, 1, 2, 3], [2, 3, 0, 1], [4, 5, 6, 7], [6, 7, 4, 5]]


def test_interaction_layers_are_saved_with_the_teacher(tmp_path, rows):
    teacher = late_teacher(layers=2)
    teacher.metrics = {"accuracy": 0.7}
    teacher.save_pretrained(str(tmp_path))
    loaded = InteractionTeacher.from_pretrained(str(tmp_path))
    assert loaded.interaction_layers == 2 and loaded.layout == teacher.layout
    torch.testing.assert_close(
        loaded.score_pairs(rows[:3], is_progress_shown=False), teacher.score_pairs(rows[:3], is_progress_shown=False)
    )
    assert InteractionTeacher.from_pretrained(str(tmp_path), interaction_layers=0).interaction_layers == 0


def test_what_cannot_interact_is_explained(rows):
    model, tokenizer = build_encoder()
    with pytest.raises(ValueError, match="`interaction_layers` is 4, but BertModel has 3 layers: use 0 to 3"):
        InteractionTeacher(model, tokenizer, interaction_layers=4)
    deberta = build_encoder("deberta-v2")
    assert InteractionTeacher(*deberta).interaction_layers == 0
    with pytest.raises(ValueError, match="DebertaV2Model can read a pair in one row only"):
        InteractionTeacher(*deberta, interaction_layers=1)
    model.config._attn_implementation = "flash_attention_2"
    assert InteractionTeacher(model, tokenizer).interaction_layers == 0
    with pytest.raises(ValueError, match="attention implementation is 'flash_attention_2'"):
        InteractionTeacher(model, tokenizer, interaction_layers=1)
    teacher = late_teacher()
    batch, units = batch_of(teacher, rows[:4])
    with pytest.raises(ValueError, match=r"Teacher layer 0 reads each response alone: .* in layers 2 to 2"):
        teacher.forward(batch, FIRST, [0], units)


def test_pairs_train_only_the_cross_layers_after_a_warm_start(tmp_path):
    from safetensors.torch import load_file

    for epochs in (1, 0):
        teacher = small_teacher()
        start = {name: value.clone() for name, value in teacher.network.state_dict().items()}
        teacher.fit(LEARNABLE, args=settings(tmp_path / str(epochs), warm_start_epochs=epochs, num_train_epochs=1))
        if epochs:
            start = load_file(tmp_path / "1" / "single" / "best.safetensors")
        moved = {name for name, value in teacher.network.state_dict().items() if not torch.equal(value, start[name])}
        top = {name for name in moved if name.startswith("encoder.encoder.layer.1.")}
        assert len(top) > 10 and "score.weight" in moved
        assert (moved - top == {"score.weight"}) == bool(epochs)


def test_fit_takes_the_interaction_layers_of_its_settings(tmp_path):
    teacher = small_teacher()
    assert teacher.interaction_layers == 1
    metrics = teacher.fit(LEARNABLE, args=settings(tmp_path, interaction_layers=2, num_train_epochs=1))
    assert teacher.interaction_layers == 2 and metrics["order_agreement"] == 1
