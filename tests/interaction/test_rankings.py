"""Rows of ranked responses through the trainer: one shared row equals separate rows, and bad rows are refused."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.models import build_student
from support.training_runs import config, losses

from hf_interdistill import InteractionDistillationTrainer
from hf_interdistill.scoring.formatting import RewardFormatter

RANKS = [[2, 1, 4, 3], [1, 2], [1.5, 3, 1.5], [3, 2, 1]]


def rankings(rows, kind="conversational", ranks=None) -> list[dict]:
    """Four prompts with two to four responses, taken from other rows."""
    found = []
    for number, own in enumerate(ranks or RANKS):
        row = rows[number]
        texts = [row["chosen"], row["rejected"], rows[number + 7]["chosen"], rows[number + 9]["rejected"]][: len(own)]
        prompt = row["prompt"]
        if kind == "standard":
            texts = [text[-1]["content"] for text in texts]
            prompt = prompt[-1]["content"] + " "
        found.append({"prompt": prompt, "completions": texts, "ranks": own})
    return found


def make(tmp_path, data, tokenizer, teacher=None, student=None, is_streaming=False, **changes):
    dataset = Dataset.from_list(data) if isinstance(data, list) else data
    if is_streaming:
        dataset = dataset.to_iterable_dataset()
    student = student or build_student()
    student.score.weight.data.mul_(20)
    return InteractionDistillationTrainer(
        student,
        config(tmp_path, **{"max_steps": 1, "alignment_weight": 0, **changes}),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        teacher=teacher,
    )


def separate_loss(model, tokenizer, data) -> torch.Tensor:
    """The oracle: each response in a row of its own, and choices one after the other."""
    formatter, total = RewardFormatter(tokenizer), torch.zeros(())
    for row in data:
        ids = [formatter.encode(row["prompt"], completion) for completion in row["completions"]]
        rewards = torch.stack([model(torch.tensor([each])).logits[0, 0] for each in ids])
        for reward, rank in zip(rewards, row["ranks"], strict=True):
            rest = torch.tensor([other >= rank for other in row["ranks"]])
            total = total - (reward - rewards[rest].logsumexp(0)) / len(data)
    return total


@pytest.mark.parametrize("kind", ["conversational", "standard"])
@pytest.mark.parametrize("share_prompt", ["false", "true"])
def test_one_row_of_all_responses_gives_loss_and_gradients_of_separate_rows(
    share_prompt, kind, tmp_path, rows, tokenizer
):
    data = rankings(rows, kind)
    trainer = make(tmp_path, data, tokenizer, share_prompt=share_prompt)
    model = trainer.model
    wanted = separate_loss(model, tokenizer, data)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(wanted, parameters)
    calls = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0])), with_kwargs=True
    )
    trainer._sharing._is_verified = True
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    hook.remove()
    assert calls == [4 if share_prompt == "true" else 12]  # rows of one pass
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    scale = max(float(each.abs().max()) for each in gradients)
    for one, other in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize("share_prompt", ["false", "true"])
def test_the_best_and_the_worst_are_aligned(is_streaming, share_prompt, tmp_path, rows, tokenizer, fitted_teacher):
    data = rankings(rows)
    ends = [(1, 2), (0, 1), (0, 1), (2, 0)]  # of RANKS; the first of equals
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completions"][best], "rejected": row["completions"][worst]}
        for row, (best, worst) in zip(data, ends, strict=True)
    ]
    options = {"share_prompt": share_prompt, "alignment_weight": 0.5, "is_streaming": is_streaming}
    ranked = make(tmp_path, data, tokenizer, fitted_teacher, **options)
    plain = make(tmp_path, pairs, tokenizer, fitted_teacher, **options)
    with torch.no_grad():
        wanted = float(separate_loss(ranked.model, tokenizer, data))
    logs = []
    for trainer in (ranked, plain):
        trainer.train()
        logs.append(next(entry for entry in trainer.state.log_history if "loss" in entry))
    assert logs[0]["interaction/loss"] == pytest.approx(logs[1]["interaction/loss"], rel=1e-4)
    assert float(logs[0]["loss"]) == pytest.approx(wanted + 0.5 * logs[0]["interaction/loss"], rel=1e-4)
    assert logs[0]["accuracy"] == logs[1]["accuracy"] and logs[0]["num_tokens"] > logs[1]["num_tokens"]
    metrics = ranked.evaluate()
    assert 0 <= metrics["eval_label/concordance"] <= 1 and "eval_interaction/loss" in metrics


def test_rankings_of_two_train_as_pairs(tmp_path, rows, tokenizer):
    data = rankings(rows, ranks=[[1, 2]] * 4)
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completions"][0], "rejected": row["completions"][1]} for row in data
    ]
    found = [make(tmp_path, each, tokenizer, max_steps=3) for each in (data, pairs)]
    for trainer in found:
        trainer.train()
    assert losses(found[0]) == pytest.approx(losses(found[1]), rel=1e-4)


@pytest.mark.parametrize("share_prompt", ["false", "true"])
def test_regularization_and_length_are_of_the_best_and_the_worst(share_prompt, tmp_path, rows, tokenizer):
    data = rankings(rows)
    options = {"regularization_weight": 0.3, "length_penalty_weight": 0.4, "share_prompt": share_prompt}
    trainer = make(tmp_path, data, tokenizer, student=build_student(tie_word_embeddings=True), **options)
    with torch.no_grad():
        wanted = float(separate_loss(trainer.model, tokenizer, data))
    trainer.train()
    logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    expected = 0.7 * (wanted + 0.4 * logs["length/loss"]) + 0.3 * logs["regularization/loss"]
    assert float(logs["loss"]) == pytest.approx(expected, rel=1e-4)


def test_a_row_with_one_long_response_is_dropped(tmp_path, rows, tokenizer, caplog):
    data = rankings(rows, ranks=[[1, 2, 3]] * 4)
    data[1]["completions"][1] = [{"role": "assistant", "content": "word " * 400}]
    length = max(
        len(RewardFormatter(tokenizer).encode(row["prompt"], completion))
        for number, row in enumerate(data)
        for completion in row["completions"]
        if number != 1
    )
    trainer = make(tmp_path, data, tokenizer, max_length=length)
    assert len(trainer.train_dataset) == 3 and trainer.train_dataset["pair_index"] == [0, 2, 3]


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [1, 2, 3]}, r"Row 1: `completions` and `ranks` have 4 and 3 entries"),
        ({"ranks": None}, r"Row 1: `completions` and `ranks` have 4 and None entries"),
        ({"ranks": [1, 2, None, 3]}, r"Row 1: `ranks` is \[1.*None.*each must be a finite number"),
        ({"ranks": [1.0, 2.0, NAN, 3.0]}, r"Row 1: `ranks` is \[1.*nan.*each must be a finite number"),
        ({"ranks": [2, 2, 2, 2]}, r"Row 1: `ranks` is \[2.*no response is better than another"),
        ({"ranks": [1], "completions": ["a"]}, r"Row 1: `ranks` is \[1.*at least two responses"),
        ({"completions": ["a", None, "c", "d"], "ranks": [1, 2, 3, 4]}, r"Row 1: "),
    ],
)
def test_bad_rankings_are_refused_with_their_row(change, message, tmp_path, rows, tokenizer):
    data = rankings(rows, "standard", ranks=[[1, 2, 3, 4]] * 3)
    data[1] |= change
    with pytest.raises(ValueError, match=message):
        make(tmp_path, data, tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, r"`label_smoothing_factor` is 0.1, but the train dataset has ranked"),
        ({"tie_model": "davidson"}, r"`tie_model` is 'davidson', but the train dataset has ranked"),
        ({"agreement_margin": 1.0}, r"`agreement_margin` is 1.0, but the train dataset has ranked"),
    ],
)
def test_options_of_pairs_are_refused(options, message, tmp_path, rows, tokenizer):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, rankings(rows), tokenizer, **options)


def test_columns_of_pairs_beside_rankings_and_missing_prompts_are_refused(tmp_path, rows, tokenizer):
    data = rankings(rows)
    for column in ("chosen", "margin", "preference_probability"):
        with pytest.raises(ValueError, match=f"also `{column}`, which is a column of pairs"):
            make(tmp_path, [{**row, column: 1.0} for row in data], tokenizer)
    with pytest.raises(ValueError, match="but no column `prompt`"):
        make(tmp_path, [{name: row[name] for name in ("completions", "ranks")} for row in data], tokenizer)
