"""Plots as SVG inside a page, in the page's own colors: curves, and intervals in rows.

A plot is plain data, in the units of its axes, and `svg` draws it. Colors are classes whose meaning the style of the
shell gives, so that plots follow dark mode. A box is as wide as a phone; titles and labels of axes are HTML around it,
which wraps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 340.0
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 212.0, 38.0, 14.0, 12.0, 24.0
_ROW, _MARGIN, _NUMBERS = 17.0, 14.0, 126.0  # of intervals in rows: height, left margin, room for numbers on the right
_COLORS = 7


def color_class(number: int) -> str:
    """The class of a model's color by its place on the page; the eighth has that of the first."""
    return f"color-{number % _COLORS}"


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with labels at ticks; `is_log`: powers of 2 are at even distances."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value is, 0 at the low end and 1 at the high end."""
        low, high, at = (math.log2(each) for each in (self.low, self.high, value)) if self.is_log else (
            self.low, self.high, value,
        )  # fmt: skip
        return (at - low) / (high - low)

    @classmethod
    def around(cls, label: str, values: Iterable[float], include: Sequence[float] = (0.0,)) -> Axis:
        """An axis with round ticks that encloses values; those that are not finite are left out."""
        known = [value for value in (*values, *include) if math.isfinite(value)]
        ticks = round_ticks(min(known), max(known))
        return cls(label, ticks[0], ticks[-1], tuple((tick, f"{tick:g}") for tick in ticks))

    @classmethod
    def percent(cls, label: str, values: Iterable[float], low: float = 0.4) -> Axis:
        """From `low`, or the tenth below the smallest value, to 100 %; values are shares."""
        start = min([low, *(math.floor(10 * value) / 10 for value in values if math.isfinite(value))])
        step = 0.1 if start > 0.45 else 0.2 if start >= 0.2 else 0.25
        first = math.floor(start / step + 1e-9) * step
        ticks = [round(first + number * step, 6) for number in range(round((1 - first) / step) + 1)]
        return cls(label, first, 1.0, tuple((tick, f"{100 * tick:.0f}") for tick in ticks))


@dataclass(frozen=True)
class Point:
    """A point with its interval, if it has one, and what a mouse over it says."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one color.

    Args:
        color: a class of the style. points: those with NaN are left out.
        name: for the plot's own legend; empty for a model, which the page's legend names.
        line: `solid`, `dotted`, `dashed`, or empty for none.
        mark: `dot`, `square` (hollow), or empty for none.
        has_band: whether intervals are a band along the line, not bars.
    """

    color: str
    points: Sequence[Point]
    name: str = ""
    line: str = "solid"
    mark: str = "dot"
    has_band: bool = False

    @property
    def drawn(self) -> list[Point]:
        """The points that are defined."""
        return [point for point in self.points if math.isfinite(point.x) and math.isfinite(point.y)]


@dataclass(frozen=True)
class Curves:
    """A plot of series; `level` is a dashed line at this height, such as chance."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    level: float | None = None


@dataclass(frozen=True)
class Interval:
    """A row: a number with its interval, both as text and to be drawn; NaN is not drawn.

    Args:
        others: values of parts, such as seeds, drawn as small rings. is_hollow: a control.
    """

    color: str
    value: float
    low: float
    high: float
    text: str
    others: tuple[float, ...] = ()
    is_hollow: bool = False


@dataclass(frozen=True)
class Intervals:
    """Groups of rows with a label above each; `level` is a dashed line through all, such as chance."""

    title: str
    axis: Axis
    groups: tuple[tuple[str, tuple[Interval, ...]], ...]
    level: float | None = None
    names: tuple[tuple[str, str], ...] = ()  # classes and their meaning, for the plot's own legend


Plot = Curves | Intervals


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five of them, that enclose an interval."""
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 9) for number in range(first, max(last, first + 1) + 1)]


def legend(names: Iterable[tuple[str, str]]) -> Markup:
    """A line of keys, `(class, name)`; nothing without names."""
    keys = [Markup('<span class="key"><i class="dot {}"></i>{}</span>').format(*each) for each in names]
    return Markup('<p class="legend">{}</p>\n').format(Markup(" ").join(keys)) if keys else Markup("")


def figure(plot: Plot) -> Markup:
    """A plot with its title, labels and legend."""
    if isinstance(plot, Intervals):
        names, above, below = plot.names, "", plot.axis.label
    else:
        names = tuple((_key(each), each.name) for each in plot.series if each.name)
        above, below = plot.y.label, plot.x.label
    head = Markup("<figcaption>{}</figcaption>\n").format(plot.title) if plot.title else Markup("")
    label = Markup('<p class="axis">{}</p>\n').format(above) if above else Markup("")
    return Markup('<figure>\n{}{}{}{}\n<p class="axis below">{}</p>\n</figure>\n').format(
        head, legend(names), label, svg(plot), below
    )


def _key(series: Series) -> str:
    """The class of a series in a legend."""
    form = "hollow" if series.mark == "square" else "" if series.mark else series.line
    return f"{series.color} {form}".strip()


def svg(plot: Plot) -> Markup:
    """The drawing alone."""
    return _curves(plot) if isinstance(plot, Curves) else _intervals(plot)


def _curves(plot: Curves) -> Markup:
    right, bottom = WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x(value: float) -> float:
        return round(_LEFT + plot.x.share(value) * (right - _LEFT), 1)

    def y(value: float) -> float:
        return round(bottom - plot.y.share(value) * (bottom - _TOP), 1)

    parts = [_line("grid", _LEFT, y(tick), right, y(tick)) for tick, _ in plot.y.ticks]
    parts += [_text(_LEFT - 6, y(tick) + 4, label, "end") for tick, label in plot.y.ticks]
    parts += [_text(x(tick), _HEIGHT - 6, label, "middle") for tick, label in plot.x.ticks]
    parts += [_line("grid", x(tick), bottom, x(tick), bottom + 4) for tick, _ in plot.x.ticks]
    if plot.level is not None:
        parts.append(_line("level", _LEFT, y(plot.level), right, y(plot.level)))
    for series in plot.series:
        parts += _series(series, x, y)
    return _drawing(_HEIGHT, plot.title or plot.y.label, parts)


def _series(series: Series, x, y) -> list[Markup]:
    points = series.drawn
    parts = []
    ranged = [point for point in points if point.low is not None and point.high is not None]
    if series.has_band and len(ranged) > 1:
        edge = [(point.x, point.high) for point in ranged] + [(point.x, point.low) for point in reversed(ranged)]
        corners = " ".join(f"{x(each)},{y(bound)}" for each, bound in edge)
        parts.append(Markup('<polygon class="band {}" points="{}"></polygon>').format(series.color, corners))
    if series.line and len(points) > 1:
        places = " ".join(f"{x(point.x)},{y(point.y)}" for point in points)
        parts.append(
            Markup('<polyline class="line {} {}" points="{}"></polyline>').format(series.line, series.color, places)
        )
    if not series.has_band:
        parts += [
            _line(f"interval {series.color}", x(point.x), y(point.low), x(point.x), y(point.high)) for point in ranged
        ]
    if series.mark:
        parts += [_mark(series.color, series.mark == "square", x(point.x), y(point.y), point.note) for point in points]
    return parts


def _intervals(plot: Intervals) -> Markup:
    right = WIDTH - _NUMBERS

    def x(value: float) -> float:
        return round(_MARGIN + plot.axis.share(value) * (right - _MARGIN), 1)

    parts, top = [], 2.0
    for label, rows in plot.groups:
        if label:
            parts.append(_text(0, top + 12, label, "start", "label"))
            top += 17
        heights = [_ROW + (7 if row.others else 0) for row in rows]
        bottom = top + sum(heights) + 4
        lines = [(tick, "grid") for tick, _ in plot.axis.ticks if tick != plot.level]
        lines += [] if plot.level is None else [(plot.level, "level")]
        parts += [_line(style, x(value), top - 1, x(value), bottom) for value, style in lines]
        for row, height in zip(rows, heights, strict=True):
            parts += _interval(row, x, top + _ROW / 2)
            top += height
        top += 5
    parts += [_text(x(tick), top + 12, label, "middle") for tick, label in plot.axis.ticks]
    return _drawing(top + 17, plot.title or plot.axis.label, parts)


def _interval(row: Interval, x, middle: float) -> list[Markup]:
    parts = [_text(WIDTH, middle + 4, row.text, "end", "number")]
    if math.isfinite(row.value):
        parts += [_line(f"interval {row.color}", x(row.low), middle, x(row.high), middle)] * math.isfinite(row.low)
        parts.append(_mark(row.color, row.is_hollow, x(row.value), middle, ""))
    return [*parts, *(_ring(row.color, x(value), middle + 11) for value in row.others)]


def _drawing(height: float, name: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">\n{}\n</svg>').format(
        WIDTH, height, name, Markup("\n").join(parts)
    )


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    places = (round(each, 1) for each in (x1, y1, x2, y2))
    return Markup('<line class="{}" x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}"></line>').format(style, *places)


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:g}" y="{:g}" text-anchor="{}">{}</text>').format(
        style, round(x, 1), round(y, 1), anchor, text
    )


def _mark(color: str, is_hollow: bool, x: float, y: float, note: str) -> Markup:
    title = Markup("<title>{}</title>").format(note) if note else Markup("")
    if is_hollow:
        return Markup('<rect class="hollow {}" x="{:g}" y="{:g}" width="8" height="8">{}</rect>').format(
            color, round(x - 4, 1), round(y - 4, 1), title
        )
    return Markup('<circle class="mark {}" cx="{:g}" cy="{:g}" r="4.5">{}</circle>').format(
        color, x, round(y, 1), title
    )


def _ring(color: str, x: float, y: float) -> Markup:
    return Markup('<circle class="ring {}" cx="{:g}" cy="{:g}" r="2.4"></circle>').format(color, x, round(y, 1))
