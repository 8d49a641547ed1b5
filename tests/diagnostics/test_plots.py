"""What the pictures draw are the numbers that their titles and labels say, and every text is inside the picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.measures.best_of_n import measure_best_of_n
from hf_interdistill.diagnostics.measures.early_context import measure_early_context
from hf_interdistill.diagnostics.measures.noise import measure_noise
from hf_interdistill.diagnostics.measures.swapped_prompt import measure_swapped_prompt
from hf_interdistill.diagnostics.measures.turn_removal import measure_turn_removal
from hf_interdistill.diagnostics.report import context_plots, optional_plots, plots
from hf_interdistill.diagnostics.report.drawing import STYLE

OPTIONS = DiagnosisConfig(resamples=20)


@pytest.fixture(scope="module")
def shown(diagnoses):
    """Two models with every measure, as the report numbers them."""
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(20, 8))
    attention = None
    found = []
    for number, (name, rule) in enumerate((("model-a", "perfect"), ("model-b-with-a-rather-long-name", "end"))):
        noise = measure_noise(np.ones(40), {0.2: ("x", generator.choice([-1.0, 1.0], 40))}, 0, OPTIONS)
        curve = measure_best_of_n((gold + number).tolist(), gold.tolist(), OPTIONS, gold_name="truth")
        optional = {"attention": attention, "label_noise": noise, "best_of_n": curve, **of_the_context(generator)}
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


def drawn(plot, shown):
    with rc_context(STYLE):
        figure = plot(shown)
        FigureCanvasAgg(figure).draw()
    return figure


def dots(axis) -> dict[float, list[float]]:
    """Heights of the dots (lines of one point) by their place, models in order."""
    found: dict[float, list[float]] = {}
    for line in axis.get_lines():
        x, y = np.atleast_1d(line.get_xdata()), np.atleast_1d(line.get_ydata())
        if len(x) == 1 and line.get_marker() == "o":
            found.setdefault(round(float(x[0])), []).append(float(y[0]))
    return found


PLOTS = {
    "accuracy": plots._accuracy,
    "masking": plots._masking,
    "swapped_prompt": context_plots.draw_swapped_prompt,
    "early_context": context_plots.draw_early_context,
    "turn_removal": context_plots.draw_turn_removal,
    "cue": plots._cue,
    "length": plots._length,
    "calibration": plots._calibration,
    "label_noise": optional_plots.draw_noise,
    "best_of_n": optional_plots.draw_best_of_n,
}


@pytest.mark.parametrize("name", PLOTS)
def test_every_text_is_inside_the_picture(name, shown):
    figure = drawn(PLOTS[name], shown)
    box = figure.bbox
    ticks = {id(label) for axis in figure.axes for each in (axis.xaxis, axis.yaxis) for label in each.get_ticklabels()}
    for text in figure.findobj(Text):
        if id(text) not in ticks and text.get_text().strip():  # ticks beyond the limits are kept, and not drawn
            extent = text.get_window_extent()
            assert box.x0 - 1 <= extent.x0 and extent.x1 <= box.x1 + 1, text.get_text()
            assert box.y0 - 1 <= extent.y0 and extent.y1 <= box.y1 + 1, text.get_text()


def test_titles_do_not_overlap(shown):
    for name in ("masking", "label_noise", "best_of_n"):
        figure = drawn(PLOTS[name], shown)
        titles = [axis.title if axis.title.get_text() else axis._left_title for axis in figure.axes]
        extents = [title.get_window_extent() for title in titles if title.get_text()]
        assert len(extents) >= 2
        for one, other in pairwise(extents):
            assert one.x1 < other.x0, name


def test_the_right_panel_of_masking_shows_what_is_left_without_a_part(shown):
    """The model that reads the end alone loses nothing without the prompt; a title that says "only this part" would
    have it right by the prompt alone, which both responses share."""
    axis = drawn(plots._masking, shown).axes[2]
    assert axis.get_title(loc="left") == "Only this removed"
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["prompt", "first 80 %\nof response"]
    for place, part in enumerate(("prompt", "response_start")):
        expected = [100 * getattr(each.masking, part).value for _, each in shown]
        assert dots(axis)[place] == pytest.approx(expected)


def test_the_curves_of_masking_remove_more_to_the_right(shown):
    first, last, _ = drawn(plots._masking, shown).axes
    for axis, side, title in ((first, "first", "Beginning removed"), (last, "last", "End removed (control)")):
        assert axis.get_title(loc="left") == title and axis.get_xlabel() == "content removed (%)"
        lines = [line for line in axis.get_lines() if len(line.get_xdata()) == 5]
        for line, (_, each) in zip(lines, shown, strict=True):
            curve = [each.masking.whole, *getattr(each.masking, side)]
            assert line.get_ydata() == pytest.approx([100 * e.value for e in curve], nan_ok=True)
            assert line.get_xdata() == pytest.approx([0, 20, 40, 60, 80])


@pytest.mark.parametrize(
    ("name", "measure", "labels"),
    [
        (
            "cue",
            "cue",
            {
                "phrase on the better response": "on_chosen",
                "no phrase": "plain",
                "phrase on the worse response": "on_rejected",
            },
        ),
        (
            "length",
            "length",
            {
                "longer response is the better one": "longer_is_better",
                "longer response is the worse one": "longer_is_worse",
            },
        ),
    ],
)
def test_dots_are_above_their_labels(name, measure, labels, shown, diagnoses):
    shown = [*shown, (2, diagnoses["cue"]), (3, diagnoses["length"])]
    axis = drawn(PLOTS[name], shown).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == list(labels)
    for place, part in enumerate(labels.values()):
        assert dots(axis)[place] == pytest.approx([100 * getattr(getattr(e, measure), part).value for _, e in shown])


def test_losses_point_up_and_gains_down(shown):
    """Right panel of label noise: the share lost, above zero where accuracy fell."""
    accuracy, loss = drawn(optional_plots.draw_noise, shown).axes
    assert loss.get_ylabel().startswith("advantage over chance lost (%)")
    assert accuracy.get_title(loc="left") == "Accuracy"
    expected = [100 * each.label_noise.lost_advantage[0].value for _, each in shown]
    assert dots(loss)[20][: len(shown)] == pytest.approx(expected)
    for _, each in shown:
        noise = each.label_noise
        assert noise.lost_advantage[0].value == pytest.approx(
            (noise.clean.value - noise.accuracy[0].value) / (noise.clean.value - 0.5)
        )


def test_gains_of_best_of_n_are_over_a_random_choice(shown):
    reward, gold = [axis for axis in drawn(optional_plots.draw_best_of_n, shown).axes if axis.get_ylabel()]
    for axis, part, unit in ((reward, "proxy_gain", "standard deviations"), (gold, "gold_gain", "gold score")):
        assert axis.get_ylabel() == f"gain over a random choice\n({unit})"
        lines = [line for line in axis.get_lines() if line.get_marker() == "o" and len(line.get_xdata()) > 1]
        for line, (_, each) in zip(lines, shown, strict=True):
            assert line.get_xdata() == pytest.approx(each.best_of_n.kl)
            assert line.get_ydata() == pytest.approx([e.value for e in getattr(each.best_of_n, part)])
            assert line.get_ydata()[0] == 0.0


def markers(axis, marker: str) -> list[tuple[float, float]]:
    """Places of the dots of one form, lines of one point, in the order of drawing."""
    lines = [line for line in axis.get_lines() if line.get_marker() == marker and len(line.get_xdata()) == 1]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def test_swapped_prompts_are_above_their_labels(shown):
    axis = drawn(PLOTS["swapped_prompt"], shown).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["all answers", "better answers", "worse answers"]
    assert axis.get_ylabel().startswith("own prompt gets more (%)")
    for place, part in enumerate(("own", "chosen", "rejected")):
        assert dots(axis)[place] == pytest.approx([100 * getattr(e.swapped_prompt, part).value for _, e in shown])


def test_instructions_are_drawn_by_their_distance(shown):
    axis = drawn(PLOTS["early_context"], shown).axes[0]
    assert axis.get_xlabel() == "tokens from the instruction to the end of the prompt"
    measures = [each.early_context for _, each in shown]
    bins = [(one.median, 100 * one.accuracy.value) for each in measures for one in each.bins]
    controls = [(1.0, 100 * each.last.value) for each in measures]
    for marker, expected in (("o", bins), ("s", controls)):
        (places, heights), (medians, values) = (np.array(each).T for each in (markers(axis, marker), expected))
        assert places == pytest.approx(medians, rel=0.06) and heights == pytest.approx(values)  # models are apart
    assert len(bins) == 8
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "instruction at the beginning",
        "at the end (control)",
    ]


def test_turns_are_drawn_beside_their_controls(shown):
    axis = drawn(PLOTS["turn_removal"], shown).axes[0]
    places = ("first", "middle", "last")
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"{place} turn removed" for place in places]
    for marker, part in (("o", "change"), ("s", "control")):
        expected = [getattr(getattr(each.turn_removal, place), part).value for _, each in shown for place in places]
        found = markers(axis, marker)
        assert [height for _, height in found] == pytest.approx(expected)
        assert [round(place) for place, _ in found] == [0, 1, 2] * 2
    assert all(left < right for (left, _), (right, _) in zip(markers(axis, "o"), markers(axis, "s"), strict=True))


def test_calibration_bins_lie_where_the_probability_is(shown):
    axis = drawn(plots._calibration, shown).axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == (
        "probability the model gives to the first response",
        "how often the first one is better",
    )
    lines = [line for line in axis.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata())]
    for line, (_, each) in zip(lines, shown, strict=False):
        assert line.get_xdata() == pytest.approx([one.probability for one in each.calibration.bins])
        assert line.get_ydata() == pytest.approx([one.share for one in each.calibration.bins])
