"""The studies: the small form of each runs to its end and resumes, and its README shows its results."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.datasets import ROOT, SHARED_DATA
from support.models import build_encoder

SENTIMENT = ROOT / "recipes" / "studies" / "rain_sentiment"
SST2 = SHARED_DATA / "sst2"
ARMS = ["vanilla", "best_of_n", "rain_self", "rain_reward"]
KEYS = {"arm", "positive_rate", "ci95", "forward_tokens", "distinct_2", "perplexity", "prompts"}
needs_sst2 = pytest.mark.skipif(not SST2.is_dir(), reason="needs ../shared/data/sst2")


@pytest.fixture
def modules(monkeypatch):
    """The study's modules by name."""
    monkeypatch.syspath_prepend(str(SENTIMENT))
    import decoding
    import measuring
    import rows
    import study
    import training

    from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt

    return SimpleNamespace(
        decoding=decoding,
        measuring=measuring,
        rows=rows,
        study=study,
        training=training,
        judge=JudgePrompt.load(SENTIMENT / "judge.yaml"),
    )


def tiny_config(folder) -> dict:
    """The study's own config with everything made small."""
    config = yaml.safe_load((SENTIMENT / "study.yaml").read_text(encoding="utf-8"))
    data = folder / "data"
    data.mkdir()
    for name, count in (("train", 900), ("dev", 120)):
        lines = (SST2 / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (data / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    encoder, tokenizer = build_encoder()
    encoder.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    config |= {
        "data": str(data),
        "encoder": str(folder / "encoder"),
        "output_dir": str(folder / "runs"),
        "results_dir": str(folder / "results"),
        "judge": str(SENTIMENT / "judge.yaml"),
        "splits": {"decoder": 300, "reward": 80, "classifier": 80, "held_out": 40},
        "prompts": {"words": 3, "longest": 40, "count": 4},
        "vocabulary": 400,
        "generation": {"max_new_tokens": 6, "top_k": 50},
    }
    config["decoder"]["shape"] = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 256}
    for model in ("decoder", "fluency", "reward", "classifier"):
        if "documents" in config[model]:
            config[model]["documents"] |= {"batch_size": 16}
        arguments = {"max_steps": 2, "per_device_train_batch_size": 16, "disable_tqdm": True}
        config[model]["arguments"] = {**config[model]["arguments"], **arguments}
    config["rain"] |= {
        "iterations": 2,
        "extra_iterations": 1,
        "min_visits": 0,
        "candidates": 2,
        "edge_lengths": [1, 2],
    }
    return config


@needs_sst2
def test_rain_sentiment_runs_and_resumes(modules, tmp_path, monkeypatch):
    study, calls = modules.study, []
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tmp_path)), encoding="utf-8")
    original = study.best_of_n

    def stopping(*args):
        calls.append(args[-1]["id"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(study, "best_of_n", stopping)
    with pytest.raises(KeyboardInterrupt):
        study.main(["--config", str(config)])

    def refuse(*args, **kwargs):
        raise AssertionError("done twice")

    for name in ("split_rows", "train_tokenizer", "train_decoder", "train_reward", "train_classifier", "vanilla"):
        monkeypatch.setattr(study, name, refuse)
    results = study.main(["--config", str(config)])
    assert len(calls) == 5 and len(set(calls)) == 4  # the third was cut short and done again

    assert json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8")) == results
    assert (tmp_path / "results" / "plot.png").stat().st_size > 1000
    assert [row["arm"] for row in results] == ARMS
    for row in results:
        assert set(row) >= KEYS and row["prompts"] == 4
        assert row["ci95"][0] <= row["positive_rate"] <= row["ci95"][1]
        assert 0 <= row["distinct_2"] <= 1 < row["perplexity"]
    by_arm = {row["arm"]: row for row in results}
    assert by_arm["vanilla"]["forward_tokens"] < by_arm["rain_self"]["forward_tokens"]
    assert by_arm["best_of_n"]["forward_tokens"] >= by_arm["rain_self"]["forward_tokens"]

    for name in ("run_rain_job", "best_of_n", "measure"):
        monkeypatch.setattr(study, name, refuse)
    assert study.main(["--config", str(config)]) == results

    other = yaml.safe_load(config.read_text(encoding="utf-8")) | {"seed": 1}
    config.write_text(yaml.safe_dump(other), encoding="utf-8")
    with pytest.raises(ValueError, match="other settings"):
        study.main(["--config", str(config)])


def test_a_half_written_checkpoint_is_not_resumed(modules, tmp_path):
    asked = []
    trainer = SimpleNamespace(
        train=lambda resume_from_checkpoint: asked.append(resume_from_checkpoint), save_model=lambda folder: None
    )
    for number in range(2):  # a folder that is not there, and one with weights alone
        modules.training._finish(trainer, tmp_path / "model")
        assert asked == [None] * (number + 1)
        (tmp_path / "model" / "checkpoint-4").mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.zeros(2)}, tmp_path / "model" / "checkpoint-4" / "model.safetensors")


def test_rows_of_one_text_serve_one_purpose(modules):
    rng = random.Random(0)
    sentences = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(30)]
    texts = set()
    for sentence in sentences:
        words = sentence.split()
        for _ in range(6):
            start = rng.randrange(8)
            texts.add(" ".join(words[start : start + rng.randrange(4, 13)]))
    rows = [{"text": text, "label": 0} for text in sorted(texts)]
    holders = modules.rows.longest_holders([row["text"] for row in rows])
    for text in texts:
        holding = [other for other in texts if f" {text} " in f" {other} "]
        assert holders[text] in holding
        assert len(holders[text].split()) == max(len(other.split()) for other in holding)
    dealt = modules.rows.split_rows(rows, {"one": 40, "two": 30}, seed=0)
    assert len(dealt["one"]) >= 40 and len(dealt["two"]) >= 30
    owners = [{holders[row["text"]] for row in part} for part in dealt.values()]
    assert not owners[0] & owners[1]
    with pytest.raises(ValueError, match="there are"):
        modules.rows.split_rows(rows, {"one": 10_000}, seed=0)


def test_starts_are_cut_from_negative_rows(modules):
    rows = [{"text": f"w{i} a b c d e f", "label": i % 2} for i in range(10)]
    rows += [{"text": "w0 a b x y z q", "label": 0}, {"text": "too short", "label": 0}]
    starts = modules.rows.starting_words(rows, words=3, longest=9, count=5, seed=0)
    assert sorted(row["prompt"] for row in starts) == [f"w{i} a b" for i in range(0, 10, 2)]
    assert len({row["id"] for row in starts}) == 5
    with pytest.raises(ValueError, match="6 prompts are wanted, but the rows give 5"):
        modules.rows.starting_words(rows, words=3, longest=9, count=6, seed=0)


def test_documents_teach_writing_and_the_letter_of_the_right_option(modules):
    from hf_interdistill.rain.scorers.judge_prompt import label_tokens

    judge = modules.judge
    rows = [{"text": "a fine film", "label": 1}, {"text": "a dull film", "label": 0}]
    tokenizer = modules.training.train_tokenizer(rows, judge, 300)
    letters = label_tokens(judge, tokenizer)
    for row in rows:
        phrase = tokenizer(row["text"])["input_ids"]
        for order in (0, 1):
            document = modules.training.document(row, order, True, tokenizer, judge)
            ids, labels = document["input_ids"], document["labels"]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            options = dict(re.findall(r"\((A|B)\) (\w+)", text))
            assert options[text[-1]] == ("bad", "good")[row["label"]]
            assert len(ids) == len(labels) and labels[-1] == ids[-1] and labels[-1] in letters
            assert labels[: len(phrase) + 1] == [*phrase, tokenizer.eos_token_id] and ids[: len(phrase)] == phrase
            assert set(labels[len(phrase) + 1 : -1]) == {-100}
            answered = modules.training.document(row, order, False, tokenizer, judge)
            assert answered == {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:]}
        plain = modules.training.document(row, None, True, tokenizer, judge)
        assert plain["input_ids"] == plain["labels"] == [*phrase, tokenizer.eos_token_id]
    shares = ((1.0, 0.0), (1.0, 1.0), (0.0, 0.5))
    epochs = [
        {"shortest": 1, "longest": 5, "asked": asked, "swapped": swapped, "is_written": True}
        for asked, swapped in shares
    ]
    settings = {"epochs": epochs, "batch_size": 2, "seed": 0}
    documents = modules.training.decoder_documents(rows, tokenizer, judge, settings)
    ends = [re.findall(r"good|bad", tokenizer.decode(ids)) for ids in documents["input_ids"]]
    assert ends == [["good", "bad"]] * 2 + [["bad", "good"]] * 2 + [[]] * 2


def test_batches_are_what_the_documents_say(modules):
    import torch

    collate = modules.training.DocumentCollator(0)
    batch = collate([{"input_ids": [5, 6, 7], "labels": [5, -100, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 8, 9]] and batch["logits_to_keep"] == 3
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]
    assert batch["labels"].tolist() == [[5, -100, 7], [-100, 8, 9]]
    judged = [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
    few = collate(judged)
    assert few["logits_to_keep"] == 2 and few["labels"].tolist() == [[-100, 7], [-100, 9]]
    tokenizer = modules.training.train_tokenizer([{"text": "a", "label": 1}], modules.judge, 300)
    model = modules.training.new_decoder(tokenizer, {"n_layer": 1, "n_embd": 8, "n_head": 2}).eval()
    loss = modules.training.WritingAndJudgingLoss((7, 9))
    labels = few.pop("labels")
    whole = {**few, "logits_to_keep": 0}
    full = torch.tensor([[-100, -100, 7], [-100, -100, 9]])
    with torch.no_grad():
        assert float(loss(model(**few), labels)) == pytest.approx(float(loss(model(**whole), full)), rel=1e-5)


def test_letters_and_words_weigh_the_same(modules):
    import torch

    torch.manual_seed(0)
    logits = torch.randn(2, 5, 8)
    labels = torch.tensor([[0, 3, 4, -100, 6], [0, 5, -100, -100, 7]])
    loss = modules.training.WritingAndJudgingLoss((6, 7))(SimpleNamespace(logits=logits), labels)
    logs = logits.log_softmax(-1)
    words = -(logs[0, 0, 3] + logs[0, 1, 4] + logs[1, 0, 5]) / 3
    judged = -(logs[0, 3, 6] + logs[1, 3, 7]) / 2
    assert float(loss) == pytest.approx(float(words + judged), rel=1e-5)
    labels[:, -1] = -100
    assert float(modules.training.WritingAndJudgingLoss((6, 7))(SimpleNamespace(logits=logits), labels)) == (
        pytest.approx(float(words), rel=1e-5)
    )


def test_best_of_n_spends_the_budget_and_takes_the_best(modules):
    class Sampler:
        def __init__(self):
            self.drawn = 0

        def seed_torch(self, arm, row):
            pass

        def sample(self, prompt, count):
            numbers = range(self.drawn, self.drawn + count)
            self.drawn += count
            return 5, [(f"text {number // 2}", [1, 2, number]) for number in numbers]

    class Judge:
        def score_batch(self, exchanges):
            numbers = [int(exchange.completion.split()[1]) for exchange in exchanges]
            return [-((number - 2) ** 2) for number in numbers], SimpleNamespace(tokens=[10] * len(numbers))

    row = {"id": "x", "prompt": "p"}
    # The prompt costs 5, a sample 2, a new text 10: 5, 17, 19, 31, 33, 45.
    few = modules.decoding.best_of_n(Sampler(), Judge(), 33, row)
    assert few["completion"] == "text 1" and few["stats"]["forward_tokens"] == 33 and few["stats"]["samples"] == 4
    assert modules.decoding.best_of_n(Sampler(), Judge(), 34, row)["stats"]["forward_tokens"] == 45
    many = modules.decoding.best_of_n(Sampler(), Judge(), 700, row)
    assert many["completion"] == "text 2" and many["stats"]["samples"] > 64 and many["stats"]["forward_tokens"] >= 700


def test_measures_by_hand(modules):
    measuring = modules.measuring
    assert measuring.distinct_2(["a b a b", "b a"]) == pytest.approx(2 / 4)
    low, high = measuring.bootstrap(lambda rate: rate, [[0, 1] * 200], seed=0)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006) and high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    column = [0, 1] * 50
    assert measuring.bootstrap(lambda own, rival: own - rival, [column, column], seed=0) == [0, 0]


@pytest.mark.skipif(not (SENTIMENT / "results.json").exists(), reason="the study has not been run in full yet")
def test_the_readme_shows_the_results(modules):
    results = json.loads((SENTIMENT / "results.json").read_text(encoding="utf-8"))
    assert [row["arm"] for row in results] == ARMS and all(set(row) >= KEYS for row in results)
    assert all(row["prompts"] >= 200 for row in results)
    readme = (SENTIMENT / "README.md").read_text(encoding="utf-8")
    assert modules.measuring.results_table(results) in readme
    checks = json.loads((SENTIMENT / "checks.json").read_text(encoding="utf-8"))
    for name in ("judge_accuracy", "reward_accuracy", "classifier_accuracy"):
        assert f"{checks[name]:.3f}" in readme
