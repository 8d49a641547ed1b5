"""Plots of each measure, several models in one plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from ...utils.pages.charts import Axis, Curves, Intervals, Plot, Point, Series, color_class, figure, legend
from ..measures.estimates import Estimate
from ..result import Diagnosis
from .context_plots import draw_early_context, draw_swapped_prompt, draw_turn_removal
from .optional_plots import draw_best_of_n, draw_noise
from .points import CORRECT, Shown, interval, near, point, short


def draw_accuracy(shown: Shown) -> list[Plot]:
    """Right pairs of each model, ties beside."""
    groups = []
    for number, each in shown:
        found = each.accuracy
        label = f"{short(each.model)} ({100 * found.ties.value:.1f} % ties)"
        groups.append((label, (interval(number, found.accuracy),)))
    return [Intervals("", _shares(CORRECT, shown, lambda each: [each.accuracy.accuracy]), tuple(groups), 0.5)]


def draw_masking(shown: Shown) -> list[Plot]:
    """Accuracy as the beginning or the end is taken away, and with one part alone taken away."""
    curves = {
        side: [[each.masking.whole, *getattr(each.masking, side)] for _, each in shown] for side in ("first", "last")
    }
    height = Axis.percent(CORRECT, [one.low for side in curves.values() for curve in side for one in curve])
    removed = [0.0, *shown[0][1].masking.fractions]
    width = Axis("content removed (%)", 0.0, removed[-1], tuple((share, f"{100 * share:.0f}") for share in removed))
    plots: list[Plot] = [
        Curves(
            title, width, height,
            tuple(
                Series(
                    color_class(number),
                    [point(x, one) for x, one in zip((0.0, *each.masking.fractions), curve, strict=True)],
                    has_band=True,
                )
                for (number, each), curve in zip(shown, curves[side], strict=True)
            ),
            0.5,
        )
        for side, title in (("first", "Beginning removed"), ("last", "End removed (control)"))
    ]  # fmt: skip
    labels = {"prompt": "prompt", "response_start": f"first {100 * removed[-1]:.0f} % of the response"}
    alone = _categories("Only this removed", shown, labels, lambda each, part: getattr(each.masking, part))
    return [*plots, alone]


def draw_cue(shown: Shown) -> list[Plot]:
    """Accuracy with the phrase on either response, and without it."""
    labels = {
        "on_chosen": "phrase on the better response",
        "plain": "no phrase",
        "on_rejected": "phrase on the worse response",
    }
    return [_categories("", shown, labels, lambda each, part: getattr(each.cue, part))]


def draw_length(shown: Shown) -> list[Plot]:
    """Accuracy by which response is longer."""
    labels = {
        "longer_is_better": "longer response is the better one",
        "longer_is_worse": "longer response is the worse one",
    }
    return [_categories("", shown, labels, lambda each, part: getattr(each.length, part))]


def draw_disagreement(shown: Shown) -> list[Plot]:
    """Accuracy where the members of an ensemble agree, and where they differ."""
    labels = {"agreed": "members agree", "differed": "members differ"}
    return [_categories("", shown, labels, lambda each, part: getattr(each.disagreement, part))]


def draw_attention(shown: Shown) -> list[Plot]:
    """Attention over the fifths of the text, one plot a model; the first token is apart, on the left."""
    masses = [side for _, each in shown for side in (each.attention.right, each.attention.wrong)]
    height = Axis.around(
        "attention of the scored token (%)",
        [100 * one.high for side in masses for one in (side.sink, *side.stages)],
    )
    plots: list[Plot] = []
    for _, each in shown:
        stages = len(each.attention.right.stages)
        ticks = ((-0.6, "first token"), *((float(stage + 1), str(stage + 1)) for stage in range(stages)))
        series = []
        for name, side, shift in (("right", each.attention.right, -0.07), ("wrong", each.attention.wrong, 0.07)):
            label = f"{side.sink.pairs} pairs ranked {name}"
            sink = point(-0.6 + shift, side.sink, 100)
            fifths = [point(stage + 1 + shift, one, 100) for stage, one in enumerate(side.stages)]
            series += [
                Series(f"color-{name}", [sink], line=""),
                Series(f"color-{name}", fifths, label if side.sink.pairs else ""),
            ]
        width = Axis("fifth of the text, from its beginning", -1.1, stages + 0.4, ticks)
        plots.append(Curves(each.model, width, height, tuple(series)))
    return plots


def draw_calibration(shown: Shown) -> list[Plot]:
    """How often the first response is better, by the probability that the model gives to it; few bins, exact bars."""
    ticks = tuple((tick / 4, f"{tick / 4:g}") for tick in range(5))
    width = Axis("probability the model gives to the first response", 0.0, 1.0, ticks)
    height = Axis("how often the first one is better", 0.0, 1.0, ticks)
    diagonal = Series("color-muted", [Point(0.0, 0.0), Point(1.0, 1.0)], line="dashed", mark="")
    series = []
    for index, (number, each) in enumerate(shown):
        points = []
        for one in each.calibration.bins:
            note = f"{one.share.pairs} pairs, probabilities {one.lowest:.2f} to {one.highest:.2f}"
            at = min(max(near(one.probability, index, len(shown), 0.012), 0.0), 1.0)
            points.append(point(at, one.share, note=note))
        series.append(Series(color_class(number), points))
    return [Curves("", width, height, (diagonal, *series))]


def _categories(title: str, shown: Shown, labels: dict[str, str], read: Callable) -> Intervals:
    """A group of intervals a label, one for each model."""
    groups = tuple(
        (label, tuple(interval(number, read(each, part)) for number, each in shown)) for part, label in labels.items()
    )
    axis = _shares(CORRECT, shown, lambda each: [read(each, part) for part in labels])
    return Intervals(title, axis, groups, 0.5)


def _shares(label: str, shown: Shown, read: Callable[[Diagnosis], Iterable[Estimate]]) -> Axis:
    return Axis.percent(label, [one.low for _, each in shown for one in read(each)])


PLOTS: dict[str, Callable[[Shown], Sequence[Plot]]] = {
    "accuracy": draw_accuracy,
    "masking": draw_masking,
    "swapped_prompt": draw_swapped_prompt,
    "early_context": draw_early_context,
    "turn_removal": draw_turn_removal,
    "cue": draw_cue,
    "length": draw_length,
    "attention": draw_attention,
    "calibration": draw_calibration,
    "disagreement": draw_disagreement,
    "label_noise": draw_noise,
    "best_of_n": draw_best_of_n,
}


def draw(diagnoses: Sequence[Diagnosis]) -> dict[str, Markup]:
    """The plots of each measure as HTML, by the measure's name; a measure that no model has gets none."""
    drawn = {}
    for name, plot in PLOTS.items():
        shown = [(number, each) for number, each in enumerate(diagnoses) if getattr(each, name) is not None]
        if shown:
            figures = Markup("").join(figure(each) for each in plot(shown))
            names_rows = name in ("accuracy", "attention")  # these name each model themselves
            models = [(color_class(number), each.model) for number, each in shown]
            keys = legend(models) if len(shown) > 1 and not names_rows else Markup("")
            drawn[name] = Markup('{}<div class="plots">\n{}</div>').format(keys, figures)
    return drawn
