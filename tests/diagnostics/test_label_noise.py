"""Label noise: what is lost, what it is compared with, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.datasets import read_rows
from support.diagnostics import FAST, RuleModel
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, diagnose
from hf_interdistill.cli import main
from hf_interdistill.diagnostics.collect.noise_models import _PairScorer
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.noise import measure_noise

CONFIG = DiagnosisConfig(resamples=300)


def margins(right: int, wrong: int, ties: int = 0) -> np.ndarray:
    return np.array([1.0] * right + [-2.0] * wrong + [0.0] * ties)


def test_numbers_by_hand():
    noisy = {0.3: ("b", margins(5, 3, 2)), 0.1: ("a", margins(7, 3))}
    found = measure_noise(margins(9, 1), noisy, left_out=2, config=CONFIG)
    assert found.shares == (0.1, 0.3) and found.models == ("a", "b") and found.left_out == 2
    assert found.clean.value == 0.9 and [each.value for each in found.accuracy] == [0.7, 0.6]  # two halves of a tie
    assert [each.value for each in found.loss] == pytest.approx([0.2, 0.3])
    assert [each.value for each in found.lost_advantage] == pytest.approx([0.5, 0.75])
    assert found.excess.value == pytest.approx(0.3 - 0.5 * 0.6 * 0.4)  # half of 2 s (a - 1/2)
    assert found.at(0.1) is found.loss[0] and found.at(0.2) is None
    assert (
        "would lose 24.0." in found.finding().sentence
        and "too long for one of the models: 2." in found.finding().sentence
    )


def test_intervals_of_the_loss_are_paired():
    """300 pairs that both models judge alike but for 3: accuracy is uncertain by points, the loss is not."""
    clean = margins(240, 60)
    other = clean.copy()
    other[:3] = -1.0
    found = measure_noise(clean, {0.2: ("a", other)}, left_out=0, config=CONFIG)
    assert found.loss[0].value == pytest.approx(0.01) and found.loss[0].high < 0.03
    assert found.clean.high - found.clean.low > 0.07


def taught(accuracy: float, share: float, repeats: float, pairs: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Margins of a model that is right in `accuracy` of the pairs, and of one that repeats a part of the flips."""
    generator = np.random.default_rng(0)
    clean = np.where(generator.random(pairs) < accuracy, 1.0, -1.0)
    return clean, np.where(generator.random(pairs) < share * repeats, -clean, clean)


@pytest.mark.parametrize(
    ("repeats", "pairs", "verdict", "words"),
    [
        (1.0, 2000, "flag", "learns the flips"),
        (0.8, 2000, "flag", "learns the flips"),
        (0.2, 2000, "pass", "sees through most"),
        (0.0, 2000, "pass", "sees through most"),
        (0.5, 60, "inconclusive", "Too uncertain"),
    ],
)
def test_verdicts(repeats, pairs, verdict, words):
    clean, noisy = taught(0.85, 0.3, repeats, pairs)
    finding = measure_noise(clean, {0.3: ("a", noisy)}, left_out=0, config=CONFIG).finding()
    assert finding.verdict == verdict and words in finding.sentence


def test_the_largest_share_decides():
    clean, worse = taught(0.9, 0.4, 1.0)
    assert measure_noise(clean, {0.1: ("a", worse), 0.4: ("b", clean)}, 0, CONFIG).finding().verdict == "pass"
    assert measure_noise(clean, {0.1: ("a", clean), 0.4: ("b", worse)}, 0, CONFIG).finding().verdict == "flag"


def test_a_model_no_better_than_chance_has_nothing_to_lose():
    clean, noisy = taught(0.5, 0.3, 1.0, 200)
    finding = measure_noise(clean, {0.3: ("a", noisy)}, left_out=0, config=CONFIG).finding()
    assert finding.verdict == "inconclusive" and "do not tell it from chance, so there is no" in finding.sentence


def rule(name: str) -> RewardScorer:
    tokenizer = tokenizer_of("bytes")
    return RewardScorer(RuleModel(tokenizer, name), tokenizer, batch_size=64)


def test_diagnosis_with_worse_and_with_equal_models(faulty_pairs):
    pairs = faulty_pairs[:120]

    def found(**noise_models):
        models = {float(share): rule(name) for share, name in noise_models.items()}
        return diagnose(rule("perfect"), pairs, FAST, noise_models=models, is_progress_shown=False)

    worse = found(**{"0.1": "perfect", "0.3": "constant"})
    assert worse.label_noise.loss[0].value == 0.0 and worse.label_noise.loss[1].value == 0.5
    assert worse.label_noise.models == ("perfect", "constant")
    assert worse.findings()["label_noise"].verdict == "flag"
    assert found(**{"0.3": "perfect"}).findings()["label_noise"].verdict == "pass"
    assert worse.to_dict()["label_noise"]["loss"][1]["value"] == 0.5
    plain = diagnose(rule("perfect"), pairs, FAST, is_progress_shown=False)
    assert "label_noise" not in plain.to_dict() and "label_noise" not in plain.findings()
    assert {**worse.to_dict(), "findings": None}.keys() - plain.to_dict().keys() == {"label_noise"}


def preferences(count: int) -> list[dict]:
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:count]]


def scorer_of(seed: int) -> RewardScorer:
    return RewardScorer(build_student("llama", seed=seed), tokenizer_of("bytes"), batch_size=4)


def test_rewards_are_the_scorers_and_long_pairs_are_left_out(tmp_path, monkeypatch):
    rows, fast = preferences(4), DiagnosisConfig(resamples=20, batch_size=4)
    long = [{"role": "assistant", "content": " ".join(["word"] * 600)}]
    options = {"name": "rm", "records_dir": str(tmp_path), "is_progress_shown": False}
    mixed = [*rows[:2], {**rows[2], "chosen": long}, rows[3]]
    noisy = scorer_of(1)
    found = diagnose(scorer_of(0), mixed, fast, noise_models={0.2: noisy}, **options)
    lines = (tmp_path / "rm.flipped-0.2.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == [0, 1, 2, 3] and "longer than 512" in records[2]["left_out"]
    for record, row in zip(records, mixed, strict=True):
        if "rewards" in record:
            expected = noisy([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
            assert record["rewards"] == pytest.approx(expected, abs=1e-4)
    assert found.label_noise.clean.pairs == 3 and found.label_noise.left_out == 0  # `rm` cannot read it either
    (tmp_path / "rm.flipped-0.2.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:9])  # killed
    calls, original = [], _PairScorer.__call__
    monkeypatch.setattr(_PairScorer, "__call__", lambda self, some: calls.append(len(some)) or original(self, some))
    again = diagnose(scorer_of(0), mixed, fast, noise_models={0.2: noisy}, **options)
    assert calls == [1] and again.to_dict() == found.to_dict()
    with pytest.raises(ValueError, match="weights differ"):
        diagnose(scorer_of(0), mixed, fast, noise_models={0.2: scorer_of(2)}, **options)

    class Short(RewardScorer):
        context_length = 5

    short = Short(noisy.model, noisy.tokenizer)
    with pytest.raises(ValueError, match="No pair can be read by rm and all"):
        diagnose(scorer_of(0), rows, fast, noise_models={0.2: short}, name="rm", is_progress_shown=False)


@pytest.mark.parametrize(
    ("noise_models", "message"),
    [
        ({}, "must map shares of flipped labels to models"),
        ({0.5: "a"}, "the share 0.5, but .* must lie between 0 .* and 0.5"),
        ({0: "a"}, "the share 0, but"),
        ({10: "a"}, "Write 10 % as 0.1"),
        ({"many": "a"}, "the share 'many'"),
        ({0.1: "a", "0.10": "b"}, "each must be named once"),
        ({0.1: "a", 0.2: "./a"}, "at 0.2 a model that is the diagnosed one or that another share has"),
        ({0.1: "rm"}, "at 0.1 a model that is the diagnosed one"),
    ],
)
def test_bad_shares_and_models_are_named_before_anything_is_loaded(noise_models, message):
    with pytest.raises(ValueError, match=message):
        diagnose("rm", [], FAST, noise_models=noise_models)


def test_rows_that_can_be_read_only_once_are_refused():
    with pytest.raises(ValueError, match="can be read only once"):
        diagnose("rm", iter([]), FAST, noise_models={0.1: "a"})


def test_command_line_from_yaml_and_for_several_models(tmp_path, capsys):
    for seed, name in enumerate(("one", "two", "flipped")):
        build_student("llama", seed=seed).save_pretrained(tmp_path / name)
        tokenizer_of("bytes").save_pretrained(tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in preferences(3)))
    one, two, flipped = (str(tmp_path / name) for name in ("one", "two", "flipped"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: [{one}]\ndata: {tmp_path}/pairs.jsonl\noutput: {tmp_path}/a\nresamples: 20\n"
        f"noise_models: {{0.3: {flipped}}}\n"
    )
    assert main(["diagnose", "--config", str(recipe)]) == 0
    (written,) = json.loads((tmp_path / "a" / "diagnosis.json").read_text())
    assert written["label_noise"]["shares"] == [0.3] and written["label_noise"]["models"][0].endswith("flipped")
    mapping = json.dumps({two: {"0.3": flipped}})
    arguments = ["--model", one, two, "--output", str(tmp_path / "b"), "--limit", "2"]
    assert main(["diagnose", "--config", str(recipe), *arguments, "--noise_models", mapping]) == 0
    written = json.loads((tmp_path / "b" / "diagnosis.json").read_text())
    assert ["label_noise" in each for each in written] == [False, True] and written[1]["pairs"] == 2
    page = (tmp_path / "b" / "index.html").read_text()
    assert "Not run: no models trained on flipped labels were given." in page
    capsys.readouterr()
    for bad, message in (
        (json.dumps({"0.3": flipped}), "does not say of which one"),
        (json.dumps({"three": {"0.3": flipped}}), "models of 'three'"),
        (json.dumps({two: {"0.3": two}}), "the diagnosed one"),
        ("{}", "is empty"),
    ):
        assert main(["diagnose", "--config", str(recipe), *arguments, "--noise_models", bad]) == 2
        assert message in capsys.readouterr().err
