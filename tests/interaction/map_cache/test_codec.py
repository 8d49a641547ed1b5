"""Teacher maps in few bytes and back, against loops over plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load, save

from hf_interdistill.interaction.attention.map_sources import DenseMapSource, dense
from hf_interdistill.interaction.losses.alignment import row_divergence
from hf_interdistill.interaction.map_cache.codec import NOT_KEPT, STEPS, MapFormat

CPU = torch.device("cpu")


def make_maps(sizes, seed=0, sharpness=2.0, mass=0.8) -> torch.Tensor:
    """Rows like a teacher's: weights over orders of magnitude, part of the mass on tokens of no unit, zero padding."""
    generator = torch.Generator().manual_seed(seed)
    units = max(sizes)
    values = torch.zeros(len(sizes), units, units)
    for pair, size in enumerate(sizes):
        columns = torch.randn(size, generator=generator)
        scores = sharpness * torch.randn(size, size, generator=generator) + columns
        values[pair, :size, :size] = mass * torch.softmax(scores, -1)
    return values


def through(map_format: MapFormat, source: DenseMapSource, sizes, units=None) -> torch.Tensor:
    """What comes back from what was written, by way of bytes."""
    stored = [load(save(one)) for one in map_format.compress(source, sizes)]
    rows = map_format.expand(stored, units or source.values.shape[1], CPU)
    assert torch.equal(rows.present[:, : source.values.shape[1]], source.present)
    return dense(rows)


def oracle_row(row: list[float], top_k: int | None) -> tuple[dict[int, float], float, float]:
    """Kept weights by column as 8 bits give them back, what is left over, and the nats of a step."""
    total = sum(row)
    row = [weight / total for weight in row]
    columns = sorted((c for c in range(len(row)) if row[c] > 0), key=lambda c: -row[c])[: top_k or len(row)]
    logs = {column: math.log(row[columns[0]] / row[column]) for column in columns}
    step = float(torch.tensor(max(logs.values()) / STEPS).half())
    weights = {column: math.exp(-round(value / step) * step) if step else 1.0 for column, value in logs.items()}
    kept = sum(row[column] for column in columns)
    scale = kept / sum(weights.values())
    return {column: weight * scale for column, weight in weights.items()}, 1 - kept, step


@pytest.mark.parametrize("top_k", [None, 1, 5, 40])
def test_8bit_maps_equal_loops(top_k):
    sizes = [23, 9, 1]
    values = make_maps(sizes)
    values[0, 4] = 0  # a unit that was not read
    values[0, :, 4] = 0
    values[0, 7, 8:] = 0  # a row with few weights
    values[1, 2] = 0
    values[1, 2, 5] = 0.3  # a row of one weight
    result = through(MapFormat("8bit", top_k), DenseMapSource(values), sizes)
    for pair, size in enumerate(sizes):
        rows = [row[:size] for row in values[pair].tolist()[:size]]
        decoded = [oracle_row(row, top_k) if sum(row) else ({}, 0.0, 0.0) for row in rows]
        leaving = []  # of each column, the mean that rows leave there
        for column in range(size):
            left = [
                row[column] / sum(row)
                for row, one in zip(rows, decoded, strict=True)
                if sum(row) and column not in one[0]
            ]
            leaving.append(sum(left) / len(left) if left else 0.0)
        for number, (weights, rest, step) in enumerate(decoded):
            spread = sum(leaving[column] for column in range(size) if column not in weights)
            for column in range(size):
                expected = weights[column] if column in weights else rest * leaving[column] / spread if spread else 0.0
                # a rounding at the border of two codes may fall either way; rest and proportions have 11 bits
                assert float(result[pair, number, column]) == pytest.approx(expected, rel=1.01 * step + 2e-3, abs=1e-7)
        assert not result[pair, size:].any() and not result[pair, :, size:].any()
        is_read = torch.tensor([sum(row) > 0 for row in rows])
        torch.testing.assert_close(
            result[pair, :size].sum(-1)[is_read], torch.ones(int(is_read.sum())), atol=1e-3, rtol=0
        )


def test_every_weight_keeps_its_ratio_to_half_a_step():
    values = make_maps([60], sharpness=1.5)
    result = through(MapFormat(), DenseMapSource(values), [60])
    step = MapFormat().compress(DenseMapSource(values), [60])[0]["step"].float()[:, None]
    largest = values[0].max(-1, keepdim=True)
    ratio = (result[0] / result[0].gather(1, largest.indices)).log() - (values[0] / largest.values).log()
    assert (ratio.abs() <= 0.51 * step + 1e-5).all() and ratio.abs().max() > 0.4 * step.min()


def test_exact_maps_come_back_to_the_last_bit():
    values = make_maps([17, 6])
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(through(MapFormat("exact"), DenseMapSource(values.to(dtype)), [17, 6]), values.to(dtype))


@pytest.mark.parametrize("map_format", [MapFormat("exact"), MapFormat(), MapFormat(top_k=4)])
def test_a_map_is_the_same_alone_and_in_any_batch_and_by_blocks(map_format):
    sizes = [12, 31, 5]
    values = make_maps(sizes)
    together = through(map_format, DenseMapSource(values), sizes, units=40)
    for pair, size in enumerate(sizes):
        alone = through(map_format, DenseMapSource(values[pair : pair + 1, :size, :size].clone()), [size])
        torch.testing.assert_close(alone[0], together[pair, :size, :size], rtol=2e-6, atol=0)  # of the sums

    class ByBlocks(DenseMapSource):
        def blocks(self):
            yield from ((0, 7), (7, 8), (8, 31))

    assert torch.equal(through(map_format, ByBlocks(values), sizes, units=40), together)
    stored = map_format.compress(DenseMapSource(values), sizes)
    rows = map_format.expand(stored, 40, CPU)
    assert torch.equal(torch.cat([rows.rows(0, 3), rows.rows(3, 40)], 1), together)


def test_a_present_unit_without_weights_stays_present():
    values = make_maps([4])
    values[0, 1] = 0
    present = torch.tensor([[True, True, True, False]])
    for map_format in (MapFormat("exact"), MapFormat(), MapFormat(top_k=2)):
        assert not through(map_format, DenseMapSource(values, present), [4])[0, 1].any()


def test_extreme_rows_stay_finite():
    values = torch.zeros(1, 4, 4)
    values[0, 0] = torch.tensor([1.0, 1e-38, 1e-45, 0.0])
    values[0, 1] = torch.tensor([0.25, 0.25, 0.25, 0.25])
    values[0, 2] = torch.tensor([1e-40, 1e-40, 0.0, 0.0])
    values[0, 3] = torch.tensor([0.5, 0.5 + 1e-7, 1e-3, 1e-30])
    for map_format in (MapFormat(), MapFormat(top_k=2)):
        result = through(map_format, DenseMapSource(values), [4])[0]
        assert result.isfinite().all()
        torch.testing.assert_close(result.sum(-1), torch.tensor([1.0, 1.0, 0.0, 1.0]), atol=1e-3, rtol=0)
        torch.testing.assert_close(result[0], values[0, 0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("mask_part", [1.0, 0.5])
def test_loss_changes_by_less_than_the_steps_allow(mask_part):
    """With `|log(t'/t)| <= d` on every weight, `|KL(t'|s) - KL(t|s)| <= (e^d - 1) sum t |log(t/s)| + d e^d`."""
    teacher, student = make_maps([80], sharpness=1.0), make_maps([80], seed=1, sharpness=1.0)
    mask = torch.ones(1, 80, 80, dtype=torch.bool)
    mask[..., int(80 * mask_part) :] = False
    stored = through(MapFormat(), DenseMapSource(teacher), [80])
    before, after = (row_divergence(student, one, mask, "kl")[0] for one in (teacher, stored))
    step = (
        MapFormat().compress(DenseMapSource(teacher), [80])[0]["step"].float()
    )  # half a step a weight, half for the sum
    t, s = (one[0] * mask[0] / (one[0] * mask[0]).sum(-1, keepdim=True) for one in (teacher, student))
    spread = torch.where(t > 0, t * (t / s.clamp(min=1e-30)).log().abs(), 0).sum(-1)
    bound = torch.expm1(step) * spread + step * step.exp()
    difference = (after - before).abs()
    print(f"bound {bound.mean():.4f}, difference {difference.mean():.2e} of {before.mean():.3f} nats")
    assert (difference <= bound).all()
    # the loss is a mean over rows, and rounding goes both ways
    assert (after.mean() - before.mean()).abs() < 1e-3 * before.mean()


def test_top_k_is_nearer_the_more_it_keeps_and_beats_an_even_spread():
    sizes = [120]
    teacher = make_maps(sizes, sharpness=1.0)
    normal = teacher[0] / teacher[0].sum(-1, keepdim=True)
    differences, lengths = [], []
    for top_k in (8, 24, 72, None):
        map_format = MapFormat(top_k=top_k)
        stored = map_format.compress(DenseMapSource(teacher), sizes)
        lengths.append(len(save(stored[0])))
        rows = dense(map_format.expand(stored, 120, CPU))
        differences.append(float((rows[0] - normal).abs().sum(-1).mean()))
        if top_k == 24:
            is_kept = torch.zeros(120, 120).scatter(1, normal.topk(24).indices, 1.0).bool()
            rest = normal.masked_fill(is_kept, 0).sum(-1, keepdim=True)
            even = torch.where(is_kept, normal, rest / 96)
            assert differences[-1] < 0.8 * float((even - normal).abs().sum(-1).mean())
    assert differences == sorted(differences, reverse=True) and differences[-1] < 0.02
    assert lengths == sorted(lengths)


def test_sizes_equal_the_formula():
    """A map of n units: n * n codes and n steps; with top_k = k, n * k codes, n * n bits, and rest and tail."""
    stored = MapFormat().compress(DenseMapSource(make_maps([64])), [64])[0]
    assert sum(one.nbytes for one in stored.values()) == 64 * 64 + 2 * 64 + 64
    stored = MapFormat(top_k=16).compress(DenseMapSource(make_maps([64])), [64])[0]
    assert sum(one.nbytes for one in stored.values()) == 64 * 16 + 64 * 64 // 8 + 6 * 64 + 64
    assert NOT_KEPT not in stored["codes"]
