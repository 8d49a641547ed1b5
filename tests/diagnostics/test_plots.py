"""What the plots show are the numbers that their titles and labels say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.attention import measure_attention
from hf_interdistill.diagnostics.measures.best_of_n import measure_best_of_n
from hf_interdistill.diagnostics.measures.disagreement import measure_disagreement
from hf_interdistill.diagnostics.measures.early_context import measure_early_context
from hf_interdistill.diagnostics.measures.noise import measure_noise
from hf_interdistill.diagnostics.measures.pair_results import PairResults
from hf_interdistill.diagnostics.measures.swapped_prompt import measure_swapped_prompt
from hf_interdistill.diagnostics.measures.turn_removal import measure_turn_removal
from hf_interdistill.diagnostics.report.plots import PLOTS, draw
from hf_interdistill.utils.pages.charts import Curves, Intervals, Series, svg

OPTIONS = DiagnosisConfig(resamples=20)


@pytest.fixture(scope="module")
def shown(diagnoses):
    """Two models with every measure, as the report numbers them."""
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(20, 8))
    found = []
    for number, (name, rule) in enumerate((("model-a", "perfect"), ("model-b-with-a-rather-long-name", "end"))):
        noise = measure_noise(np.ones(40), {0.2: ("x", generator.choice([-1.0, 1.0], 40))}, 0, OPTIONS)
        curve = measure_best_of_n((gold + number).tolist(), gold.tolist(), OPTIONS, gold_name="truth")
        optional = {"label_noise": noise, "best_of_n": curve, **of_the_context(generator), **of_pairs(generator)}
        found.append((number, replace(diagnoses[rule], model=name, **optional)))
    return found


def of_the_context(generator) -> dict:
    """The measures of the context, of random rewards."""
    numbers = np.arange(40)
    distances = np.stack([10 * numbers, numbers % 3], axis=1)
    margins, removed, controls = generator.normal(size=40), *generator.normal(size=(2, 40, 3))
    kinds = ["name", "word"] * 20
    return {
        "swapped_prompt": measure_swapped_prompt(
            generator.normal(size=(40, 2, 2)), numbers, numbers // 2, numbers, OPTIONS
        ),
        "early_context": measure_early_context(generator.normal(size=(40, 2, 2, 2)), distances, kinds, OPTIONS),
        "turn_removal": measure_turn_removal(margins, removed, controls, np.ones((40, 3)), OPTIONS),
    }


def of_pairs(generator) -> dict:
    """Attention, and the disagreement of an ensemble, of random numbers."""
    members = generator.normal(size=(3, 40, 2))
    pairs = PairResults(
        {"full": members.mean(0)}, np.ones((40, 2)), generator.dirichlet(np.ones(6), 40), [{}] * 40, {}, members
    )
    return {
        "attention": measure_attention(pairs, OPTIONS),
        "disagreement": measure_disagreement(pairs, OPTIONS),
    }


def heights(series: Series) -> list[float]:
    return [point.y for point in series.points]


def values(plot: Intervals) -> dict[str, list[float]]:
    """Values of the rows by the label of their group, models in order."""
    return {label: [row.value for row in rows] for label, rows in plot.groups}


@pytest.mark.parametrize("name", PLOTS)
def test_every_measure_is_drawn_inside_its_box_in_the_colors_of_models(name, shown):
    plots = PLOTS[name](shown)
    assert plots
    for plot in plots:
        axes = (plot.axis,) if isinstance(plot, Intervals) else (plot.x, plot.y)
        assert all(axis.label and axis.low < axis.high and len(axis.ticks) >= 2 for axis in axes)
        if isinstance(plot, Curves):
            for point in (point for series in plot.series for point in series.drawn):
                assert 0 <= plot.x.share(point.x) <= 1 and 0 <= plot.y.share(point.y) <= 1
                assert point.low is None or plot.y.low <= point.low <= point.y <= point.high <= plot.y.high
        else:
            rows = [row for _, group in plot.groups for row in group]
            assert all(plot.axis.low <= row.low <= row.value <= row.high <= plot.axis.high for row in rows)
            assert all(len(row.text) <= 19 for row in rows)  # the room beside the plot
        assert "nan" not in svg(plot)
    html = draw([each for _, each in shown])[name]
    assert ("color-0" in html and "color-1" in html) or name == "attention"
    assert html.count("model-b-with-a-rather-long-name") >= 1


def test_numbers_that_are_not_defined_are_not_drawn(diagnoses):
    """The model without an opinion is right in none of its decided pairs, for there are none."""
    (plot,) = PLOTS["accuracy"]([(0, diagnoses["constant"])])
    ((label, (row,)),) = plot.groups
    assert np.isnan(row.value) and row.text == "not defined" and "100.0 % ties" in label
    assert "nan" not in svg(plot) and "circle" not in svg(plot)


def test_accuracy_is_that_of_each_model(shown):
    (plot,) = PLOTS["accuracy"](shown)
    ties = [f"{100 * each.accuracy.ties.value:.1f} % ties" for _, each in shown]
    assert list(values(plot)) == [f"model-a ({ties[0]})", f"model-b-with-a-rather-long-name ({ties[1]})"]
    assert ties[0] == "0.0 % ties" != ties[1]
    assert [each for (each,) in values(plot).values()] == [each.accuracy.accuracy.value for _, each in shown]
    found = shown[0][1].accuracy.accuracy
    assert plot.groups[0][1][0].text == f"{100 * found.value:.1f} ({100 * found.low:.0f} to {100 * found.high:.0f})"
    assert plot.level == 0.5


def test_the_last_plot_of_masking_shows_what_is_left_without_a_part(shown):
    """The model that reads the end alone loses nothing without the prompt; a title that says "only this part" would
    have it right by the prompt alone, which both responses share."""
    plot = PLOTS["masking"](shown)[2]
    assert plot.title == "Only this removed"
    parts = {"prompt": "prompt", "first 80 % of the response": "response_start"}
    assert values(plot) == {
        label: [getattr(each.masking, part).value for _, each in shown] for label, part in parts.items()
    }


def test_the_curves_of_masking_remove_more_to_the_right(shown):
    first, last, _ = PLOTS["masking"](shown)
    for plot, side, title in ((first, "first", "Beginning removed"), (last, "last", "End removed (control)")):
        assert plot.title == title and plot.x.label == "content removed (%)" and plot.level == 0.5
        for series, (number, each) in zip(plot.series, shown, strict=True):
            curve = [each.masking.whole, *getattr(each.masking, side)]
            assert heights(series) == pytest.approx([e.value for e in curve], nan_ok=True)
            assert [point.x for point in series.points] == [0.0, 0.2, 0.4, 0.6, 0.8]
            assert series.color == f"color-{number}" and series.has_band


LABELS = {
    "cue": {
        "phrase on the better response": "on_chosen",
        "no phrase": "plain",
        "phrase on the worse response": "on_rejected",
    },
    "length": {
        "longer response is the better one": "longer_is_better",
        "longer response is the worse one": "longer_is_worse",
    },
    "swapped_prompt": {"all answers": "own", "better answers": "chosen", "worse answers": "rejected"},
    "disagreement": {"members agree": "agreed", "members differ": "differed"},
}


@pytest.mark.parametrize("name", LABELS)
def test_rows_are_below_their_labels(name, shown):
    (plot,) = PLOTS[name](shown)
    expected = {
        label: [getattr(getattr(each, name), part).value for _, each in shown] for label, part in LABELS[name].items()
    }
    assert values(plot) == expected and plot.level == 0.5
    assert all([row.color for row in rows] == ["color-0", "color-1"] for _, rows in plot.groups)


def test_losses_point_up_and_gains_down(shown):
    """Second plot of label noise: the share lost in percent, above zero where accuracy fell."""
    accuracy, loss = PLOTS["label_noise"](shown)
    assert loss.y.label.startswith("advantage over chance lost (%)") and accuracy.title == "Accuracy"
    repeated, half, *lost = loss.series
    assert [each.name for each in (repeated, half)] == ["every flip repeated", "half"]
    assert [heights(each)[-1] for each in (repeated, half)] == pytest.approx([40.0, 20.0])  # of a fifth flipped
    for series, of_accuracy, (_, each) in zip(lost, accuracy.series, shown, strict=True):
        noise = each.label_noise
        share = (noise.clean.value - noise.accuracy[0].value) / (noise.clean.value - 0.5)
        assert heights(series) == [pytest.approx(100 * share)]
        assert heights(of_accuracy) == [noise.clean.value, noise.accuracy[0].value]
        assert [point.x for point in of_accuracy.points] == pytest.approx([0.0, 0.2], abs=0.01)


def test_gains_of_best_of_n_are_over_a_random_choice(shown):
    reward, gold = PLOTS["best_of_n"](shown)
    for plot, part, unit in ((reward, "proxy_gain", "standard deviations"), (gold, "gold_gain", "gold score")):
        assert plot.y.label == f"gain over a random choice ({unit})" and plot.level == 0.0
        drawn = [series for series in plot.series if series.mark]
        for series, (_, each) in zip(drawn, shown, strict=True):
            assert [point.x for point in series.points] == each.best_of_n.kl
            assert heights(series) == [e.value for e in getattr(each.best_of_n, part)]
            assert heights(series)[0] == 0.0
        assert [label for _, label in plot.x.ticks] == ["1", "2", "4", "8"]
    (best,) = [series for series in gold.series if not series.mark]  # one for both: the gold scores are the same
    assert best.name == "best possible"
    assert heights(best) == [each.value for each in shown[0][1].best_of_n.oracle_gain]


def test_instructions_are_drawn_by_their_distance(shown):
    (plot,) = PLOTS["early_context"](shown)
    assert plot.x.label == "tokens from the instruction to the end of the prompt" and plot.x.is_log
    early = [series for series in plot.series if series.mark == "dot"]
    late = [series for series in plot.series if series.mark == "square"]
    for series, control, (_, each) in zip(early, late, shown, strict=True):
        found = each.early_context
        assert [point.x for point in series.points] == pytest.approx([one.median for one in found.bins], rel=0.06)
        assert heights(series) == [one.accuracy.value for one in found.bins] and len(found.bins) == 4
        assert [(point.x, point.y) for point in control.points] == [(pytest.approx(1.0, rel=0.06), found.last.value)]
    assert [series.name for series in plot.series if series.name] == [
        "instruction at the beginning",
        "at the end (control)",
    ]


def test_turns_are_drawn_above_their_controls(shown):
    (plot,) = PLOTS["turn_removal"](shown)
    for place, (label, rows) in zip(("first", "middle", "last"), plot.groups, strict=True):
        turns = [getattr(each.turn_removal, place) for _, each in shown]
        expected = [estimate.value for turn in turns for estimate in (turn.change, turn.control)]
        assert label == f"{place} turn removed" and [row.value for row in rows] == expected
        assert [row.is_hollow for row in rows] == [False, True] * 2


def test_attention_is_that_of_right_and_wrong_pairs(shown):
    for plot, (_, each) in zip(PLOTS["attention"](shown), shown, strict=True):
        found = each.attention
        for name, side in (("right", found.right), ("wrong", found.wrong)):
            sink, fifths = [series for series in plot.series if series.color == f"color-{name}"]
            assert heights(sink) == [pytest.approx(100 * side.sink.value)]
            assert heights(fifths) == pytest.approx([100 * one.value for one in side.stages])
            assert [round(point.x) for point in fifths.points] == [1, 2, 3, 4, 5] and sink.points[0].x < 0
            assert fifths.name == f"{side.sink.pairs} pairs ranked {name}" and not sink.name
        assert plot.title == each.model


def test_calibration_bins_lie_where_the_probability_is_with_their_intervals(shown):
    (plot,) = PLOTS["calibration"](shown)
    assert (plot.x.label, plot.y.label) == (
        "probability the model gives to the first response",
        "how often the first one is better",
    )
    diagonal, *models = plot.series
    assert [(point.x, point.y) for point in diagonal.points] == [(0, 0), (1, 1)] and not diagonal.mark
    for series, (_, each) in zip(models, shown, strict=True):
        bins = each.calibration.bins
        assert 1 <= len(bins) <= 5
        assert [point.x for point in series.points] == pytest.approx([one.probability for one in bins], abs=0.01)
        drawn = [(point.y, point.low, point.high) for point in series.points]
        assert drawn == [(one.share.value, one.share.low, one.share.high) for one in bins]
        assert series.points[0].note.endswith(
            f"; {bins[0].share.pairs} pairs, probabilities {bins[0].lowest:.2f} to {bins[0].highest:.2f}"
        )
