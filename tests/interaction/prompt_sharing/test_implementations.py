"""Flash and flex attention on packed rows: rewards and gradients of rows of their own.

Flash attention's kernel is replaced by plain torch (there is no GPU); flex attention is torch's own, not compiled.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.attention_stand_ins import CALLS, use_flash, use_flex
from support.models import STUDENT_FAMILIES, build_student
from support.training_runs import config, losses
from transformers import AttentionInterface
from transformers import modeling_flash_attention_utils as flash

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction.prompt_sharing.implementations import FlashLayout, accept_layouts
from hf_interdistill.interaction.prompt_sharing.packing import PackedPairs
from hf_interdistill.interaction.prompt_sharing.sharing import PromptSharing, sliding_window, unsupported_reason

PAD = 3
# Common openings of the responses, nothing in common, equal rows, one inside the other; a row of 200 tokens is more
# than a block of flex attention's mask.
PAIRS = [
    ([5, 6, 7, 8, 9], [5, 6, 7, 10]),
    ([5, 6], [5, 6, 11, 12, 13]),
    ([4, 5, 6], [4, 5, 6]),
    ([7], [8, 9]),
    ([*range(4, 104), 5, 5], [*range(4, 94), 9, *range(4, 110)]),
]
USE = {"flash": use_flash, "flex": use_flex}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))


def rows_of(pairs, responses=2):
    rows = [pair[side] for side in range(responses) for pair in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


IS_OLD = not hasattr(flash, "_flash_with_kvcache_fn")  # transformers 5.1
CASES = [(family, name, False) for family in STUDENT_FAMILIES for name in USE]
CASES += [("llama", name, True) for name in USE]


@pytest.mark.parametrize(("family", "name", "is_checkpointed"), CASES)
def test_rewards_and_gradients_are_those_of_rows_of_their_own(family, name, is_checkpointed, monkeypatch):
    model = build_student(family, "eager").double()
    pairs = PAIRS if sliding_window(model) is None else PAIRS[:-1]  # the last is longer than the windows
    ids, mask = rows_of(pairs)
    plain = model.eval()(input_ids=ids, attention_mask=mask, use_cache=False).logits
    expected = gradients_of(model, plain.sin().sum())
    USE[name](monkeypatch, model)
    assert unsupported_reason(model) is None
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # there is no dropout
    sharing = PromptSharing(model, "true", torch.float64)
    if name == "flash" and family in ("gpt2", "gpt_neox") and IS_OLD:  # they keep what their attention should get
        with pytest.raises(ValueError, match="gives different rewards for a pair in one row and in two rows"):
            sharing.verify_once(model, ids, mask)
        return
    shared = sharing.forward(model, sharing.pack(ids, mask), use_cache=False).logits
    torch.testing.assert_close(shared, plain, rtol=1e-6, atol=1e-6)
    gradients = gradients_of(model, shared.sin().sum())
    assert gradients.keys() == expected.keys()
    for key, value in gradients.items():
        error = (value - expected[key]).norm() / expected[key].norm().clamp(min=1e-12)
        assert error < 1e-5, key
    assert sharing.relative_reward_error(model.eval(), ids, mask) < 1
    if name == "flash":  # without the padding; prefixes once, responses with the prefix's keys
        queries, keys = CALLS[0]
        assert queries == [3, 2, 1, 2, 3, 3, 1, 2, 90, 12, 107][: 3 * len(pairs) - 4]
        assert keys == [3, 5, 4, 2, 5, 3, 1, 2, 90, 102, 197][: 3 * len(pairs) - 4]


@pytest.mark.parametrize("name", list(USE))
def test_more_responses_than_two(name, monkeypatch):
    model = build_student("qwen3", "eager").double().eval()
    ids, mask = rows_of([([5, 6, 7], [5, 6, 8, 9], [5, 6, 7, 7, 7]), ([4, 5], [4, 6], [4])], 3)
    plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    USE[name](monkeypatch, model)
    sharing = PromptSharing(model, "true", torch.float64)
    shared = sharing.forward(model, sharing.pack(ids, mask, 3), use_cache=False).logits
    torch.testing.assert_close(shared, plain, rtol=1e-6, atol=1e-6)


token_rows = st.lists(st.integers(4, 6), min_size=1, max_size=7)


@given(st.lists(st.tuples(token_rows, token_rows, token_rows), min_size=1, max_size=3))
def test_a_layout_has_each_token_once_and_shows_it_its_own_row(pairs):
    packed = PackedPairs.from_rows(*rows_of(pairs, 3), responses=3)
    layout = FlashLayout.of(packed)
    assert sorted(layout.queries.tolist()) == (packed.owner.flatten() >= 0).nonzero()[:, 0].tolist()
    width = packed.input_ids.shape[1]
    starts = [layout.query_starts.tolist(), layout.key_starts.tolist()]
    for (first, last), (first_key, last_key) in zip(*map(pairwise, starts), strict=True):
        queries, keys = layout.queries[first:last].tolist(), layout.keys[first_key:last_key].tolist()
        assert 0 < len(queries) <= layout.longest_query and len(keys) <= layout.longest_key
        for number, place in enumerate(queries):
            pair, token = divmod(place, width)
            seen = packed.visible[pair, token].nonzero()[:, 0] + pair * width
            assert seen.tolist() == keys[: len(keys) - len(queries) + number + 1]


def test_flash_attention_without_packed_rows_is_left_as_it_is(monkeypatch):
    model = build_student("llama", "eager").double().eval()
    ids, mask = rows_of(PAIRS)
    use_flash(monkeypatch, model)
    plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for _ in range(2):
        accept_layouts("flash_attention_2")
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, plain)
    before = AttentionInterface._global_mapping.get("sdpa")
    accept_layouts("sdpa")
    assert AttentionInterface._global_mapping.get("sdpa") is before


def test_what_flash_attention_needs(monkeypatch):
    model = build_student("llama", "eager")
    use_flash(monkeypatch, model)
    assert unsupported_reason(model) is None
    forward = type(model.model).forward
    monkeypatch.setattr(
        type(model.model), "forward", lambda self, input_ids, attention_mask=None, position_ids=None: None
    )
    assert "passes no arguments on to its attention function" in unsupported_reason(model)
    monkeypatch.setattr(type(model.model), "forward", forward)
    monkeypatch.setattr("transformers.modeling_flash_attention_utils.flash_attn_supports_top_left_mask", lambda: True)
    assert "aligns causal masks at the top left" in unsupported_reason(model)
    model.config._attn_implementation = "paged|sdpa"
    assert "its attention implementation is 'paged|sdpa', but must be one of sdpa, eager, flex" in unsupported_reason(
        model
    )


def test_a_kernel_with_another_alignment_is_found_out(monkeypatch):
    """The first batch is read both ways, whatever the kernel does."""
    model = build_student("llama", "eager")
    use_flash(monkeypatch, model)
    sharing = PromptSharing(model, "auto", torch.float32)
    rows = rows_of(PAIRS)
    assert sharing.relative_reward_error(model, *rows) < 1
    (plain, varlen, *others), processes = flash.lazy_import_flash_attention("")

    def at_the_top_left(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
        """Of a segment that is shorter than its keys, a token sees as many keys as it would without the others."""
        lengths = [each.diff().tolist() for each in (cu_seqlens_q, cu_seqlens_k)]
        seen = [
            torch.cat([part[:size] for part, size in zip(each.split(lengths[1]), lengths[0], strict=True)])
            for each in (k, v)
        ]
        return varlen(q, *seen, cu_seqlens_q, cu_seqlens_q, **{**options, "max_seqlen_k": options["max_seqlen_q"]})

    functions = (plain, at_the_top_left, *others)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda name: (functions, processes))
    assert sharing.relative_reward_error(model, *rows) > 10


def test_a_model_file_that_cannot_take_a_block_mask_makes_two_passes(monkeypatch, caplog):
    model = build_student("llama", "eager")
    use_flex(monkeypatch, model)
    forward = model.model.forward

    def own_way(*args, attention_mask=None, position_ids=None, **kwargs):
        assert attention_mask is not None
        return forward(*args, attention_mask=attention_mask.bool(), position_ids=position_ids, **kwargs)

    model.model.forward = own_way
    rows = rows_of([([5, 6, 7, 8, 9], [5, 6, 7, 8, 10])])
    sharing = PromptSharing(model, "auto", torch.float32)
    assert sharing.pack(*rows) is not None
    sharing.verify_once(model, *rows)
    assert sharing.pack(*rows) is None
    assert "cannot read a pair in one row (AttributeError: 'BlockMask' object has no" in caplog.text
    with pytest.raises(AttributeError):
        PromptSharing(model, "true", torch.float32).verify_once(model, *rows)


@pytest.mark.slow
def test_compiled_flex_attention_gives_the_rewards_of_rows_of_their_own():
    """As it is, compiled by torch for this processor, without gradients: torch has none there."""
    model = build_student("llama", "eager").eval()
    ids, mask = rows_of(PAIRS)
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "_attn_implementation"):
                module.config._attn_implementation = "flex_attention"
        sharing = PromptSharing(model, "true", torch.float32)
        shared = sharing.forward(model, sharing.pack(ids, mask), use_cache=False).logits
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(USE))
def test_training_with_alignment_is_that_of_two_passes(
    dataset, tmp_path, tokenizer, fitted_teacher, name, monkeypatch
):
    """Queries and keys are recorded of the packed row; the recorder stands between the model and the kernel."""
    runs = {}
    for choice, implementation in (("false", None), ("true", name)):
        model = build_student()
        if implementation is not None:
            USE[implementation](monkeypatch, model)
        trainer = InteractionDistillationTrainer(
            model,
            config(tmp_path / choice, share_prompt=choice, gradient_checkpointing=True),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
        trainer.train()
        runs[choice] = losses(trainer), trainer._sharing.disabled_reason
    assert runs["true"][1] is None
    assert runs["true"][0] == pytest.approx(runs["false"][0], rel=1e-4)
