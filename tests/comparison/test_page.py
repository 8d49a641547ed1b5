"""What a reader sees: the page, its numbers, the tables and lines on the terminal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support.comparisons import recipe_of, starts

from hf_interdistill.cli import main
from hf_interdistill.comparison.report.intervals import interval_plot
from hf_interdistill.comparison.report.page import render
from hf_interdistill.comparison.result import duration, signed, verdict
from hf_interdistill.comparison.statistics import Estimate

VOID = {"meta", "br", "line", "circle"}


class Page(HTMLParser):
    """The text of a page, and whether its elements are closed in order."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def test_the_page_has_verdict_table_picture_diagnosis_and_cost(made):
    source = made.path("compared", "index.html").read_text(encoding="utf-8")
    page, found = Page(source), made.comparison
    assert page.text.index(found.verdicts()[0]) < page.text.index("Accuracy")
    model = found.model("interaction")
    assert f"{100 * model.accuracy.value:.1f} % {100 * model.accuracy.low:.1f} to {100 * model.accuracy.high:.1f}" in (
        page.text
    )
    assert f"{signed(model.difference.low)} to {signed(model.difference.high)}" in page.text
    for title in ("Differences from the baseline", "Diagnosis side by side", "Cost of a training", "What differs in"):
        assert title in page.text
    assert model.diagnosis.findings()["accuracy"].sentence.replace("\N{NO-BREAK SPACE}", " ") in page.text
    assert "map explained" in page.text and "alignment_weight 0.0 1.0" in page.text
    assert made.path("compared", "diagnosis", "index.html").exists()
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", source)  # it needs nothing from elsewhere
    assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source


def test_numbers_are_written_as_json(made):
    kept = json.loads(made.path("compared", "comparison.json").read_text(encoding="utf-8"))
    found = made.comparison
    assert kept == json.loads(json.dumps(found.to_dict())) and kept["verdicts"] == found.verdicts()
    (baseline, model) = kept["models"]
    assert model["difference"]["value"] == found.model("interaction").difference.value
    assert baseline["of_seeds"].keys() == {"7", "8"} and model["diagnosis"]["accuracy"]["sentence"]


def test_names_of_users_are_escaped_and_the_explained_column_comes_when_it_is_known(made):
    models = [replace(each, name=f"<b>{each.name}", explained=0.25) for each in made.comparison.models[1:]]
    changed = replace(made.comparison, data="<script>", models=(made.comparison.models[0], *models))
    source = render(changed)
    assert "<script>" not in source and "<b>" not in source and "&lt;b&gt;interaction" in source
    assert "map explained" in Page(source).text and "0.25" in Page(source).text


@pytest.mark.parametrize(
    "estimate, expected",
    [
        (
            Estimate(0.008, -0.01, 0.025, 300, 3),
            "x minus baseline: +0.8 points, 95 % interval -1.0 to +2.5: no difference shown on 300 pairs and 3 seeds.",
        ),
        (
            Estimate(0.02, 0.0002, 0.04, 1200, 5),
            "x minus baseline: +2.0 points, 95 % interval +0.02 to +4.0: right more often on 1,200 pairs and 5 seeds.",
        ),
        (
            Estimate(-0.02, -0.03, -0.01, 300, 1),
            "x minus baseline: -2.0 points, 95 % interval -3.0 to -1.0: right less often on 300 pairs and 1 seed (the "
            "interval is over pairs alone: another seed may differ by more).",
        ),
        (
            Estimate(0.02, 0.0, 0.04, 300, 2),
            "x minus baseline: +2.0 points, 95 % interval 0.0 to +4.0: no difference shown on 300 pairs and 2 seeds.",
        ),
    ],
)
def test_a_verdict_claims_no_more_than_its_interval(estimate, expected):
    assert verdict("x", estimate) == expected


def test_durations_are_read_at_a_glance():
    assert [duration(each) for each in (0.52, 45.4, 720, 12240)] == ["0.5 s", "45 s", "12 min", "3.4 h"]


def test_the_picture_has_all_in_order(made):
    """Where a number is right of another it is drawn so, and zero is at the zero of the axis."""
    plot = interval_plot(made.comparison)
    (line,) = plot.lines
    difference = made.comparison.model("interaction").difference
    assert 0 < line.low <= line.value <= line.high < plot.width and len(line.seeds) == 2
    assert {label: x for x, label in plot.ticks}["0"] == plot.zero
    assert [x for x, _ in plot.ticks] == sorted(x for x, _ in plot.ticks)
    (left, first), (right, last) = plot.ticks[0], plot.ticks[-1]
    scale = (right - left) / (float(last) - float(first))
    assert line.value == pytest.approx(plot.zero + 100 * difference.value * scale, abs=0.1)
    assert not line.is_shown


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
    assert "- -2" in kept and set(starts(tmp_path).values()) == {1}


def test_the_command_without_a_recipe_or_with_an_unknown_key(capsys, tmp_path):
    assert main(["compare", "--output", str(tmp_path), "--dataset_name", "any"]) == 2
    assert "There is no recipe. Write `--config recipe.yaml`" in capsys.readouterr().err
    assert main(["compare", "--output", str(tmp_path), "--seedz", "3"]) == 2
    assert "Unknown key `seedz` given. Did you mean `seed" in capsys.readouterr().err
