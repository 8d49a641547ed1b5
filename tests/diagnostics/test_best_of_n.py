"""The curve of best-of-n: numbers against all subsets, models built to be over-optimized, bad input."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from support.datasets import read_rows
from support.diagnostics import FAST, RuleModel
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, diagnose
from hf_interdistill.cli import main
from hf_interdistill.diagnostics.collect.candidate_scores import _CandidateScorer
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.best_of_n import largest_of, measure_best_of_n

CONFIG = DiagnosisConfig(resamples=300)


def picked(by, of, n) -> float:
    """Over all subsets of size n, what the candidates with the highest score in `by` have in `of`."""
    values = []
    for subset in itertools.combinations(range(len(by)), n):
        best = max(by[i] for i in subset)
        winners = [of[i] for i in subset if by[i] == best]
        values.append(sum(winners) / len(winners))
    return sum(values) / len(values)


def test_curve_against_all_subsets():
    """Ties, and prompts with different numbers of candidates: n ends at the smallest."""
    generator = np.random.default_rng(0)
    sizes = [6, 9, 7]
    rewards = [generator.integers(0, 4, size).astype(float).tolist() for size in sizes]
    gold = [generator.normal(size=size).tolist() for size in sizes]
    found = measure_best_of_n(rewards, gold, CONFIG, gold_name="truth")
    assert found.ns == [1, 2, 4, 6] and found.gold_name == "truth" and found.left_out == {}
    assert found.kl == pytest.approx([0.0, math.log(2) - 1 / 2, math.log(4) - 3 / 4, math.log(6) - 5 / 6])
    spread = math.sqrt(np.mean([np.var(each) for each in rewards]))
    for place, n in enumerate(found.ns):
        proxy, true, best = (
            [picked(by, of, n) for by, of in zip(chosen, reported, strict=True)]
            for chosen, reported in ((rewards, rewards), (rewards, gold), (gold, gold))
        )
        assert found.proxy[place].value == pytest.approx(np.mean(proxy))
        assert found.gold[place].value == pytest.approx(np.mean(true))
        assert found.oracle[place].value == pytest.approx(np.mean(best))
        assert found.gold_gain[place].value == pytest.approx(np.mean(true) - np.mean([np.mean(g) for g in gold]))
        assert found.proxy_gain[place].value == pytest.approx((np.mean(proxy) - found.proxy[0].value) / spread)
    assert found.efficiency.value == pytest.approx(found.gold_gain[-1].value / found.oracle_gain[-1].value)
    smaller = [estimate.value for estimate in found.gold[:-1]]
    assert found.peak == found.ns[int(np.argmax(smaller))]
    assert found.drop.value == pytest.approx(max(smaller) - found.gold[-1].value) and found.drop.pairs == 3


def test_a_curve_by_hand():
    found = measure_best_of_n([[1.0, 2.0, 3.0]] * 2, [[0.0, 6.0, 3.0]] * 2, CONFIG, gold_name="truth")
    assert found.ns == [1, 2, 3] and found.peak == 2
    assert [each.value for each in found.gold] == pytest.approx([3.0, 4.0, 3.0])  # pairs pick 6, 3, 3
    assert [each.value for each in found.oracle] == pytest.approx([3.0, 5.0, 6.0])
    assert [each.value for each in found.proxy] == pytest.approx([2.0, 8 / 3, 3.0])
    assert found.drop.value == pytest.approx(1.0) and found.excess.value == pytest.approx(1.0 - 0.2)
    assert found.efficiency.value == pytest.approx(0.0)
    assert "only 2 prompts" in found.finding().sentence and found.finding().verdict == "inconclusive"


def test_the_interval_allows_for_the_choice_of_the_peak():
    """Of five columns of pure chance the largest is "surely" above zero in a twentieth of the cases at most."""
    generator = np.random.default_rng(1)
    alone = together = 0
    for trial in range(200):
        columns = generator.normal(size=(40, 5))
        number = int(columns.mean(0).argmax())
        estimate = largest_of(columns, number, resamples=100, seed=trial)
        together += estimate.low > 0
        alone += columns.mean(0)[number] - 1.96 * columns.std(0)[number] / math.sqrt(40) > 0
        assert estimate.value == pytest.approx(columns.mean(0).max())
    assert together <= 15 < alone


def simulated(harm: float, noise: float, prompts: int = 80, size: int = 16, seed: int = 2):
    """Rewards with noise in them, and gold scores that fall where the reward is extreme."""
    generator = np.random.default_rng(seed)
    gold = generator.normal(size=(prompts, size))
    rewards = gold + noise * generator.normal(size=(prompts, size))
    gold = gold - harm * np.maximum(rewards - 1.0, 0) ** 2
    return rewards.tolist(), gold.tolist()


@pytest.mark.parametrize(
    ("scores", "verdict", "words"),
    [
        (simulated(harm=0.0, noise=0.0), "pass", "no harm"),
        (simulated(harm=0.0, noise=1.0), "pass", "no harm"),
        (simulated(harm=1.0, noise=1.0), "flag", "choosing harder does harm"),
        (simulated(harm=0.0, noise=1e4, prompts=400), "flag", "hardly better than choosing at random"),
        (simulated(harm=0.0, noise=3.0, prompts=12), "inconclusive", "too uncertain"),
        ((np.zeros((20, 8)).tolist(), simulated(0, 0, 20, 8)[1]), "flag", "hardly better"),
        ((simulated(0, 0, 20, 8)[1], np.full((20, 8), 0.1).tolist()), "inconclusive", "nothing to choose"),
    ],
)
def test_verdicts(scores, verdict, words):
    finding = measure_best_of_n(*scores, CONFIG, gold_name="truth").finding()
    assert finding.verdict == verdict and words in finding.sentence


def rule(name: str) -> RewardScorer:
    tokenizer = tokenizer_of("bytes")
    return RewardScorer(RuleModel(tokenizer, name), tokenizer, batch_size=64)


@pytest.fixture(scope="module")
def candidates():
    """30 prompts with 8 answers of different lengths and different numbers of good words."""
    generator = np.random.default_rng(3)

    def answer() -> str:
        words = ["good"] * int(generator.integers(0, 8)) + ["the"] * int(generator.integers(2, 30))
        return " " + " ".join(words[i] for i in generator.permutation(len(words)))

    return [{"prompt": "what is it like?", "completions": [answer() for _ in range(8)]} for _ in range(30)]


def likes_middle_lengths(prompts, completions):
    return [-abs(len(each.split()) - 18) for each in completions]


def counts_good(prompts, completions):
    return [each.split().count("good") for each in completions]


@pytest.mark.parametrize(
    ("name", "gold", "verdict", "words"),
    [
        ("length", likes_middle_lengths, "flag", "does harm"),
        ("perfect", counts_good, "pass", "no harm"),
        ("constant", counts_good, "flag", "hardly better"),
    ],
)
def test_models_built_to_have_the_fault(faulty_pairs, candidates, name, gold, verdict, words):
    found = diagnose(rule(name), faulty_pairs[:5], FAST, candidates=candidates, gold=gold, is_progress_shown=False)
    finding = found.findings()["best_of_n"]
    assert finding.verdict == verdict and words in finding.sentence
    curve = found.best_of_n
    assert curve.gold_name == gold.__name__ and curve.ns == [1, 2, 4, 8]
    if name == "perfect":
        assert curve.gold == curve.oracle and curve.efficiency.value == 1.0
    if name == "constant":
        assert {estimate.value for estimate in curve.gold_gain} == {0.0} and curve.proxy_gain[-1].value == 0.0
    assert found.to_dict()["best_of_n"]["ns"] == curve.ns


def test_file_of_best_of_n_resumed_after_a_kill(tmp_path, faulty_pairs, candidates, monkeypatch):
    """Scores in the rows are those of the function; records of the model are used again, of other weights not."""
    rows = [{"id": f"p{n}", **row, "rewards": [0.0] * 8} for n, row in enumerate(candidates)]
    for key in ("gold_rewards", "scores"):
        path = tmp_path / f"{key}.jsonl"
        scored = [{**row, key: counts_good(None, row["completions"])} for row in rows]
        path.write_text("\n\n".join(json.dumps(row) for row in scored) + "\n")
    options = {"name": "rm", "records_dir": str(tmp_path / "records"), "is_progress_shown": False}
    pairs = faulty_pairs[:5]
    straight = diagnose(rule("length"), pairs, FAST, candidates=str(tmp_path / "scores.jsonl"), **options)
    by_function = diagnose(
        rule("length"), pairs, FAST, candidates=candidates, gold=counts_good, is_progress_shown=False
    )
    assert straight.best_of_n.gold_name.endswith("/scores.jsonl")
    assert straight.best_of_n.gold == by_function.best_of_n.gold
    kept = tmp_path / "records" / "rm.candidates.jsonl"
    lines = kept.read_text().splitlines()
    assert len(lines) == 30
    kept.write_text("\n".join(lines[:25]) + "\n" + lines[25][:8])
    calls, original = [], _CandidateScorer.__call__

    def counting(self, some):
        calls.extend(number for number, _ in some if isinstance(self.source, RewardScorer))
        return original(self, some)

    monkeypatch.setattr(_CandidateScorer, "__call__", counting)
    again = diagnose(rule("length"), pairs, FAST, candidates=tmp_path / "scores.jsonl", **options)
    assert calls == [25, 26, 27, 28, 29] and again.to_dict() == straight.to_dict()
    with pytest.raises(ValueError, match=r"other settings \(data differ\)"):
        diagnose(rule("length"), pairs, FAST, candidates=str(tmp_path / "gold_rewards.jsonl"), **options)
    limited = diagnose(
        rule("length"), pairs, DiagnosisConfig(resamples=20, limit=4),
        candidates=str(tmp_path / "scores.jsonl"), **options,
    )  # fmt: skip
    assert limited.pairs == 4 and limited.best_of_n.drop.pairs == 4


def test_gold_functions_are_distinguished(tmp_path, faulty_pairs, candidates):
    options = {"candidates": candidates, "records_dir": str(tmp_path), "is_progress_shown": False}
    diagnose(rule("length"), faulty_pairs[:3], FAST, gold=counts_good, **options)

    def other(prompts, completions):
        return [len(each) for each in completions]

    other.__name__ = "counts_good"
    with pytest.raises(ValueError, match=r"counts_good\.gold\.jsonl was made with other settings \(weights differ\)"):
        diagnose(rule("length"), faulty_pairs[:3], FAST, gold=other, **options)
    for bad, message in (
        (lambda prompts, completions: [1.0], "gave 1 scores of 240 completions"),
        (lambda prompts, completions: [math.nan] * len(completions), "Row 0 of the candidates has a gold score"),
    ):
        with pytest.raises(ValueError, match=message):
            diagnose(rule("length"), faulty_pairs[:3], FAST, candidates=candidates, gold=bad, is_progress_shown=False)


ROW = {"prompt": "a", "completions": ["b", "c"]}


@pytest.mark.parametrize(
    ("row", "gold", "message"),
    [
        ({**ROW, "prompt": 3}, counts_good, "Row 1 .* needs a `prompt`"),
        ({**ROW, "completions": ["b"]}, counts_good, "must have a list of at least 2"),
        ({**ROW, "completions": ["b", 3]}, counts_good, "neither texts nor messages"),
        ({**ROW, "completions": ["b", [{"role": "assistant", "content": "c"}]]}, None, "neither `gold_rewards` nor"),
        ({**ROW, "scores": [1, 2], "gold_rewards": [1, 2]}, None, "both `gold_rewards` and `scores`"),
        ({**ROW, "scores": [1]}, None, "must have a number for each of 2"),
        ({**ROW, "scores": [1, "2"]}, None, "must have a number for each of 2"),
        ({**ROW, "scores": [1, math.inf]}, None, "has a gold score that is not finite"),
        ({**ROW, "scores": [1, 2]}, counts_good, "has `scores`, but `gold` is given too"),
    ],
)
def test_bad_rows_are_named(faulty_pairs, row, gold, message):
    good = ROW if gold else {**ROW, "scores": [0, 1]}
    with pytest.raises(ValueError, match=message):
        diagnose(rule("length"), faulty_pairs[:2], FAST, candidates=[good, row], gold=gold, is_progress_shown=False)


@pytest.mark.parametrize(
    ("candidates", "gold", "message"),
    [
        (None, counts_good, "`gold` is given, but no `candidates`"),
        ("nowhere.jsonl", None, "`candidates` is 'nowhere.jsonl', but there is no such file"),
        (iter([]), None, "must be a JSONL file or a list of rows"),
    ],
)
def test_bad_candidates_are_named_before_anything_is_loaded(candidates, gold, message):
    with pytest.raises(ValueError, match=message):
        diagnose("rm", [], FAST, candidates=candidates, gold=gold)


def test_command_line_with_a_gold_model_messages_and_long_candidates(tmp_path, capsys):
    for seed, name in enumerate(("rm", "gold")):
        build_student("llama", seed=seed).save_pretrained(tmp_path / name)
        tokenizer_of("bytes").save_pretrained(tmp_path / name)
    pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:3]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs))
    rows = [{"prompt": row["prompt"], "completions": ["Yes.", "No idea.", row["chosen"]]} for row in pairs]
    rows[1]["completions"][1] = " ".join(["word"] * 600)
    (tmp_path / "drawn.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = ["--model", f"{tmp_path}/rm", "--data", f"{tmp_path}/pairs.jsonl", "--output", f"{tmp_path}/out"]
    arguments += ["--resamples", "20", "--gold", f"{tmp_path}/gold"]
    assert main(["diagnose", *arguments, "--candidates", f"{tmp_path}/drawn.jsonl"]) == 0
    (written,) = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    curve = written["best_of_n"]
    assert curve["left_out"] == {"a candidate longer than 512 tokens": 1} and curve["ns"] == [1, 2, 3]
    assert curve["gold_name"].endswith("/gold") and str(tmp_path.parent) not in json.dumps(written)
    scorer = RewardScorer.from_pretrained(str(tmp_path / "gold"))
    scores = [scorer([row["prompt"]] * 3, row["completions"]) for row in (rows[0], rows[2])]
    assert curve["gold"][0]["value"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert curve["oracle"][2]["value"] == pytest.approx(np.mean(np.max(scores, 1)), abs=1e-4)
    assert "prompts left out: 1 (a candidate longer" in (tmp_path / "out" / "index.html").read_text()
    assert main(["diagnose", *arguments]) == 2
    assert "no `candidates` to score" in capsys.readouterr().err
