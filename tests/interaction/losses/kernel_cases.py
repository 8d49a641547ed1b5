"""The Triton kernels against plain loops and against the path in torch.

On a GPU as they are compiled; elsewhere `TRITON_INTERPRET=1` must be set, which makes them Python on the CPU:
`test_kernels.py` runs this file in a process of its own. Tiles and chunks are small, so that there are several.
"""

from __future__ import annotations

import logging

import pytest
import torch
from datasets import Dataset
from support.maps import make_case, oracle_loss, oracle_map, tokens_of
from support.models import build_student
from support.training_runs import config
from torch.utils._python_dispatch import TorchDispatchMode
from triton.errors import TritonError

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction.attention.map_sources import DenseMapSource, RecordedMapSource
from hf_interdistill.interaction.attention.maps import AttentionMap, UnitTokens
from hf_interdistill.interaction.attention.recorder import RecordedAttention
from hf_interdistill.interaction.losses.alignment import alignment_loss
from hf_interdistill.interaction.losses.triton import fused
from hf_interdistill.interaction.losses.triton import self_check as kernel_check

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = (1, 1, 1, 3, [[(0, 1)]])
GROUPED = (2, 4, 2, 5, [[(0, 2), (0, 1), (1, 3), (2, 1), (2, 2)], [(0, 1), (1, 1), (2, 4)]])
SEVERAL_TILES = (1, 2, 1, 20, [[(0, 3), (0, 1), (0, 9), (1, 2), (1, 11), (1, 1), (2, 7), (2, 2)]])
CASES = [  # shape, precision, loss, scope, soft cap
    (SMALL, torch.float32, "kl", "joint", None),
    (GROUPED, torch.float32, "kl", "joint", 0.7),
    (GROUPED, torch.float32, "mse", "inter", None),
    (GROUPED, torch.float16, "kl", "intra", None),
    (GROUPED, torch.bfloat16, "mse", "intra", 0.7),
    (GROUPED, torch.bfloat16, "mse", "joint", None),
    (SEVERAL_TILES, torch.float32, "kl", "intra", None),
    (SEVERAL_TILES, torch.bfloat16, "kl", "inter", None),
]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # of a gradient's norm


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(fused, "choose_tiles", lambda dtype, width: fused.Tiles(16, 16, 4))
    monkeypatch.setattr(fused, "_POOL_COLUMNS", 16)
    monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", 100)
    monkeypatch.setattr(kernel_check, "_check_results", Verified())  # or every loss is computed twice


class Verified(dict):
    def __contains__(self, kind):
        return True

    def __missing__(self, kind):
        return None


def align(states, token_units, segments, teacher, softcap=None, **options):
    """The loss, and the gradients of three times the loss."""
    leaves = [tensor.detach().clone().to(DEVICE).requires_grad_() for tensor in states]
    tokens = tokens_of(token_units.to(DEVICE), segments.shape[1])
    attention = AttentionMap(*leaves, tokens, 0.6, softcap)
    result = alignment_loss(attention, teacher, segments.to(DEVICE), **options)
    (3 * result.loss).backward()
    return result, [leaf.grad for leaf in leaves]


def assert_near(own, other, tolerance):
    own, other = own.double().cpu(), other.double().cpu()
    assert (own - other).norm() <= tolerance * other.norm() + 1e-9, (own - other).norm() / other.norm()


@pytest.mark.parametrize(("shape", "dtype", "loss", "scope", "softcap"), CASES)
def test_loss_and_gradients_equal_loops_and_torch(shape, dtype, loss, scope, softcap, monkeypatch):
    if shape is SEVERAL_TILES:
        monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", 500)
    query, key, token_units, segments, teacher = make_case(shape)
    states, count = (query.to(dtype), key.to(dtype)), segments.shape[1]
    rows, options = DenseMapSource(teacher.float().to(DEVICE)), {"loss": loss, "scope": scope}
    result, gradients = align(states, token_units, segments, rows, softcap, kernel="triton", **options)

    in_torch, in_torch_gradients = align(states, token_units, segments, rows, softcap, kernel="torch", **options)
    leaves = [tensor.double().requires_grad_() for tensor in states]
    student = oracle_map(*leaves, token_units, count, 0.6, softcap)
    for name, value in result.by_scope.items():
        expected = oracle_loss(student, teacher, segments, segments >= 0, loss, name).detach()
        assert_near(value, in_torch.by_scope[name], 1e-5)
        torch.testing.assert_close(value.double().cpu(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.divergences, in_torch.divergences, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.loss, result.by_scope[scope])
    expected = oracle_loss(student, teacher, segments, segments >= 0, loss, scope)
    by_loops = torch.autograd.grad(3 * expected, leaves)
    for own, other, exact in zip(gradients, in_torch_gradients, by_loops, strict=True):
        assert own.dtype == dtype
        assert_near(own, other, TOLERANCE[dtype])
        assert_near(own, exact, TOLERANCE[dtype])


def test_rows_of_a_uniform_teacher_explain_nothing():
    query, key, token_units, segments, teacher = make_case(GROUPED, dtype=torch.float32)
    teacher[0, :2, segments[0] >= 0] = 0.2
    rows, results = DenseMapSource(teacher.to(DEVICE)), {}
    for kernel in ("triton", "torch"):
        results[kernel], _ = align((query, key), token_units, segments, rows, kernel=kernel)
    torch.testing.assert_close(results["triton"].divergences, results["torch"].divergences, rtol=1e-4, atol=1e-6)
    others, _ = align((query, key), token_units, segments, rows, kernel="triton", query_mask=rows_from(2, segments))
    assert others.divergences[1, 0] > results["triton"].divergences[1, 0]


def rows_from(start, segments):
    """All rows of every pair but the first `start` of the first one."""
    mask = torch.ones_like(segments, dtype=torch.bool, device=DEVICE)
    mask[0, :start] = False
    return mask


def test_query_mask():
    query, key, token_units, segments, teacher = make_case(GROUPED, dtype=torch.float32)
    query_mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool, device=DEVICE)
    rows, options = DenseMapSource(teacher.to(DEVICE)), {"query_mask": query_mask, "scope": "inter"}
    result, gradients = align((query, key), token_units, segments, rows, kernel="triton", **options)
    in_torch, others = align((query, key), token_units, segments, rows, kernel="torch", **options)
    assert_near(result.loss, in_torch.loss, 1e-5)
    for own, other in zip(gradients, others, strict=True):
        assert_near(own, other, TOLERANCE[torch.float32])


def test_padding_and_pairs_with_nothing_to_align():
    query, key, token_units, segments, teacher = make_case(GROUPED, dtype=torch.float32)
    token_units[1] = -1
    pad = torch.nn.functional.pad
    wide = [pad(states, (0, 0, 0, 3), value=9.0) for states in (query, key)]
    rows, wide_rows = DenseMapSource(teacher.to(DEVICE)), DenseMapSource(pad(teacher, (0, 2, 0, 2)).to(DEVICE))
    wide_units, wide_segments = pad(token_units, (0, 3), value=-1), pad(segments, (0, 2), value=-1)
    result, gradients = align((query, key), token_units, segments, rows, kernel="torch")
    padded, wide_gradients = align(wide, wide_units, wide_segments, wide_rows, kernel="triton")
    assert padded.aligned_pairs.tolist() == [True, False]
    assert_near(padded.loss, result.loss, 1e-5)
    for own, other in zip(wide_gradients, gradients, strict=True):
        assert not own[1].any() and not own[:, :, query.shape[2] :].any()
        assert_near(own[:, :, : query.shape[2]], other, 2e-5)


@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_extreme_scores(scale):
    """Of large ones, the gradients are those of rounding: scores that are worked out twice differ in it on a GPU."""
    query, key, token_units, segments, teacher = make_case(GROUPED, dtype=torch.float32)
    states, rows = (query * scale, key * scale), DenseMapSource(teacher.to(DEVICE))
    result, gradients = align(states, token_units, segments, rows, kernel="triton")
    in_torch, expected = align(states, token_units, segments, rows, kernel="torch")
    assert_near(result.loss, in_torch.loss, 1e-4)
    largest = 0.6 * states[0].norm(dim=-1).max() * states[1].norm(dim=-1).max()
    rounding = torch.finfo(torch.float32).eps * largest * max(state.norm() for state in states)
    for own, other in zip(gradients, expected, strict=True):
        assert torch.isfinite(own).all()
        assert (own - other).norm() <= 1e-3 * other.norm() + rounding


def test_teachers_recorded_layer():
    """Keys in reading order, some of no unit, some masked; other tokens than the student's."""
    query, key, token_units, segments, _ = make_case(GROUPED, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    states = [torch.randn(2, heads, 21, 4, generator=generator).to(DEVICE) for heads in (3, 1)]
    units = torch.tensor([[-1, 2, 0, 0, 1, -1, 4, 4, 3] + [4] * 12, [-1, 0, -1, 1, 1, 2, -1, 2, -1] + [-1] * 12])
    mask = torch.ones_like(units, dtype=torch.bool)
    mask[1, 8:] = False
    tokens = UnitTokens.from_units(units.to(DEVICE), mask.to(DEVICE), 5)
    source = RecordedMapSource(RecordedAttention(*states, 0.5), tokens)
    found = torch.cat([fused._FusedMapSource(source).rows(0, 2), fused._FusedMapSource(source).rows(2, 5)], 1)
    torch.testing.assert_close(found, source.rows(0, 5))
    result, gradients = align((query, key), token_units, segments, source, kernel="triton")
    in_torch, expected = align((query, key), token_units, segments, source, kernel="torch")
    assert_near(result.loss, in_torch.loss, 1e-5)
    for own, other in zip(gradients, expected, strict=True):
        assert_near(own, other, 2e-5)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_memory_is_linear_in_tokens(monkeypatch):
    monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", 1024)

    def largest(size):
        case = make_case((1, 4, 4, 2, [[(0, size), (1, size), (2, size)]]), dtype=torch.float32)
        with Largest() as mode:
            align(case[:2], case[2], case[3], DenseMapSource(case[4].to(DEVICE)), kernel="triton")
        return mode.numbers

    assert largest(16) <= 2 * largest(8)


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch, caplog):
    query, key, token_units, segments, teacher = make_case(SMALL, dtype=torch.float32)
    segments[:] = 1
    right = fused.fused_loss_and_gradients

    def wrong(*arguments):
        values, gradients = right(*arguments)
        return values + 0.1, gradients

    def broken(*arguments):
        raise TritonError("out of registers")

    monkeypatch.setattr("hf_interdistill.interaction.losses.alignment.should_use_triton", lambda *arguments: True)
    calls = (query, key), token_units, segments, DenseMapSource(teacher.to(DEVICE))
    for function, message in ((wrong, "the kernels' losses"), (broken, "could not run a kernel .*out of registers")):
        monkeypatch.setattr(fused, "fused_loss_and_gradients", function)
        monkeypatch.setattr(kernel_check, "_check_results", {})
        with pytest.raises(ValueError, match=message):
            align(*calls, kernel="triton")
        with caplog.at_level(logging.WARNING):
            results = [align(*calls, kernel="auto")[0] for _ in range(2)]
        assert [float(result.loss.detach()) for result in results] == [0, 0]
        assert sum(message.split()[0] in record.message for record in caplog.records) == 1
        caplog.clear()


def test_wrong_gradients_are_noticed(monkeypatch):
    query, key, token_units, segments, teacher = make_case(GROUPED, dtype=torch.float32)
    right = fused.fused_loss_and_gradients

    def wrong(*arguments):
        values, (query_gradient, key_gradient) = right(*arguments)
        return values, (query_gradient, 1.1 * key_gradient)

    monkeypatch.setattr(fused, "fused_loss_and_gradients", wrong)
    monkeypatch.setattr(kernel_check, "_check_results", {})
    with pytest.raises(ValueError, match=r"gradient of the keys differs by 0\.1 from torch's"):
        align((query, key), token_units, segments, DenseMapSource(teacher.to(DEVICE)), kernel="triton")


def test_training_by_kernels_is_training_in_torch(tmp_path, tokenizer, fitted_teacher, monkeypatch):
    monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", 1 << 20)
    used, right = [], fused.fused_loss_and_gradients

    def counted(*arguments):
        used.append(1)
        return right(*arguments)

    monkeypatch.setattr(fused, "fused_loss_and_gradients", counted)
    data = Dataset.from_list([{"prompt": "Why?", "chosen": " So it is.", "rejected": " No."}] * 2)
    logs = {}
    for kernel in ("torch", "triton"):
        trainer = InteractionDistillationTrainer(
            build_student(),
            config(
                tmp_path, max_steps=2, per_device_train_batch_size=1, alignment_kernel=kernel, use_cpu=DEVICE == "cpu"
            ),
            train_dataset=data,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
        trainer.train()
        logs[kernel] = [entry["interaction/loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(used) == 4 and logs["torch"][0] != logs["torch"][1]
    assert logs["triton"] == pytest.approx(logs["torch"], rel=1e-4)
