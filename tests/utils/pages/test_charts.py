"""Plots: what is drawn is where its numbers say, in the page's own colors, and inside the box."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from hf_interdistill.utils.pages.charts import (
    WIDTH,
    Axis,
    Curves,
    Interval,
    Intervals,
    Point,
    Series,
    color_class,
    figure,
    legend,
    round_ticks,
    svg,
)

UNIT = Axis("x", 0.0, 1.0, ((0.0, "0"), (1.0, "1")))


class Drawing(HTMLParser):
    """The elements of a drawing: (tag, attributes with numbers as numbers)."""

    def __init__(self, source: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(str(source))

    def handle_starttag(self, tag, attrs):
        self.found.append(
            (tag, {n: float(v) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", v) else v for n, v in attrs if v is not None})
        )

    def all(self, tag: str, style: str) -> list[dict]:
        wanted = set(style.split())
        return [each for name, each in self.found if name == tag and wanted <= set(str(each.get("class")).split())]


def curves(*series: Series, x: Axis = UNIT, y: Axis = UNIT, level: float | None = None) -> Drawing:
    return Drawing(svg(Curves("title", x, y, series, level)))


def test_points_are_where_their_numbers_are():
    """The axes are the lines through the outermost ticks; between them places are proportional."""
    axis = Axis("y", -2.0, 6.0, ((-2.0, "-2"), (2.0, "2"), (6.0, "6")))
    points = [Point(0.0, -2.0), Point(0.25, 1.0, 0.0, 3.0), Point(1.0, 6.0), Point(0.5, math.nan)]
    drawing = curves(Series("color-3", points), y=axis, level=2.0)
    grid = [line for line in drawing.all("line", "grid") if line["y1"] == line["y2"]]
    bottom, middle, top = (line["y1"] for line in grid)
    left, right = grid[0]["x1"], grid[0]["x2"]
    assert top < middle < bottom and left < right  # of an SVG, y grows downwards
    assert (middle - top) == pytest.approx(bottom - middle) and drawing.all("line", "level")[0]["y1"] == middle
    marks = drawing.all("circle", "mark color-3")
    assert [(each["cx"], each["cy"]) for each in marks] == [
        (left, bottom),
        (pytest.approx(left + (right - left) / 4, abs=0.06), pytest.approx(bottom + (top - bottom) * 3 / 8, abs=0.06)),
        (right, top),
    ]
    (bar,) = drawing.all("line", "interval color-3")
    assert bar["x1"] == bar["x2"] == marks[1]["cx"]
    assert bar["y1"] == pytest.approx(bottom + (top - bottom) * 2 / 8, abs=0.06)  # 0 of -2 to 6
    assert bar["y2"] == pytest.approx(bottom + (top - bottom) * 5 / 8, abs=0.06)  # 3
    (line,) = drawing.all("polyline", "solid color-3")
    assert line["points"] == " ".join(f"{each['cx']},{each['cy']}" for each in marks)


def test_doublings_are_at_even_distances():
    axis = Axis("x", 1.0, 16.0, ((1.0, "1"), (4.0, "4"), (16.0, "16")), is_log=True)
    marks = curves(Series("color-0", [Point(x, 0.5) for x in (1.0, 2.0, 4.0, 16.0)]), x=axis).all("circle", "mark")
    one, two, four, sixteen = (each["cx"] for each in marks)
    assert two - one == pytest.approx(four - two, abs=0.2) and sixteen - four == pytest.approx(four - one, abs=0.2)


def test_forms_of_series():
    points = [Point(0.0, 0.2, 0.1, 0.3), Point(1.0, 0.4, 0.2, 0.6)]
    drawing = curves(
        Series("color-0", points, line="dotted", mark="square"),
        Series("color-1", points, has_band=True),
        Series("color-2", points, line="", mark="dot"),
        Series("color-4", points[:1], line="dashed", mark="", has_band=True),
    )
    assert len(drawing.all("rect", "hollow color-0")) == 2 and len(drawing.all("polyline", "dotted color-0")) == 1
    (band,) = drawing.all("polygon", "band")
    corners = [tuple(map(float, each.split(","))) for each in band["points"].split()]
    lows, highs = sorted(y for _, y in corners)[2:], sorted(y for _, y in corners)[:2]
    assert band["class"] == "band color-1" and len(corners) == 4 and max(highs) < max(lows)
    assert corners[0][0] == corners[3][0] < corners[1][0] == corners[2][0]
    assert not drawing.all("polyline", "color-2") and len(drawing.all("circle", "color-2")) == 2
    assert not drawing.all("polyline", "color-4") and not drawing.all("circle", "color-4")
    assert {bar["class"].split()[1] for bar in drawing.all("line", "interval")} == {"color-0", "color-2"}


def test_intervals_in_rows_are_where_their_numbers_are():
    axis = Axis.around("points", [-3.0, 5.0])
    rows = (Interval("color-0", 1.0, -3.0, 5.0, "one"), Interval("color-1", math.nan, math.nan, math.nan, "none"))
    kept = Interval("color-2", 0.0, -1.0, 1.0, "three", others=(-2.0, 2.0), is_hollow=True)
    drawing = Drawing(svg(Intervals("title", axis, (("first", rows), ("second", (kept,))), level=0.0)))
    zero = drawing.all("line", "level")[0]["x1"]
    scale = (drawing.all("line", "interval color-0")[0]["x2"] - zero) / 5
    assert scale > 0
    bar, (mark,) = drawing.all("line", "interval color-0")[0], drawing.all("circle", "mark")
    assert mark["cx"] == pytest.approx(zero + scale, abs=0.1) and bar["x1"] == pytest.approx(zero - 3 * scale, abs=0.1)
    assert bar["y1"] == bar["y2"] == mark["cy"] and mark["class"] == "mark color-0"
    (hollow,) = drawing.all("rect", "hollow color-2")
    assert hollow["x"] + hollow["width"] / 2 == pytest.approx(zero, abs=0.1)
    assert [ring["cx"] for ring in drawing.all("circle", "ring")] == [
        pytest.approx(zero - 2 * scale, abs=0.1),
        pytest.approx(zero + 2 * scale, abs=0.1),
    ]
    heights = [each["y"] for each in drawing.all("text", "number")]
    assert heights == sorted(heights) and len(set(heights)) == 3
    assert len(drawing.all("line", "level")) == 2  # through the rows of each group, not through its label
    labels = [each["y"] for each in drawing.all("text", "label")]
    for label in labels:
        assert not any(line["y1"] < label - 4 < line["y2"] for line in drawing.all("line", "level"))


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-0.3, 0.2), (3, 3), (0, 0), (-1e-9, 1e-9), (12.2, 987.6), (-50, 100), (0.001, 0.0042)]
)
def test_ticks_are_few_round_and_enclose(low, high):
    ticks = round_ticks(low, high)
    steps = {round(after - before, 9) for before, after in pairwise(ticks)}
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low + 1e-9 and high - 1e-9 <= ticks[-1] and len(steps) == 1
    assert f"{next(iter(steps)):e}"[0] in "125" and sorted(set(ticks)) == ticks


@pytest.mark.parametrize("lowest, first", [(0.9, 0.4), (0.41, 0.4), (0.3, 0.2), (0.05, 0.0), (math.nan, 0.4)])
def test_axes_of_shares_end_at_one_and_show_chance(lowest, first):
    axis = Axis.percent("right (%)", [lowest, 0.95])
    assert axis.low == pytest.approx(first) and axis.high == 1.0 and axis.low < 0.5
    assert [float(label) / 100 for _, label in axis.ticks] == pytest.approx([tick for tick, _ in axis.ticks])
    assert axis.ticks[0][0] == pytest.approx(axis.low) and axis.ticks[-1][0] == pytest.approx(1.0)
    assert 3 <= len(axis.ticks) <= 6


def test_everything_is_inside_the_box_and_text_has_its_size_on_a_phone():
    """390 pixels less the margins of a page are about 332, and a box of 340 shows 12 units of text in 11 pixels."""
    assert 12 * 332 / WIDTH > 11
    points = [Point(0.0, 0.0, 0.0, 0.1), Point(1.0, 1.0, 0.9, 1.0)]
    for drawing in (
        curves(Series("color-0", points), Series("color-1", points, has_band=True)),
        Drawing(svg(Intervals("", UNIT, (("group", (Interval("color-0", 1.0, 0.0, 1.0, "100.0 (100 to 100)"),)),)))),
    ):
        (box,) = (each for name, each in drawing.found if name == "svg")
        _, _, width, height = map(float, box["viewbox"].split())
        assert width == WIDTH
        for _, each in drawing.found:
            assert all(0 <= each[name] <= width for name in ("x", "x1", "x2", "cx") if name in each)
            assert all(0 <= each[name] <= height for name in ("y", "y1", "y2", "cy") if name in each)


def test_texts_are_escaped_and_colors_are_classes():
    evil = "<script>alert(1)</script>\"'&"
    axis = Axis(evil, 0.0, 1.0, ((0.0, evil),))
    series = Series("color-0", [Point(0.0, 0.0, note=evil)], evil)
    interval = Interval("color-0", 0.5, 0.4, 0.6, evil)
    for html in (
        figure(Curves(evil, axis, axis, (series,))),
        figure(Intervals(evil, axis, ((evil, (interval,)),), names=(("color-0", evil),))),
        legend([("color-0", evil)]),
    ):
        assert "<script" not in html and "&lt;script&gt;" in html
        assert not re.search(r"#[0-9a-f]{3,6}\b|rgb|style=", html)
    assert [color_class(number) for number in (0, 6, 7)] == ["color-0", "color-6", "color-0"]


def test_a_plot_names_its_series_once_and_has_its_labels_around():
    named = Series("color-0", [Point(0.0, 0.0)], "dots"), Series("color-ink", [Point(0.0, 0.0)], "line", "dotted", "")
    html = figure(Curves("Title", UNIT, Axis("height", 0.0, 1.0, ()), named))
    assert html.count('class="dot color-0"') == 1 and html.count('class="dot color-ink dotted"') == 1
    assert html.index("Title") < html.index("height") < html.index("<svg") < html.index('class="axis below">x<')
    assert "legend" not in figure(Curves("", UNIT, UNIT, (Series("color-0", [Point(0.0, 0.0)]),)))
