"""`RewardScorer`: the same reward however it is called."""

from __future__ import annotations

import pytest
import torch
from support.models import STUDENT_FAMILIES, build_student, read_weights
from support.tokenizers import tokenizer_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from hf_interdistill import InteractionDistillationConfig, InteractionDistillationTrainer, RewardScorer


def pairs(rows, count=9):
    return [row["prompt"] for row in rows[:count]], [row["chosen"] for row in rows[:count]]


@pytest.mark.parametrize("family", STUDENT_FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_alone_and_in_any_batch(rows, tokenizer, family, side):
    tokenizer.padding_side = side
    scorer = RewardScorer(build_student(family, "eager"), tokenizer, batch_size=4)
    prompts, completions = pairs(rows)
    together = scorer(prompts, completions)
    alone = [scorer([prompt], [completion])[0] for prompt, completion in zip(prompts, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(reward, 4) for reward in together}) > 5
    backwards = scorer(prompts[::-1], completions[::-1])[::-1]
    assert backwards == pytest.approx(together, abs=1e-5)


def test_encoders_as_reward_models(tokenizer):
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=900, num_labels=1, pad_token_id=tokenizer.pad_token_id, **shape)
    scorer = RewardScorer(BertForSequenceClassification(config), tokenizer, batch_size=3)
    texts = ["word " * (i + 1) for i in range(5)]
    alone = [scorer([None], [text])[0] for text in texts]
    assert scorer([None] * 5, texts) == pytest.approx(alone, abs=1e-5)


def test_padding_with_eos_scores_the_same(rows, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    scorer = RewardScorer(build_student(pad_token_id=tokenizer.eos_token_id), tokenizer, batch_size=4)
    prompts = ["a question " * (i + 1) for i in range(6)]
    completions = ["an answer " * (7 - i) for i in range(6)]
    alone = [scorer([prompt], [completion])[0] for prompt, completion in zip(prompts, completions, strict=True)]
    assert scorer(prompts, completions) == pytest.approx(alone, abs=1e-5)


def test_equals_what_training_saw(dataset, tmp_path, tokenizer, fitted_teacher):
    args = InteractionDistillationConfig(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        report_to="none",
        max_steps=2,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
    )
    trainer = InteractionDistillationTrainer(
        build_student(), args, train_dataset=dataset, processing_class=tokenizer, teacher=fitted_teacher
    )
    trainer.train()
    trainer.save_model()
    ids = trainer.train_dataset["chosen_ids"]
    mask = torch.tensor([[1] * len(ids[0])])
    with torch.no_grad():
        expected = trainer.model.eval()(torch.tensor([ids[0]]), attention_mask=mask).logits[0, 0].item()
    scorer = RewardScorer.from_pretrained(str(tmp_path))
    assert scorer.formatter.encode(dataset[0]["prompt"], dataset[0]["chosen"]) == ids[0]
    assert scorer([dataset[0]["prompt"]], [dataset[0]["chosen"]]) == pytest.approx([expected], abs=1e-6)
    plain = AutoModelForSequenceClassification.from_pretrained(str(tmp_path))
    with torch.no_grad():
        assert plain(torch.tensor([ids[0]])).logits[0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_text_and_messages(rows, tokenizer):
    scorer = RewardScorer(build_student(), tokenizer)
    prompt, answer = rows[0]["prompt"], rows[0]["chosen"]
    as_text = scorer([prompt], [answer[0]["content"]])
    assert as_text == scorer([prompt], [answer]) == scorer([None], [prompt + answer])
    eos = tokenizer.eos_token
    assert scorer(["Hello "], ["there"]) == scorer(["Hello "], ["there" + eos]) == scorer([None], ["Hello there"])
    ids = scorer.formatter.encode("Hello ", "there")
    assert ids == tokenizer("Hello there" + eos)["input_ids"] and ids[-1] == tokenizer.eos_token_id


def test_columns_of_a_reward_function(rows, tokenizer):
    tokenizer.chat_template = "{{ mark }}{% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template
    scorer = RewardScorer(build_student(), tokenizer)
    prompts, completions = pairs(rows, 2)
    plain = scorer(prompts, completions, completion_ids=[[1], [2]], trainer_state=None)
    marked = scorer(prompts, completions, chat_template_kwargs=[{"mark": "x"}, {}])
    assert marked[0] != plain[0] and marked[1] == pytest.approx(plain[1], abs=1e-6)
    assert scorer(prompts, completions, tools=['[{"name": "f"}]', None])[0] != plain[0]
    assert isinstance(scorer.__name__, str)


def test_half_precision_models_return_float32(rows, tokenizer):
    prompts, completions = pairs(rows)
    full = RewardScorer(build_student(), tokenizer)(prompts, completions)
    half = RewardScorer(build_student().bfloat16(), tokenizer)(prompts, completions)
    assert half != full and half == pytest.approx(full, abs=0.5)


def test_untrained_heads_are_refused(tmp_path, tokenizer):
    shape = STUDENT_FAMILIES["llama"]
    AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="no trained score head"):
        RewardScorer.from_pretrained(str(tmp_path / "lm"))
    model = build_student()
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    assert RewardScorer.from_pretrained(str(tmp_path / "rm"))([None], ["hello"])


def test_adapters(tmp_path, tokenizer, rows):
    peft = pytest.importorskip("peft")
    shape = STUDENT_FAMILIES["llama"]
    AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(tmp_path / "lm")
    prompts, completions = pairs(rows, 3)
    for saved, name in ((["score"], "with"), (None, "without")):
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1)
        lora = peft.LoraConfig(task_type="SEQ_CLS", modules_to_save=saved, init_lora_weights=False)
        model = peft.get_peft_model(base, lora)
        if saved is None:  # PEFT adds the head to SEQ_CLS adapters by itself: take it out of the file
            model.peft_config["default"].modules_to_save = None
        model.save_pretrained(tmp_path / name)
        if saved is None:
            from safetensors.torch import save_file

            path = tmp_path / name / "adapter_model.safetensors"
            save_file({key: value for key, value in read_weights(path).items() if "score" not in key}, path)
        tokenizer.save_pretrained(tmp_path / name)
        if saved:
            expected = RewardScorer(model, tokenizer)(prompts, completions)
            loaded = RewardScorer.from_pretrained(str(tmp_path / name))
            assert loaded(prompts, completions) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="no trained score head"):
        RewardScorer.from_pretrained(str(tmp_path / "without"))


def test_bad_input_is_explained(tokenizer, rows):
    scorer = RewardScorer(build_student(), tokenizer, max_length=8)
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        scorer(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="more than max_length=8"):
        scorer([None], ["word " * 30])
    with pytest.raises(ValueError, match="use text for both"):
        scorer(["text"], [rows[0]["chosen"]])
    with pytest.raises(ValueError, match="has one output"):
        RewardScorer(build_student(num_labels=2), tokenizer)
    with pytest.raises(ValueError, match="at a padding token"):
        RewardScorer(build_student(pad_token_id=7), tokenizer)
    bare = tokenizer_of("bytes")
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        RewardScorer(build_student(), bare)(["x"], ["y"]) and RewardScorer(build_student(), bare)(
            [rows[0]["prompt"]], [rows[0]["chosen"]]
        )
    bare.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        RewardScorer(build_student(), bare)(["x"], ["y"])
    bare.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        RewardScorer(build_student(), bare)
