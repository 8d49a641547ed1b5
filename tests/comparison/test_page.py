"""What a reader sees: the page, its numbers, the tables and lines on the terminal."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from support.comparisons import recipe_of, starts
from support.pages import check_page

from hf_interdistill.cli import main
from hf_interdistill.comparison.report.intervals import interval_plot
from hf_interdistill.comparison.report.page import render
from hf_interdistill.comparison.statistics import Estimate
from hf_interdistill.utils.wording import duration, signed


def test_the_page_has_verdict_table_picture_diagnosis_and_cost(made):
    source = made.path("compared", "index.html").read_text(encoding="utf-8")
    page, found = check_page(source, None), made.comparison
    model = found.model("interaction")
    (sentence,) = found.verdicts()
    ((_, verdict),) = page.all("p", "verdict")
    assert verdict == sentence.replace(":", "", 1) and page.text.index(verdict) < page.text.index("Accuracy")
    assert page.all("span", f"badge {model.verdict}")[0][1] == model.verdict
    (low, value, high) = (
        f"{100 * each:.1f}" for each in (model.accuracy.low, model.accuracy.value, model.accuracy.high)
    )
    assert f"{value} %{low} to {high}" in page.text
    assert f"{signed(model.difference.low)} to {signed(model.difference.high)}" in page.text
    for title in ("Differences from the baseline", "Diagnosis side by side", "Cost of a training", "What differs in"):
        assert title in page.text
    assert model.diagnosis.findings()["accuracy"].sentence.replace("\N{NO-BREAK SPACE}", " ") in page.text
    assert "mapexplained" in page.text and "alignment_weight0.01.0" in page.text
    assert made.path("compared", "diagnosis", "index.html").exists()
    findings = [finding.verdict for finding in model.diagnosis.findings().values()]
    assert {text for _, text in page.all("span", "badge")} >= {model.verdict, *findings}
    diagnosis = made.path("compared", "diagnosis", "index.html").read_text(encoding="utf-8")
    check_page(diagnosis, None)


def test_numbers_are_written_as_json(made):
    kept = json.loads(made.path("compared", "comparison.json").read_text(encoding="utf-8"))
    found = made.comparison
    assert kept == json.loads(json.dumps(found.to_dict())) and kept["verdicts"] == found.verdicts()
    (baseline, model) = kept["models"]
    assert model["difference"]["value"] == found.model("interaction").difference.value
    assert (baseline["verdict"], model["verdict"]) == (None, found.model("interaction").verdict)
    assert baseline["of_seeds"].keys() == {"7", "8"} and model["diagnosis"]["accuracy"]["sentence"]


def test_names_of_users_are_escaped_and_the_explained_column_comes_when_it_is_known(made):
    models = [replace(each, name=f"<b>{each.name}", explained=0.25) for each in made.comparison.models[1:]]
    changed = replace(made.comparison, data="<script>", models=(made.comparison.models[0], *models))
    source = render(changed)
    assert "<script>" not in source and "<b>" not in source and "&lt;b&gt;interaction" in source
    page = check_page(source, None)
    assert "mapexplained" in page.text and "0.25" in page.text


@pytest.mark.parametrize(
    "estimate, verdict, expected",
    [
        (
            Estimate(0.008, -0.01, 0.025, 300, 3),
            "inconclusive",
            "x minus baseline +0.8 points, 95 % interval -1.0 to +2.5, on 300 pairs and 3 seeds.",
        ),
        (
            Estimate(0.02, 0.0002, 0.04, 1200, 5),
            "pass",
            "x minus baseline +2.0 points, 95 % interval +0.02 to +4.0, on 1,200 pairs and 5 seeds.",
        ),
        (
            Estimate(-0.02, -0.03, -0.01, 300, 1),
            "flag",
            "x minus baseline -2.0 points, 95 % interval -3.0 to -1.0, on 300 pairs and 1 seed (the interval is over "
            "pairs alone: another seed may differ by more).",
        ),
        (
            Estimate(0.02, 0.0, 0.04, 300, 2),
            "inconclusive",
            "x minus baseline +2.0 points, 95 % interval 0.0 to +4.0, on 300 pairs and 2 seeds.",
        ),
    ],
)
def test_a_verdict_claims_no_more_than_its_interval(made, estimate, verdict, expected):
    baseline, model = made.comparison.models
    found = replace(made.comparison, models=(baseline, replace(model, name="x", difference=estimate)))
    assert found.verdicts() == [f"{verdict}: {expected}"] and found.model("x").verdict == verdict
    page = check_page(render(found), None)
    assert [text for _, text in page.all("p", "verdict")] == [f"{verdict} {expected}"]


def test_without_a_difference_there_is_no_verdict(made):
    assert made.comparison.models[0].verdict is None


def test_durations_are_read_at_a_glance():
    assert [duration(each) for each in (0.52, 45.4, 720, 12240)] == ["0.5 s", "45 s", "12 min", "3.4 h"]


def test_the_plot_has_every_difference_in_points(made):
    plot = interval_plot(made.comparison)
    ((label, (row,)),) = plot.groups
    model, baseline = made.comparison.model("interaction"), made.comparison.model("baseline")
    found = model.difference
    assert label == "interaction, held-out pairs" and plot.level == 0.0 and row.color == "color-muted"
    assert (row.value, row.low, row.high) == tuple(100 * each for each in (found.value, found.low, found.high))
    assert row.text == f"{signed(found.value)} ({signed(found.low)} to {signed(found.high)})"
    assert row.others == tuple(100 * (model.of_seeds[seed] - baseline.of_seeds[seed]) for seed in (7, 8))
    assert plot.axis.low <= min(row.low, *row.others) and max(row.high, *row.others) <= plot.axis.high
    shown = replace(model, difference=replace(found, low=0.001, value=0.01, high=0.02))
    ((_, (row,)),) = interval_plot(replace(made.comparison, models=(baseline, shown))).groups
    assert row.color == "color-0"


def test_the_command_changes_all_recipes_and_prints_tables_and_one_line_a_stage(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    recipe = recipe_of(made, "printed")
    words = ["--seeds", "1", "--diagnosis_pairs=0", "--max_steps=1", "--student_layers", "-2"]
    assert main(["compare", "--config", str(recipe), "--output", str(tmp_path), *words]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("[")]
    assert re.fullmatch(r"\[2/4\] train baseline, seed 7: \d+ s, about \d+ s of training left", lines[1])
    assert re.fullmatch(r"\[3/4\] train interaction, seed 7: \d+ s", lines[2])
    assert re.fullmatch(r"\[4/4\] score 13 held-out pairs: \d+ s", lines[3]) and len(lines) == 4
    assert "Accuracy on 13 held-out pairs, 1 seed" in printed and "Cost of a training" in printed
    assert "13 pairs and 1 seed (the interval is over pairs alone" in " ".join(printed.split())
    for name in ("baseline", "interaction"):
        kept = (tmp_path / "runs" / name / "seed-7" / "recipe.yaml").read_text()
        assert "max_steps: 1" in kept and ("student_layers" in kept) == (name == "interaction")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    check_page(
        page, f"interdistill compare --config {recipe.parent.name}/{recipe.name} --output {tmp_path.parent.name}"
    )
    assert "- -2" in kept and set(starts(tmp_path).values()) == {1}


def test_the_command_without_a_recipe_or_with_an_unknown_key(capsys, tmp_path):
    assert main(["compare", "--output", str(tmp_path), "--dataset_name", "any"]) == 2
    assert "There is no recipe. Write `--config recipe.yaml`" in capsys.readouterr().err
    assert main(["compare", "--output", str(tmp_path), "--seedz", "3"]) == 2
    assert "Unknown key `seedz` given. Did you mean `seed" in capsys.readouterr().err
