"""PPO sees the rewards that `RewardScorer` gives, and trains its value model from the reward model."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from datasets import Dataset
from support.models import STUDENT_FAMILIES, build_student
from support.rl import needs_ppo, save_reward_model
from support.tokenizers import tokenizer_of
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from hf_interdistill import RewardEnsemble, RewardScorer, ppo_reward_model, ppo_value_model

QUESTIONS = ["How do I bake bread?", "Why is the sky blue?", "Tell me", "What is a piano?"]


def left_padding(kind: str):
    tokenizer = tokenizer_of(kind)
    tokenizer.padding_side = "left"
    return tokenizer


def build_policy(tokenizer):
    """A random policy that ends about half of its texts early."""
    set_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**STUDENT_FAMILIES["llama"], tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
        model.lm_head.weight[tokenizer.eos_token_id] *= 12.0
    return model


def build_queries(tokenizer, is_chat: bool) -> tuple[Dataset, dict]:
    """PPO's dataset, and the prompt behind each query's token ids."""
    prompts = {}
    for question in QUESTIONS:
        if not is_chat:
            prompts[tuple(tokenizer(question)["input_ids"])] = question
            continue
        messages = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": question},
        ]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts[tuple(tokenizer(text, add_special_tokens=False)["input_ids"])] = messages
    return Dataset.from_list([{"input_ids": list(ids)} for ids in prompts] * 4), prompts


def train(tmp_path, monkeypatch, reward_model, value_model, tokenizer, is_chat) -> tuple[list, dict]:
    """Three steps of PPO; every (query, answer, score) that PPO saw, and the prompts."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    queries, prompts = build_queries(tokenizer, is_chat)
    seen, original = [], ppo_trainer.get_reward

    def recording(model, query_responses, pad, context_length):
        result = original(model, query_responses, pad, context_length)
        if model is reward_model:
            for row, score in zip(query_responses.tolist(), result[1].tolist(), strict=True):
                query, answer = row[:context_length], row[context_length:]
                answer = answer[: answer.index(pad)] if pad in answer else answer
                seen.append((tuple(token for token in query if token != pad), answer, score))
        return result

    monkeypatch.setattr(ppo_trainer, "get_reward", recording)
    args = PPOConfig(
        output_dir=str(tmp_path / "ppo"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        total_episodes=24,
        num_ppo_epochs=2,
        response_length=12,
        stop_token="eos",
        temperature=1.0,
        learning_rate=1e-3,
        num_sample_generations=0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
    )
    trainer = PPOTrainer(
        args,
        tokenizer,
        build_policy(tokenizer),
        None,
        reward_model,
        queries,
        value_model,
        eval_dataset=queries.select(range(4)),
    )
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        name
        for name, weight in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        if not torch.equal(weight, before[name])
    }
    return seen, prompts, changed


@needs_ppo
@pytest.mark.parametrize("is_adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("kind", "is_chat"), [("bytes", False), ("bytes", True), ("metaspace", False)])
def test_ppo_sees_the_rewards_of_the_scorer(tmp_path, monkeypatch, kind, is_chat, is_adapter):
    path, tokenizer = save_reward_model(tmp_path, kind, is_adapter), left_padding(kind)
    scorer = RewardScorer.from_pretrained(path)
    frozen = {name: weight.clone() for name, weight in scorer.model.state_dict().items()}
    reward_model, value_model = ppo_reward_model(scorer, tokenizer), ppo_value_model(path, tokenizer)
    seen, prompts, changed = train(tmp_path, monkeypatch, reward_model, value_model, tokenizer, is_chat)
    assert len(seen) == 24
    ended = [answer[-1:] == [tokenizer.eos_token_id] for _, answer, _ in seen]
    assert 0 < sum(ended) < 24  # both kinds of answers are there
    texts = []
    for query, answer, _ in seen:
        ids = answer[:-1] if answer[-1:] == [tokenizer.eos_token_id] else answer
        if is_chat:
            texts.append(tokenizer.decode(ids))
        else:  # the words of prompt and answer may share a space
            texts.append(tokenizer.decode([*query, *ids])[len(prompts[query]) :])
    expected = RewardScorer.from_pretrained(path)([prompts[query] for query, _, _ in seen], texts)
    assert [score for _, _, score in seen] == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected}) > 12
    assert all(torch.equal(frozen[name], weight) for name, weight in scorer.model.state_dict().items())
    values = {name for name in changed if name.startswith("value_model")}
    assert any("score" in name for name in values) and any(name.startswith("policy") for name in changed)
    if is_adapter:
        assert any("lora_" in name for name in values)
        assert all("lora_" in name or "score" in name for name in values)
    else:
        assert any("layers.0" in name for name in values)


@pytest.fixture
def any_trl(monkeypatch):
    """Models can be built and asked without PPO itself."""
    monkeypatch.setattr("hf_interdistill.scoring.ppo.require_ppo", lambda: None)


def ask(reward_model, tokenizer, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """Rewards as PPO asks for them: queries padded left, answers right, read at the answer's last token."""
    width = max(len(query) for query, _ in rows), max(len(answer) for _, answer in rows)
    pad = tokenizer.pad_token_id
    padded = torch.tensor([[pad] * (width[0] - len(q)) + q + a + [pad] * (width[1] - len(a)) for q, a in rows])
    backbone = getattr(reward_model, reward_model.base_model_prefix)
    output = backbone(input_ids=padded, attention_mask=padded != pad, position_ids=None, output_hidden_states=True)
    values = reward_model.score(output.hidden_states[-1])
    ends = [answer.index(pad) if pad in answer else len(answer) for _, answer in rows]
    return [values[i, width[0] + end - 1, 0].item() for i, end in enumerate(ends)]


def test_rewards_of_texts(any_trl):
    tokenizer = left_padding("bytes")
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    reward_model = ppo_reward_model(scorer, tokenizer)
    eos = tokenizer.eos_token_id
    answers = [" a flour and water mix.", " I know", " of light"]
    rows = [(tokenizer(q)["input_ids"], tokenizer(a)["input_ids"]) for q, a in zip(QUESTIONS, answers, strict=False)]
    expected = scorer(QUESTIONS[:3], answers)
    assert ask(reward_model, tokenizer, rows) == pytest.approx(expected, abs=1e-5)
    with_eos = [(query, [*answer, eos]) for query, answer in rows]
    assert ask(reward_model, tokenizer, with_eos) == pytest.approx(expected, abs=1e-5)
    with_bos = [([tokenizer.bos_token_id, *query], answer) for query, answer in rows]
    assert ask(reward_model, tokenizer, with_bos) == pytest.approx(expected, abs=1e-5)
    padding = [
        (query, [*answer, tokenizer.pad_token_id, *answer]) for query, answer in rows
    ]  # PPO stops reading there
    assert ask(reward_model, tokenizer, padding) == pytest.approx(expected, abs=1e-5)
    letters = [(query, [token for letter in a for token in tokenizer(letter)["input_ids"]])
               for (query, _), a in zip(rows, answers, strict=True)]  # fmt: skip
    assert letters[0][1] != rows[0][1]  # sampled tokens need not be those of the tokenizer
    assert ask(reward_model, tokenizer, letters) == pytest.approx(expected, abs=1e-5)


def test_the_policy_may_have_another_tokenizer(any_trl):
    policy = left_padding("metaspace")
    policy.chat_template = None
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    text = "How do I bake bread? With flour."
    ids = policy(text)["input_ids"]
    assert ask(ppo_reward_model(scorer, policy), policy, [(ids[:5], ids[5:])]) == pytest.approx(scorer([None], [text]))
    with pytest.raises(ValueError, match=r"is not the reward model's .*PPO's value model reads"):
        ppo_value_model(scorer, policy)


TRIMMING_END = (  # the end of a turn is no EOS token, and contents are trimmed
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize("template", [None, TRIMMING_END, TRIMMING_END.replace("<|im_end|>", "</s>")])
@pytest.mark.parametrize("written", ["Bake it.", "  Bake\n\nit. \n"])
def test_rewards_of_conversations(any_trl, template, written):
    tokenizer, reward_tokenizer = left_padding("bytes"), tokenizer_of("bytes")
    for each in (tokenizer, reward_tokenizer):
        each.chat_template = template or each.chat_template
    scorer = RewardScorer(build_student(), reward_tokenizer)
    reward_model = ppo_reward_model(scorer, tokenizer)
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "How?"},
    ]
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    query = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = scorer([prompt], [written])
    ends = ["", "</s>"] + (["<|im_end|>", "<|im_end|>\n"] if template == TRIMMING_END else [])
    for end in ends:
        ids = tokenizer(written + end, add_special_tokens=False)["input_ids"]
        assert ask(reward_model, tokenizer, [(query, ids)]) == pytest.approx(expected, abs=1e-5), end


def test_what_cannot_be_equal_is_refused(any_trl):
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    tokenizer = left_padding("bytes")
    tokenizer.chat_template += "{{ 'x' }}"
    with pytest.raises(ValueError, match="another chat template than the reward model's"):
        ppo_reward_model(scorer, tokenizer)
    for bad in (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}",
        "{% for m in messages %}[{{ loop.revindex }}:{{ m['content'] }}]{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}",
    ):
        tokenizer.chat_template = bad
        both = tokenizer_of("bytes")
        both.chat_template = bad
        with pytest.raises(ValueError, match="cannot be told from the prompt"):
            ppo_reward_model(RewardScorer(build_student(), both), tokenizer)
    tokenizer.chat_template = None
    ppo_reward_model(scorer, tokenizer)
    tokenizer.padding_side = "right"
    with pytest.raises(ValueError, match="pads on the right"):
        ppo_reward_model(scorer, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="needs one that means nothing else"):
        ppo_reward_model(scorer, tokenizer)


def test_value_models_have_weights_of_their_own(any_trl, tmp_path):
    tokenizer = left_padding("bytes")
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    value_model = ppo_value_model(scorer, tokenizer)
    with torch.no_grad():
        value_model.score.weight.add_(1.0)
    assert not torch.equal(value_model.score.weight, scorer.model.score.weight)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # PPO removes it from the value model's input
    ppo_value_model(scorer, tokenizer)
    with pytest.raises(ValueError, match="reads in both directions"):
        from transformers import BertConfig, BertForSequenceClassification

        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
        encoder = BertForSequenceClassification(BertConfig(vocab_size=900, num_labels=1, pad_token_id=3, **shape))
        ppo_value_model(RewardScorer(encoder, tokenizer_of("bytes")), tokenizer)
    headless = build_student()
    headless.value_head = headless.score
    del headless.score
    with pytest.raises(ValueError, match="has no `score` head"):
        ppo_value_model(RewardScorer(headless, tokenizer_of("bytes")), tokenizer)


def test_a_trl_without_ppo_names_the_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "trl.experimental.ppo" else real(name)
    )
    for build in (ppo_reward_model, ppo_value_model):
        with pytest.raises(ImportError, match=r"has no PPOTrainer.*pip install -e '\.\[ppo\]'"):
            build("runs/rm", left_padding("bytes"))


@needs_ppo
def test_an_ensemble_is_no_model_of_ppo():
    members = [RewardScorer(build_student(seed=seed), tokenizer_of("bytes")) for seed in range(2)]
    for make in (ppo_reward_model, ppo_value_model):
        with pytest.raises(TypeError, match=r"RewardEnsemble, but PPO reads it as one model.*GRPO and RLOO"):
            make(RewardEnsemble(members), tokenizer_of("bytes"))
