"""LoRA members of an ensemble that share one base model: one pass, and the rewards of separate models."""

from __future__ import annotations

import peft
import pytest
import torch
from support.models import build_student
from support.tokenizers import tokenizer_of
from transformers import AutoModelForSequenceClassification

from hf_interdistill import RewardEnsemble, RewardScorer
from hf_interdistill.scoring.members import AdapterScorer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = [f"It is {'very ' * (n % 5)}likely number {n}." for n in range(7)]
PROMPTS = [QUESTION] * len(ANSWERS)


def save_adapter(folder, base, seed: int, **changes) -> str:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = {"task_type": "SEQ_CLS", "r": 2 + seed, "target_modules": ["q_proj", "down_proj"], **changes}
    model = peft.get_peft_model(model, peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=1.0 if "score" in name else 0.3, generator=generator)
    model.save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_student().save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [save_adapter(root / f"lora{seed}", base, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def alone(adapters) -> torch.Tensor:
    return torch.tensor([RewardScorer.from_pretrained(each)(PROMPTS, ANSWERS) for each in adapters])


def test_one_base_model_gives_the_rewards_of_separate_ones(adapters, alone):
    ensemble = RewardEnsemble.from_pretrained(adapters, batch_size=64)
    passes = []
    ensemble.members[0].model.register_forward_pre_hook(lambda *args: passes.append(1))
    rows = ensemble.encode_rows(PROMPTS, ANSWERS)
    ensemble.members[0].padding_side  # noqa: B018  # measured by passes of its own
    passes.clear()
    assert torch.allclose(ensemble.member_rewards(rows), alone, atol=1e-5)
    assert len(passes) == 1 == ensemble.last_forward_passes
    assert ensemble.last_token_counts == [3 * len(row) for row in rows]
    assert len({id(member.model) for member in ensemble.members}) == 1
    assert (alone.std(0) > 0.01).all()  # they do differ
    for small in (1, 4):
        ensemble.batch_size = small
        assert torch.allclose(ensemble.member_rewards(rows), alone, atol=1e-5)
    for member, wanted in zip(ensemble.members, alone, strict=True):  # each is a scorer by itself
        assert member(PROMPTS, ANSWERS) == pytest.approx(wanted.tolist(), abs=1e-5)


def test_the_base_model_is_loaded_once(adapters, base, monkeypatch):
    loaded = []
    load = AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained", lambda *a, **k: loaded.append(a) or load(*a, **k)
    )
    ensemble = RewardEnsemble.from_pretrained(adapters)
    assert loaded == [(base,)]
    assert sum(p.numel() for n, p in ensemble.members[0].model.named_parameters() if "embed_tokens" in n) == 900 * 32


def test_members_stay_in_their_order_beside_full_models(adapters, base, alone, tmp_path):
    build_student(seed=9).save_pretrained(tmp_path)
    tokenizer_of("bytes").save_pretrained(tmp_path)
    full = torch.tensor(RewardScorer.from_pretrained(str(tmp_path))(PROMPTS, ANSWERS))
    ensemble = RewardEnsemble.from_pretrained([adapters[2], str(tmp_path), adapters[0]])
    found = ensemble.member_rewards(ensemble.encode_rows(PROMPTS, ANSWERS))
    assert torch.allclose(found, torch.stack([alone[2], full, alone[0]]), atol=1e-5)
    assert [isinstance(member, AdapterScorer) for member in ensemble.members] == [True, False, True]


@pytest.mark.parametrize(
    "changes",
    [
        *({"use_rslora": True, "lora_alpha": 3}, {"lora_bias": True}, {"rank_pattern": {"down_proj": 1}}),
        *({"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal", "r": 4}),
    ],
)
def test_adapters_that_leave_their_base_as_it_is_share_it(base, tmp_path, changes):
    names = [save_adapter(tmp_path / f"lora{seed}", base, seed, **changes) for seed in range(2)]
    each = torch.tensor([RewardScorer.from_pretrained(name)(PROMPTS, ANSWERS) for name in names])
    ensemble = RewardEnsemble.from_pretrained(names)
    assert ensemble.members[0].model is ensemble.members[1].model
    assert torch.allclose(ensemble.member_rewards(ensemble.encode_rows(PROMPTS, ANSWERS)), each, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        *({"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}),
        {"layer_replication": [(0, 2), (1, 3)]},
    ],
)
def test_adapters_that_change_their_base_have_one_each(adapters, base, alone, tmp_path, changes):
    names = [save_adapter(tmp_path / f"lora{seed}", base, seed, **changes) for seed in range(2)]
    each = torch.tensor([RewardScorer.from_pretrained(name)(PROMPTS, ANSWERS) for name in names])
    ensemble = RewardEnsemble.from_pretrained([names[0], adapters[0], names[1], adapters[1]])
    wanted = torch.stack([each[0], alone[0], each[1], alone[1]])
    assert torch.allclose(ensemble.member_rewards(ensemble.encode_rows(PROMPTS, ANSWERS)), wanted, atol=1e-5)
    assert [isinstance(member, AdapterScorer) for member in ensemble.members] == [False, True, False, True]


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["norm"]}])
def test_other_adapters_are_read_alone(adapters, base, alone, tmp_path, changes):
    other = save_adapter(tmp_path, base, 7, **changes)
    own = torch.tensor(RewardScorer.from_pretrained(other)(PROMPTS, ANSWERS))
    ensemble = RewardEnsemble.from_pretrained([*adapters[:2], other])
    assert not isinstance(ensemble.members[2], AdapterScorer)
    found = ensemble.member_rewards(ensemble.encode_rows(PROMPTS, ANSWERS))
    assert torch.allclose(found, torch.stack([alone[0], alone[1], own]), atol=1e-5)


def test_an_adapter_that_lacks_weights_is_named(adapters, base, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = save_adapter(tmp_path / "broken", base, 5)
    weights = load_file(f"{broken}/adapter_model.safetensors")
    weights.pop(next(name for name in weights if "layers.1" in name and "lora_B" in name))
    save_file(weights, f"{broken}/adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"broken holds only a part.*layers\.1.*lora_B"):
        RewardEnsemble.from_pretrained([adapters[0], broken])
