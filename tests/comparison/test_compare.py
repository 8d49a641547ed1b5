"""A comparison gives what the commands alone give, on rows that none of its models was trained on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml
from support.comparisons import config_of, recipe_of, starts
from support.datasets import ROOT
from support.models import read_weights
from support.pipeline import PAIRS

from hf_interdistill import InteractionTeacher, RewardScorer, compare, run_benchmark
from hf_interdistill.cli import main
from hf_interdistill.comparison import scoring as comparison_scoring
from hf_interdistill.reward_benchmarks import BENCHMARKS
from hf_interdistill.reward_benchmarks.items import Item, Row, judged_together
from hf_interdistill.reward_benchmarks.loading import load_items
from hf_interdistill.reward_benchmarks.running import BenchmarkRun

SAMPLES = ROOT / "tests" / "reward_benchmarks" / "samples"
TEST = PAIRS[64:77]


def margins_of(folder) -> np.ndarray:
    scorer = RewardScorer.from_pretrained(str(folder))
    prompts = [row["prompt"] for row in TEST]
    sides = [scorer(prompts, [row[side] for row in TEST]) for side in ("chosen", "rejected")]
    return np.array(sides[0], dtype=float) - np.array(sides[1], dtype=float)


def test_accuracies_and_differences_are_those_of_the_trained_models(made):
    found, right, losses = made.comparison, {}, {}
    for name in ("baseline", "interaction"):
        margins = [margins_of(made.path("compared", "runs", name, f"seed-{seed}")) for seed in (7, 8)]
        right[name] = np.array([[(value > 0) + (value == 0) / 2 for value in row] for row in margins])
        losses[name] = np.mean([math.log1p(math.exp(-value)) for row in margins for value in row])
        model = found.model(name)
        assert model.accuracy.value == pytest.approx(right[name].mean())
        assert model.of_seeds == pytest.approx({7: right[name][0].mean(), 8: right[name][1].mean()})
        assert model.log_loss == pytest.approx(losses[name], rel=1e-4)
        assert model.mean_margin == pytest.approx(np.mean(margins), rel=1e-3, abs=1e-5)
        assert model.accuracy.low <= model.accuracy.value <= model.accuracy.high
    difference = found.model("interaction").difference
    assert difference.value == pytest.approx((right["interaction"] - right["baseline"]).mean(), abs=1e-12)
    assert (difference.pairs, difference.seeds, found.pairs, found.training_pairs) == (13, 2, 13, 32)
    assert found.model("baseline").difference is None and found.seeds == (7, 8)


def test_the_teacher_is_judged_on_the_same_rows(made):
    (teacher,) = made.comparison.teachers
    margins = InteractionTeacher.from_pretrained(str(made.path("teacher"))).score_pairs(TEST).mean(1)
    assert teacher.accuracy.value == pytest.approx(float((margins > 0).double().mean()))
    assert teacher.models == ("interaction",) and teacher.is_given


def test_the_reference_of_formats_names_what_is_written(made):
    formats = (ROOT / "docs" / "reference" / "formats.md").read_text()
    names = {path.name for path in made.path("compared").iterdir() if not path.name.startswith(".")}
    assert {"index.html", "runs"} <= names and all(f"`{name}" in formats for name in names)


def test_runs_are_those_of_the_reward_command(made):
    """The baseline with `alignment_weight: 0`, the second seed with the seed after the recipe's."""
    plain = made.plain("alone", max_steps=2, save_strategy="no")
    second = made.reward("second", max_steps=2, save_strategy="no", seed=8)
    assert main(plain) == 0 and main(second) == 0
    for alone, name in (("alone", "baseline/seed-7"), ("second", "interaction/seed-8")):
        expected = read_weights(made.path(alone, "model.safetensors"))
        found = read_weights(made.path("compared", "runs", name, "model.safetensors"))
        assert expected.keys() == found.keys()
        assert all((found[key] == value).all() for key, value in expected.items())
    recipe = yaml.safe_load(made.path("compared", "runs", "baseline", "seed-8", "recipe.yaml").read_text())
    assert recipe["alignment_weight"] == 0 and recipe["seed"] == 8 and "teacher_model" not in recipe


def test_costs_are_measured(made):
    cost = made.comparison.model("interaction").cost
    model = RewardScorer.from_pretrained(str(made.path("compared", "runs", "interaction", "seed-7"))).model
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.step_seconds == pytest.approx(cost.seconds / 2)
    assert cost.peak_memory_of == "process" and cost.peak_memory_bytes > 2**26
    kept = [path.name for path in made.path("compared", "runs", "interaction", "seed-7").glob("checkpoint-*")]
    assert kept == []


def test_the_share_of_the_map_that_was_learnt_is_read_from_the_log(made, pipeline):
    """By the evaluation if it says so, else by the last steps; a model without a teacher has none."""
    assert made.comparison.model("interaction").explained < 1 and made.comparison.model("baseline").explained is None
    output = pipeline.path("compared")
    for seed, rows in (
        (
            7,
            [{"interaction/explained": 0.9}, {"eval_interaction/explained": 0.1}, {"eval_interaction/explained": 0.5}],
        ),
        (8, [{"interaction/explained": 0.2}, {"interaction/explained": 0.3}, {"loss": 1.0}]),
    ):
        path = output / "runs" / "interaction" / f"seed-{seed}" / "trainer_state.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        kept = [row for row in state["log_history"] if not any("explained" in key for key in row)]
        path.write_text(json.dumps({**state, "log_history": [*kept, *rows]}), encoding="utf-8")
    found = compare(made.recipe, config_of(output, seeds=2), is_progress_shown=False)
    assert found.model("interaction").explained == pytest.approx(0.4) and found.model("baseline").explained is None
    assert starts(output) == dict.fromkeys(starts(output), 1)


def test_a_teacher_is_fitted_once_for_all_seeds(made, tmp_path):
    """And on the rows that are trained on, without those that are held out."""
    pairs = made.write_rows("pairs.jsonl", PAIRS[:40])
    recipe = recipe_of(made, "unfitted", teacher_model=str(made.path("encoder")), dataset_name=pairs, max_steps=1)
    teacher = tmp_path / "teacher.yaml"
    quick = {"warm_start_epochs": 0, "num_train_epochs": 1, "eval_fraction": 0.25, "use_cpu": True}
    quick |= {"report_to": "none", "disable_tqdm": True}
    teacher.write_text(yaml.safe_dump(quick), encoding="utf-8")
    config = config_of(tmp_path / "out", seeds=2, held_out=0.25, teacher_config=str(teacher))
    found = compare(recipe, config, is_progress_shown=False)
    (folder,) = (tmp_path / "out" / "teachers").iterdir()
    for seed in (7, 8):
        run = yaml.safe_load((tmp_path / "out" / "runs" / "interaction" / f"seed-{seed}" / "recipe.yaml").read_text())
        assert run["teacher_model"] == str(folder)
    fitted = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert fitted["dataset_name"] == str(tmp_path / "out" / "data") and fitted["warm_start_epochs"] == 0
    assert not found.teachers[0].is_given and found.pairs == 10 and found.training_pairs == 30
    parts = [
        {json.loads(line)["prompt"] for line in (tmp_path / "out" / "data" / f"{split}.jsonl").open()}
        for split in ("train", "test")
    ]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 40
    again = compare(recipe, config, is_progress_shown=False)  # nothing is done twice, and the same comes out
    assert again.to_dict() == found.to_dict() and set(starts(tmp_path / "out").values()) == {1}


def test_further_recipes_and_benchmarks(made, tmp_path):
    other = recipe_of(made, "other", label_smoothing_factor=0.2, alignment_weight=0)
    data = str(SAMPLES / "reward_bench" / "filtered.jsonl")
    config = config_of(
        tmp_path, recipes=[f"smoothed={other}"], benchmark=["reward_bench"], benchmark_data=[data], overwrite=True
    )
    found = compare(made.recipe, config, is_progress_shown=False)
    assert [model.name for model in found.models] == ["baseline", "interaction", "smoothed"]
    assert found.model("smoothed").changes == {"label_smoothing_factor": ("0.0", "0.2")}
    (benchmark,) = found.benchmarks
    rewards = {}
    for name in ("baseline", "smoothed"):
        scorer = RewardScorer.from_pretrained(str(tmp_path / "runs" / name / "seed-7"))
        run = run_benchmark(scorer, "reward_bench", data)
        assert benchmark.totals[name] == pytest.approx(run.result.total)
        rewards[name] = [float(chosen > rejected) for chosen, rejected in run.rewards]
        assert benchmark.scores[name].value == pytest.approx(np.mean(rewards[name]))
    difference = np.mean(rewards["smoothed"]) - np.mean(rewards["baseline"])
    assert benchmark.differences["smoothed"].value == pytest.approx(difference)
    assert benchmark.items == len(rewards["baseline"]) and len(found.verdicts()) == 2


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_items_of_every_benchmark_can_be_judged_one_by_one(name):
    """Where all items weigh alike the mean of their scores is the total; elsewhere each score is a share."""
    folder = {"reward_bench": "reward_bench/filtered", "reward_bench_with_prior_sets": "reward_bench"}
    source = SAMPLES / folder.get(name, name.removesuffix("_claude"))
    items = load_items(BENCHMARKS[name], str(source if source.exists() else source.with_suffix(".jsonl")))
    draw = np.random.default_rng(0)
    rewards = [tuple(draw.normal(size=len(item.candidates))) for item in items]

    def total(numbers) -> float:
        return BENCHMARKS[name].aggregate([items[i] for i in numbers], [rewards[i] for i in numbers]).total

    scores = [total(group) for group in judged_together(items)]
    assert all(-0.01 <= score <= 1.01 for score in scores) and len(set(scores)) > 1
    if name == "ppe_human_preference":
        assert np.mean(scores) == pytest.approx(total(range(len(items))))


def test_rows_without_a_pair_have_no_score_of_their_own(tmp_path, monkeypatch):
    def item(scores, pairs):
        answers = {f"response_{number}": "a" for number in range(1, len(scores) + 1)}
        row = {"prompt": "p", "scores": scores, "sampled_conflict_pairs": pairs, **answers}
        return BENCHMARKS["ppe_correctness"].parse(Row("file, line 1", "math", row))

    items = [item([True, False], [[0, 1]]), item([True, True], []), item([False, True], [[0, 1]])]
    benchmark, rewards = BENCHMARKS["ppe_correctness"], ((2, 1), (1, 2), (2, 1))
    run = BenchmarkRun(benchmark.aggregate(items, rewards), 0, rewards)
    monkeypatch.setattr(comparison_scoring, "run_benchmark", lambda *args, **kwargs: run)
    (tmp_path / "config.json").write_text("{}")
    found, scores = comparison_scoring.score_benchmark(None, benchmark, items, tmp_path)
    assert found.result.total == 0.5 and list(scores) == [1, 0]


def test_the_two_rows_of_a_tie_are_judged_together():
    """A row of Ties without its partner is not judged, as in the benchmark's own score."""

    def item(subset, **facts):
        return Item("file, line 1", subset, [], ("a", "b"), facts)

    items = [
        item("Math", correct=1),
        item("Ties", correct=1, kind="ref", prompt="0"),
        item("Math", correct=1),
        item("Ties", correct=2, kind="tied", prompt="0"),
        item("Ties", correct=2, kind="tied", prompt="1"),
    ]
    assert judged_together(items) == [[0], [1, 3], [2]]
