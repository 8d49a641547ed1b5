"""`diagnose` of an ensemble: how far its members differ, against the members read by themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.datasets import read_rows
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardEnsemble, RewardScorer, diagnose
from hf_interdistill.cli import main
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.disagreement import measure_disagreement
from hf_interdistill.diagnostics.measures.pair_results import PairResults

FAST = DiagnosisConfig(resamples=50, batch_size=4, context_measures=())
PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:12]]


def save(folder, seed: int) -> str:
    build_student(seed=seed).save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("members")
    return [save(root / f"rm{seed}", seed) for seed in range(3)]


def margins_of(folders) -> np.ndarray:
    """`(members, pairs)`"""
    prompts = [row["prompt"] for row in PAIRS]
    margins = []
    for folder in folders:
        scorer = RewardScorer.from_pretrained(folder)
        sides = [np.array(scorer(prompts, [row[side] for row in PAIRS])) for side in ("chosen", "rejected")]
        margins.append(sides[0] - sides[1])
    return np.stack(margins)


def test_members_are_compared_on_the_pairs(folders, tmp_path):
    ensemble = RewardEnsemble.from_pretrained(folders, aggregation="mean")
    found = diagnose(ensemble, PAIRS, FAST, output_dir=str(tmp_path), is_progress_shown=False)
    margins = margins_of(folders)
    split = np.array([len(set(np.sign(column))) > 1 for column in margins.T])
    assert 0 < split.mean() < 1
    measured = found.disagreement
    assert measured.split.value == pytest.approx(split.mean())
    spread = np.mean([np.std(column) for column in margins.T]) / np.std(margins.mean(0))
    assert measured.spread.value == pytest.approx(spread, rel=1e-4)
    assert [each.value for each in measured.members] == pytest.approx((margins > 0).mean(1).tolist())
    right = margins.mean(0) > 0
    assert measured.agreed.value == pytest.approx(right[~split].mean())
    assert measured.differed.value == pytest.approx(right[split].mean())
    assert found.accuracy.accuracy.value == pytest.approx(right.mean())
    assert found.attention is None and "Diagnose the members by themselves" in found.problem("attention")
    page = (tmp_path / "index.html").read_text()
    assert "Do the members of the ensemble differ where it is wrong?" in page and "weakest member" in page
    assert "disagreement" in json.loads((tmp_path / "diagnosis.json").read_text())[0]["findings"]


def test_a_model_of_flipped_labels_is_read_beside_an_ensemble(folders):
    ensemble = RewardEnsemble.from_pretrained(folders[:2])
    found = diagnose(ensemble, PAIRS, FAST, noise_models={0.25: folders[2]}, is_progress_shown=False)
    assert found.label_noise.accuracy[0].value == pytest.approx((margins_of(folders[2:])[0] > 0).mean())


def test_a_single_model_has_no_disagreement(folders):
    found = diagnose(folders[0], PAIRS[:4], FAST, is_progress_shown=False)
    assert found.disagreement is None and "disagreement" not in found.to_dict()
    assert found.problem("disagreement") == "Not run: the model is not an ensemble."


def test_the_command_takes_its_folder_and_starts_anew_when_it_changes(folders, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    name = tmp_path / "ensemble"
    RewardEnsemble.from_pretrained(folders).save_pretrained(name)
    command = ["diagnose", "--model", str(name), "--data", str(tmp_path / "pairs.jsonl")]
    command += ["--output", str(tmp_path / "out"), "--resamples", "20", "--context_measures", "none"]
    assert main(command) == 0
    assert "Members prefer" in " ".join(capsys.readouterr().out.split())
    RewardEnsemble.from_pretrained(name, aggregation="worst").save_pretrained(name)
    assert main(command) != 0
    assert "other settings" in capsys.readouterr().err


def results(margins: np.ndarray) -> PairResults:
    """Of members with the given margins, `(members, pairs)`."""
    rewards = np.stack([margins, np.zeros_like(margins)], axis=-1)
    pairs = margins.shape[1]
    return PairResults(
        rewards={"full": rewards.mean(0)},
        lengths=np.ones((pairs, 2)),
        attention=np.full((pairs, 6), np.nan),
        texts=[{}] * pairs,
        left_out={},
        members=rewards,
    )


def test_verdicts():
    config, pairs = DiagnosisConfig(resamples=200), 600
    rng = np.random.default_rng(0)
    copies = np.stack([rng.normal(size=pairs)] * 3)
    assert measure_disagreement(results(copies), config).finding().verdict == "flag"
    sure, unsure = np.full((3, pairs // 2), 1.0), rng.normal(size=(3, pairs // 2))
    assert measure_disagreement(results(np.concatenate([sure, unsure], 1)), config).finding().verdict == "pass"
    few = np.concatenate([np.ones((3, 15)), rng.normal(size=(3, 5))], 1)
    found = measure_disagreement(results(few), config).finding()
    assert found.verdict == "inconclusive" and "Too few pairs" in found.sentence
    wrong = np.concatenate([-sure, unsure], 1)
    assert measure_disagreement(results(wrong), config).finding().verdict == "inconclusive"
