"""Pairs in one row: the states, rewards and gradients of two passes."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import STUDENT_FAMILIES, build_student
from support.training_runs import config, losses, weights
from trl import RewardConfig, RewardTrainer

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.interaction.prompt_sharing.packing import PackedPairs
from hf_interdistill.interaction.prompt_sharing.sharing import PromptSharing, unsupported_reason

PAD = 3
PAIRS = [([5, 6, 7, 8, 9], [5, 6, 7, 10]), ([5, 6], [5, 6, 11, 12, 13]), ([4, 5, 6], [4, 5, 6]), ([7], [8, 9])]


def rows_of(pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen rows, then rejected ones, padded on the right, as RewardTrainer collates them."""
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def prefix_size(chosen, rejected) -> int:
    size = 0
    while size < min(len(chosen), len(rejected)) and chosen[size] == rejected[size]:
        size += 1
    return size


token_rows = st.lists(st.integers(4, 7), min_size=1, max_size=8)


@given(st.lists(st.tuples(token_rows, token_rows), min_size=1, max_size=4))
def test_packed_rows_hold_each_token_once_and_see_what_their_own_row_shows(pairs):
    ids, mask = rows_of(pairs)
    packed = PackedPairs.from_rows(ids, mask)
    width = ids.shape[1]
    for pair, (chosen, rejected) in enumerate(pairs):
        common = prefix_size(chosen, rejected)
        expected = chosen + rejected[common:]
        size = len(expected)
        assert packed.input_ids[pair, :size].tolist() == expected
        positions = [*range(len(chosen)), *range(common, len(rejected))]
        assert packed.position_ids[pair, :size].tolist() == positions
        for side, row in enumerate((chosen, rejected)):
            token_index = packed.token_index[pair, side * width : side * width + len(row)]
            assert packed.input_ids[pair, token_index].tolist() == row
            assert packed.last_token_index[pair, side] == token_index[-1]
            for number, token in enumerate(token_index.tolist()):  # a token sees its own row up to itself, in order
                seen = packed.visible[pair, token].nonzero()[:, 0].tolist()
                assert seen == token_index[: number + 1].tolist()
    assert packed.input_ids.shape[1] == max(
        len(chosen) + len(rejected) - prefix_size(chosen, rejected) for chosen, rejected in pairs
    )


def reward_gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", list(STUDENT_FAMILIES))
def test_rewards_and_gradients_are_those_of_two_passes(family, attention):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("Gemma 2 has no sdpa in transformers: soft-capped scores")
    model = build_student(family, attention).double().eval()
    ids, mask = rows_of(PAIRS)
    sharing = PromptSharing(model, "true", torch.float64)
    plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    expected = reward_gradients(model, plain.sin().sum())
    shared = sharing.forward(model, sharing.pack(ids, mask), use_cache=False).logits
    torch.testing.assert_close(shared, plain, rtol=1e-9, atol=1e-9)
    gradients = reward_gradients(model, shared.sin().sum())
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        error = (value - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert error < 1e-5, name  # RMS norms compute in float32 whatever the model's dtype
    assert sharing.relative_reward_error(model, ids, mask) < 1


def test_a_model_that_ignores_the_mask_is_detected():
    model = build_student()
    sharing = PromptSharing(model, "auto", torch.float32)
    forward = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs)
    assert sharing.relative_reward_error(model, *rows_of(PAIRS)) > 10


def run(tmp_path, dataset, tokenizer, teacher, name, **changes):
    trainer = InteractionDistillationTrainer(
        changes.pop("student", None) or build_student(),
        config(tmp_path / name, **changes),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(6)),
        processing_class=tokenizer,
        teacher=teacher,
    )
    trainer.train()
    trainer.evaluate()
    return trainer


def lora():
    from peft import LoraConfig

    return LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj", "k_proj", "v_proj"], modules_to_save=["score"]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True, "student_layers": [0, -1], "teacher_layers": [0, -1]},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "alignment_scope": "inter"},
        {"center_rewards_coefficient": 0.01, "alignment_control": "shuffled"},
    ],
    ids=["plain", "checkpointing", "accumulation", "centering"],
)
def test_training_is_the_same_with_and_without_sharing(dataset, tmp_path, tokenizer, fitted_teacher, changes):
    dataset = dataset.add_column("margin", [0.1 * i for i in range(len(dataset))])
    fitted_teacher.interaction_layers = 3
    runs = [
        run(tmp_path, dataset, tokenizer, fitted_teacher, choice, share_prompt=choice, **changes)
        for choice in ("true", "false")
    ]
    for key in (
        "loss",
        "interaction/loss",
        "interaction/inter",
        "accuracy",
        "num_tokens",
        "eval_loss",
        "eval_accuracy",
    ):
        assert losses(runs[0], key) == pytest.approx(losses(runs[1], key), rel=2e-3, abs=1e-5), key
    for name, value in weights(runs[1]).items():
        torch.testing.assert_close(weights(runs[0])[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_training_with_an_adapter_is_the_same(dataset, tmp_path, tokenizer, fitted_teacher):
    from peft import get_peft_model
    from transformers import set_seed

    runs = []
    for choice in ("true", "false"):
        student = build_student()
        set_seed(0)
        student = get_peft_model(student, lora())
        runs.append(run(tmp_path, dataset, tokenizer, fitted_teacher, choice, share_prompt=choice, student=student))
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-4)
    for name, value in weights(runs[1]).items():
        torch.testing.assert_close(weights(runs[0])[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_a_plain_reward_model_can_share_prompts_too(dataset, tmp_path, tokenizer):
    ours = run(tmp_path, dataset, tokenizer, None, "ours", alignment_weight=0, share_prompt=True)
    args = {
        field: getattr(ours.args, field) for field in ("max_steps", "learning_rate", "per_device_train_batch_size")
    }
    theirs = RewardTrainer(
        build_student(),
        RewardConfig(
            output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", logging_steps=1, **args
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)


def count_rows(trainer) -> dict[bool, list[int]]:
    """Rows of each forward pass of training, and of those in evaluation mode (checks, the untrained student)."""
    seen = {True: [], False: []}

    def count(module, args, kwargs):
        seen[module.training].append(kwargs["input_ids"].shape[0])

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    return seen


@pytest.mark.parametrize(
    ("choice", "weight", "expected"),
    [("auto", 0.1, 4), ("true", 0.1, 4), ("false", 0.1, 8), ("auto", 0, 8), ("true", 0, 4)],
)
def test_choices(dataset, tmp_path, tokenizer, fitted_teacher, choice, weight, expected):
    trainer = InteractionDistillationTrainer(
        build_student(),
        config(tmp_path, max_steps=2, share_prompt=choice, alignment_weight=weight, gradient_checkpointing=False),
        train_dataset=dataset,
        processing_class=tokenizer,
        teacher=fitted_teacher if weight else None,
    )
    seen = count_rows(trainer)
    assert seen[True] == [expected, expected]
    assert expected == 8 or {4, 8} <= set(seen[False])  # the first batch runs both ways


def test_auto_makes_two_passes_where_little_is_shared_or_the_window_is_short():
    model = build_student("mistral")  # sliding window of 16 tokens
    auto, always = (PromptSharing(model, choice, torch.float32) for choice in ("auto", "true"))
    different = rows_of([([4] * 8, [5] * 8)])
    assert auto.pack(*different) is None
    assert always.pack(*different).input_ids.shape == (1, 16)
    long = rows_of([([4] * 30, [4] * 29 + [5])])
    assert auto.pack(*long) is None
    with pytest.raises(ValueError, match="30 tokens is longer than the model's attention window of 16"):
        always.pack(*long)


def test_reasons(dataset, tmp_path, tokenizer, fitted_teacher, caplog):
    model = build_student()
    assert unsupported_reason(model) is None
    model.config._attn_implementation = "paged|sdpa"
    assert "paged|sdpa" in unsupported_reason(model)
    with pytest.raises(ValueError, match="cannot process a pair in one row: its attention implementation"):
        PromptSharing(model, "true", torch.float32)
    named_otherwise = build_student()
    named_otherwise.config.layers_block_type = ["mamba", "attention", "mamba"]
    named_otherwise.config.layer_types = None
    assert "layers of mamba, which" in unsupported_reason(named_otherwise)
    hybrid = build_student()
    hybrid.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert "linear_attention" in unsupported_reason(hybrid)
    with caplog.at_level(logging.INFO):
        trainer = InteractionDistillationTrainer(
            hybrid,
            config(tmp_path, max_steps=1),
            train_dataset=dataset,
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
    assert "Each pair takes two passes instead of one" in caplog.text
    assert trainer._sharing.disabled_reason is not None


def test_a_choice_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`share_prompt` is 'perhaps', but must be one of auto, true, false"):
        config(tmp_path, share_prompt="perhaps")
