"""The explained share against loops over pairs, rows and columns."""

from __future__ import annotations

import pytest
import torch
from support.maps import SHAPES, make_case, oracle_map, tokens_of

from hf_interdistill.interaction.attention.map_sources import DenseMapSource
from hf_interdistill.interaction.attention.maps import AttentionMap
from hf_interdistill.interaction.losses.alignment import ALIGNMENT_SCOPES, alignment_loss, mean_alignment
from hf_interdistill.interaction.losses.explained import ExplainedShare


def oracle_divergences(student, teacher, segments, scope) -> list[tuple[float, float]]:
    """For each pair the mean over rows of KL(teacher, student) and KL(teacher, uniform)."""
    found = []
    for b in range(len(student)):
        rows = []
        own = [u for u in range(student.shape[1]) if segments[b, u] >= 0 and teacher[b, u].any()]
        for u in own:
            side = int(segments[b, u])
            others = [v for v in own if side > 0 and segments[b, v] > 0 and segments[b, v] != side]
            columns = {"joint": own, "intra": [v for v in own if v not in others], "inter": others}[scope]
            if scope == "inter" and (side == 0 or not others):
                continue
            t = teacher[b, u, columns] / teacher[b, u, columns].sum()
            s = student[b, u, columns] / student[b, u, columns].sum()
            is_uniform = max(abs(float(each) * len(columns) - 1) for each in t) < 1e-4
            pair = (float((t * (t / s).log()).sum()), float((t * (t * len(columns)).log()).sum()))
            rows.append((0.0, 0.0) if is_uniform else pair)
        found.append(tuple(sum(row[i] for row in rows) / max(len(rows), 1) for i in (0, 1)))
    return found


def result_of(case, **options):
    query, key, token_units, segments, teacher = case
    attention = AttentionMap(query, key, tokens_of(token_units, segments.shape[1]), 0.6, None)
    return alignment_loss(attention, DenseMapSource(teacher), segments, **options)


@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize("trained", ["joint", "intra", "inter"])
@pytest.mark.parametrize("shape", SHAPES)
def test_divergences_equal_loops(shape, trained, loss):
    case = make_case(shape)
    query, key, token_units, segments, teacher = case
    teacher += 1e-3 * (segments >= 0)[:, :, None] * (segments >= 0)[:, None, :]
    teacher[0, 0, segments[0] >= 0] = 0.25  # a row that is uniform in every scope
    result = result_of(case, loss=loss, scope=trained)
    student = oracle_map(query, key, token_units, segments.shape[1], 0.6)
    for index, scope in enumerate(ALIGNMENT_SCOPES):
        pairs = oracle_divergences(student, teacher, segments, scope)
        for kind in (0, 1):
            expected = sum(pair[kind] for pair in pairs) / len(pairs)
            assert float(result.divergences[kind, index]) == pytest.approx(expected, abs=1e-9), (scope, kind)
    assert not result.divergences.requires_grad


def test_sums_come_before_the_ratio():
    share = ExplainedShare()
    share.add(torch.tensor([[1.0, 0.5, 3.0], [2.0, 1.0, 1.0]]))
    share.add(torch.tensor([[0.0, 0.5, 0.0], [6.0, 1.0, 1.0]]))
    assert share.take() == {"explained": 1 - 1 / 8, "explained_intra": 0.5, "explained_inter": -0.5}
    assert share.take() == {}


def test_the_teachers_own_map_is_1_equal_attention_0_and_a_uniform_teacher_nothing():
    case = make_case(SHAPES[1])
    query, key, token_units, segments, _ = case
    own = oracle_map(query, key, token_units, 5, 0.6)
    uniform = (segments >= 0)[:, :, None] * (segments >= 0)[:, None, :] * torch.ones(5, dtype=query.dtype)
    shares = ExplainedShare()
    shares.add(result_of((query, key, token_units, segments, own)).divergences)
    assert shares.take() == pytest.approx({"explained": 1, "explained_intra": 1, "explained_inter": 1}, abs=1e-6)
    units = torch.arange(5).where(segments >= 0, -1)  # one token each, so that equal attention is equal over units
    flat = (torch.zeros(2, heads, 5, 5, dtype=query.dtype) for heads in (4, 2))
    shares.add(result_of((*flat, units, segments, case[4])).divergences)
    assert shares.take() == pytest.approx({"explained": 0, "explained_intra": 0, "explained_inter": 0}, abs=1e-6)
    shares.add(result_of((query, key, token_units, segments, uniform)).divergences)
    assert shares.take() == {}


def test_layer_pairs_are_averaged():
    one, other = (result_of(make_case(SHAPES[1], seed=seed)) for seed in (0, 1))
    mean = mean_alignment([one, other]).divergences
    torch.testing.assert_close(mean, (one.divergences + other.divergences) / 2)
