"""The alignment against plain loops: values and gradients, odd shapes, padding."""

from __future__ import annotations

import math

import pytest
import torch
from support.maps import SHAPES, make_case, oracle_loss, oracle_map, tokens_of

from hf_interdistill.interaction.attention import maps
from hf_interdistill.interaction.attention.map_sources import (
    DenseMapSource,
    RecordedMapSource,
    UniformMapSource,
    dense,
    shuffled_map_source,
)
from hf_interdistill.interaction.attention.maps import (
    AttentionMap,
    UnitTokens,
    concatenate_rows,
    pool_attention,
    student_map,
)
from hf_interdistill.interaction.attention.recorder import RecordedAttention
from hf_interdistill.interaction.losses.alignment import alignment_loss, scope_mask


@pytest.fixture(params=[1, 40, 1 << 21], ids=["row by row", "small blocks", "one block"])
def block_size(request, monkeypatch):
    monkeypatch.setitem(maps._BLOCK_ELEMENTS, "cpu", request.param)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_map_equals_loops(shape, softcap, block_size):
    query, key, token_units, segments, _ = make_case(shape)
    count = segments.shape[1]
    attention = AttentionMap(query, key, tokens_of(token_units, count), 0.6, softcap)
    blocks = [attention.pool(attention.attend(a, b), a, b) for a, b in attention.blocks()]
    torch.testing.assert_close(torch.cat(blocks, 1), oracle_map(query, key, token_units, count, 0.6, softcap))


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("scope", ["joint", "intra", "inter"])
@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_equal_loops(shape, loss, scope, softcap, block_size):
    query, key, token_units, segments, teacher = make_case(shape)
    count = segments.shape[1]
    leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
    attention = AttentionMap(*leaves, tokens_of(token_units, count), 0.6, softcap)
    result = alignment_loss(attention, DenseMapSource(teacher), segments, loss=loss, scope=scope)
    (3 * result.loss).backward()

    plain = [query.clone().requires_grad_(), key.clone().requires_grad_()]
    student = oracle_map(*plain, token_units, count, 0.6, softcap)
    expected = oracle_loss(student, teacher, segments, segments >= 0, loss, scope)
    torch.testing.assert_close(result.loss, expected)
    for other, value in result.by_scope.items():
        torch.testing.assert_close(value, oracle_loss(student, teacher, segments, segments >= 0, loss, other).detach())
    if expected.requires_grad and expected.grad_fn is not None:
        gradients = torch.autograd.grad(3 * expected, plain, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf) if gradient is None else gradient)


def test_units_that_one_side_lost_leave_the_loss():
    query, key, token_units, segments, teacher = make_case(SHAPES[1])
    teacher[0, 1] = teacher[0, :, 1] = 0  # the teacher never read unit 1 of the first pair
    student = AttentionMap(query, key, tokens_of(token_units, 5), 0.6, None)
    result = alignment_loss(student, DenseMapSource(teacher), segments)
    shared = (segments >= 0) & (teacher.sum(-1) > 0)
    expected = oracle_loss(oracle_map(query, key, token_units, 5, 0.6), teacher, segments, shared, "kl", "joint")
    torch.testing.assert_close(result.loss, expected)


def test_padding_changes_nothing():
    shape = SHAPES[1]
    query, key, token_units, segments, teacher = make_case(shape)
    student = AttentionMap(query, key, tokens_of(token_units, 5), 0.6, None)
    whole = alignment_loss(student, DenseMapSource(teacher), segments)
    pad = torch.nn.functional.pad
    wider = AttentionMap(
        pad(query, (0, 0, 0, 3), value=9.0),
        pad(key, (0, 0, 0, 3), value=9.0),
        tokens_of(pad(token_units, (0, 3), value=-1), 7),
        0.6,
        None,
    )
    padded = alignment_loss(wider, DenseMapSource(pad(teacher, (0, 2, 0, 2))), pad(segments, (0, 2), value=-1))
    torch.testing.assert_close(padded.loss, whole.loss)


def test_loss_of_a_batch_is_the_mean_over_its_pairs():
    query, key, token_units, segments, teacher = make_case(SHAPES[2])
    whole = alignment_loss(
        AttentionMap(query, key, tokens_of(token_units, 4), 1.0, None), DenseMapSource(teacher), segments
    )
    single = [
        alignment_loss(
            AttentionMap(query[i : i + 1], key[i : i + 1], tokens_of(token_units[i : i + 1], 4), 1.0, None),
            DenseMapSource(teacher[i : i + 1]),
            segments[i : i + 1],
        ).loss
        for i in range(3)
    ]
    torch.testing.assert_close(whole.loss, torch.stack(single).mean())


def test_a_pair_with_no_shared_unit_costs_nothing_and_harms_nothing():
    query, key, token_units, segments, teacher = make_case(SHAPES[1])
    token_units[1] = -1
    leaves = [query.requires_grad_(), key.requires_grad_()]
    result = alignment_loss(
        AttentionMap(*leaves, tokens_of(token_units, 5), 1.0, None), DenseMapSource(teacher), segments
    )
    result.loss.backward()
    assert result.aligned_pairs.tolist() == [True, False]
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    assert not query.grad[1].any() and query.grad[0].any()
    everything_lost = torch.full_like(token_units, -1)
    empty = alignment_loss(
        AttentionMap(*leaves, tokens_of(everything_lost, 5), 1.0, None), DenseMapSource(teacher), segments
    )
    assert empty.loss == 0


@pytest.mark.parametrize("scale", [1e-4, 30.0, 300.0])
def test_extreme_scores_stay_finite(scale):
    query, key, token_units, segments, teacher = make_case(SHAPES[1], dtype=torch.float32)
    leaves = [(query * scale).requires_grad_(), (key * scale).requires_grad_()]
    result = alignment_loss(
        AttentionMap(*leaves, tokens_of(token_units, 5), 1.0, None), DenseMapSource(teacher), segments
    )
    result.loss.backward()
    assert math.isfinite(result.loss) and 0 <= result.loss < 100
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_half_precision_states_are_aligned_in_float32():
    query, key, token_units, segments, teacher = make_case(SHAPES[1], dtype=torch.float32)
    half = [query.bfloat16().requires_grad_(), key.bfloat16().requires_grad_()]
    full = [leaf.detach().float().requires_grad_() for leaf in half]
    for leaves in (half, full):
        with torch.autocast("cpu", torch.bfloat16):
            attention = AttentionMap(*leaves, tokens_of(token_units, 5), 1.0, None)
            alignment_loss(attention, DenseMapSource(teacher), segments).loss.backward()
    for low, high in zip(half, full, strict=True):
        assert low.grad.dtype == torch.bfloat16
        torch.testing.assert_close(low.grad, high.grad.bfloat16())


def test_student_map_joins_prompt_chosen_and_rejected_without_causal_mask():
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(2, 2, 4, 3, generator=generator) for _ in range(2))  # one pair: chosen, rejected
    record = RecordedAttention(query, key, scaling=0.5)
    index = torch.tensor([[0, 1, 3, 4 + 2, 4 + 3]])  # prompt and chosen from row 0, rejected from row 1
    units = torch.tensor([[0, 1, 2, 3, 3]])
    attention = student_map(concatenate_rows(record), index, tokens_of(units, 4))
    joined = [torch.stack([states[i // 4, :, i % 4] for i in index[0].tolist()], 1)[None] for states in (query, key)]
    expected = oracle_map(*joined, units, 4, 0.5)
    torch.testing.assert_close(attention.pool(attention.attend(0, 4), 0, 4), expected)


def test_teacher_rows_equal_pooled_attention(block_size):
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(2, 3, 6, 4, generator=generator) for _ in range(2))
    token_units = torch.tensor([[-1, 2, 0, 0, 1, -1], [-1, 0, -1, 1, 1, -1]])  # responses may come in either order
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    scores = (query @ key.transpose(2, 3) * 0.5).masked_fill(~mask[:, None, None], float("-inf"))
    expected = pool_attention(scores.softmax(-1).mean(1), token_units, 3)
    source = RecordedMapSource(RecordedAttention(query, key, 0.5), UnitTokens.from_units(token_units, mask, 3))
    torch.testing.assert_close(dense(source), expected)
    torch.testing.assert_close(torch.cat([source.rows(0, 1), source.rows(1, 3)], 1), expected)
    assert source.present.tolist() == [[True, True, True], [True, True, False]]
    by_hand = torch.tensor([scores.softmax(-1)[0, :, 1, 1].mean(), scores.softmax(-1)[0, :, 1, 2:4].mean(0).sum()])
    torch.testing.assert_close(expected[0, 2, [2, 0]], by_hand)


def test_controls():
    _, _, _, segments, teacher = make_case(SHAPES[1])
    source = DenseMapSource(teacher)
    uniform = dense(UniformMapSource(source))
    assert torch.equal(uniform[1, 0, :3], torch.full((3,), 1 / 3)) and not uniform[1, :, 3:].any()
    shuffled = shuffled_map_source(source, segments).values
    # first pair: units (prompt, prompt, chosen, rejected, rejected), second: (prompt, chosen, rejected)
    assert torch.equal(shuffled[1, :3, :3], teacher[0][[0, 2, 3]][:, [0, 2, 3]])
    assert torch.equal(shuffled[0], teacher[1][[0, 0, 1, 2, 2]][:, [0, 0, 1, 2, 2]])
    alone = shuffled_map_source(DenseMapSource(teacher[:1]), segments[:1]).values
    assert torch.equal(alone[0], teacher[0][[1, 0, 2, 4, 3]][:, [1, 0, 2, 4, 3]])


@pytest.mark.parametrize("scope", ["joint", "intra", "inter"])
def test_query_mask_equals_loops(scope, block_size):
    query, key, token_units, segments, teacher = make_case(SHAPES[1])
    present = segments >= 0
    present[0, 4] = False  # the teacher has not read the last unit
    query_mask = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)
    leaves = [query.clone().requires_grad_(), key.clone().requires_grad_()]
    attention = AttentionMap(*leaves, tokens_of(token_units, 5), 0.6, None)
    source = DenseMapSource(teacher, present)
    result = alignment_loss(attention, source, segments, scope=scope, query_mask=query_mask)
    result.loss.backward()
    plain = [query.clone().requires_grad_(), key.clone().requires_grad_()]
    student = oracle_map(*plain, token_units, 5, 0.6)
    expected = oracle_loss(student, teacher, segments, present, "kl", scope, query_mask)
    torch.testing.assert_close(result.loss, expected)
    for leaf, gradient in zip(leaves, torch.autograd.grad(expected, plain), strict=True):
        torch.testing.assert_close(leaf.grad, gradient)
    for other, value in result.by_scope.items():
        oracle = oracle_loss(student, teacher, segments, present, "kl", other, query_mask)
        torch.testing.assert_close(value, oracle.detach())


def test_scopes_by_hand():
    segments = torch.tensor([[0, 1, 2, -1]])
    joint, intra, inter = (
        scope_mask(segments, 0, 4, scope)[0].int().tolist() for scope in ("joint", "intra", "inter")
    )
    assert joint == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert intra == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert inter == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
