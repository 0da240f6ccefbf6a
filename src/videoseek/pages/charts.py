"""Charts as inline SVG and HTML: curves over steps, bars of rates, histograms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from videoseek.pages.page import Markup, tag

#: Colours of the models in order, safe for the colour-blind (Okabe and Ito). A fourth model gets the first colour.
MODEL_COLOURS = ("#7a828c", "#d98e04", "#0b6fae")

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24
_MAX_POINTS = 400
#: A curve with this many points or more is pale, with the running mean on top.
_SMOOTHED_FROM = 60
_SMOOTHING_SHARE = 0.025
_NUM_BINS = 24
#: Above this ratio of largest value to median, the first of equal bins would hold nearly every value.
_LONG_TAIL = 20.0


@dataclass(frozen=True, slots=True)
class Series:
    """A curve. A value is None at an unlogged step."""

    label: str
    colour: str
    steps: Sequence[int]
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Bar:
    """A rate in [0, 1] with one standard error; `chance` is the rate of guessing."""

    label: str
    colour: str
    value: float
    error: float | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to fractions of the chart's side, on a logarithmic scale if `log`."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    @classmethod
    def fit(cls, values: Sequence[float], *, log: bool = False) -> Axis:
        """Returns an axis with round ticks for the range of the values. `log` applies to positive values only."""
        low, high = min(values), max(values)
        if log and low > 0:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            last = max(last, first + 1)
            stride = -(-(last - first) // 5)
            return cls(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, stride)), True)
        if high - low <= 1e-9 * max(abs(high), abs(low)):
            margin = abs(high) / 2 or 0.5
            low, high = low - margin, high + margin
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, last * step, tuple(index * step for index in range(first, last + 1)))

    def place(self, value: float) -> float:
        """Returns 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _round_step(at_least: float) -> float:
    """Returns the smallest of 1, 2, 5 times a power of ten >= `at_least`."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * (1 - 1e-9))


def line_chart(title: str, series: Sequence[Series], *, include: Sequence[float] = (), log: bool = False) -> Markup:
    """Draws a curve per series, or nothing for empty series. The axis also spans the values of `include`."""
    shown = [line for line in series if any(_is_number(value) for value in line.values)]
    if not shown:
        return Markup("")
    values = [value for line in shown for value in line.values if value is not None and math.isfinite(value)]
    vertical = Axis.fit([*values, *include], log=log)
    steps = [step for line in shown for step in line.steps]
    horizontal = Axis.fit([0, *steps]) if len(set(steps)) > 1 else Axis.fit([0, *steps, 1])
    # The axis of steps ends at the last step of the run instead of the next round number.
    horizontal = Axis(0, max(steps), tuple(tick for tick in horizontal.ticks if tick <= max(steps)))
    drawing = tag(
        "svg",
        *_grid_marks(horizontal, vertical),
        *(path for line in shown for path in _curve_marks(line, horizontal, vertical)),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title} by step",
    )
    legend = [swatch(line.label, line.colour) for line in shown] if len(shown) > 1 else []
    heading = tag("figcaption", tag("strong", title), *legend)
    return tag("figure", heading, drawing, class_="chart")


def column_chart(
    title: str, horizontal: Axis, edges: Sequence[float], counts: Sequence[int], *, unit: str, colour: str
) -> Markup:
    """Draws a histogram: `counts[i]` values lie between `edges[i]` and `edges[i + 1]`; `horizontal` spans the edges."""
    vertical = Axis.fit([0, *counts])
    columns = []
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        left, right, top = _x(horizontal, start), _x(horizontal, end), _y(vertical, count)
        hint = tag("title", f"{plain_number(start)} to {plain_number(end)} {unit}: {count:,}")
        size = {"width": max(right - left - 1, 0.5), "height": _y(vertical, 0) - top}
        columns += [tag("rect", hint, x=left + 0.5, y=top, fill=colour, **size)] if count else []
    drawing = tag(
        "svg",
        *_grid_marks(horizontal, vertical, plain_number),
        *columns,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}, in {unit}",
    )
    heading = tag("figcaption", tag("strong", title), tag("span", unit, class_="swatch"))
    return tag("figure", heading, drawing, class_="chart")


def swatch(label: str, colour: str) -> Markup:
    """Returns an entry of a legend."""
    return tag("span", tag("i", style=f"background:{colour}"), label, class_="swatch")


def bar_chart(bars: Sequence[Bar]) -> Markup:
    """Draws rates as horizontal bars on a scale from 0 to 100 %, each with its number."""
    rows = []
    for bar in bars:
        marks = [tag("rect", x=0, y=3, width=f"{100 * bar.value:.2f}%", height=16, rx=2, fill=bar.colour)]
        if bar.error is not None:
            low, high = (f"{100 * min(max(bar.value + sign * bar.error, 0), 1):.2f}%" for sign in (-1, 1))
            marks.append(tag("line", x1=low, x2=high, y1=11, y2=11, class_="whisker"))
        if bar.chance is not None:
            place = f"{100 * bar.chance:.2f}%"
            marks.append(tag("line", tag("title", "chance"), x1=place, x2=place, y1=0, y2=22, class_="chance"))
        track = tag("svg", *marks, width="100%", height=22, class_="track", aria_hidden="true")
        rows += [tag("span", bar.label, class_="bar-label"), track, tag("span", percent(bar.value), class_="number")]
    return tag("div", *rows, class_="bars")


def percent(value: float) -> str:
    """Returns a rate in per cent, to a tenth."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def number_text(value: float) -> str:
    """Returns four significant digits, without leading zeros of the exponent, and 0 for rounding errors."""
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e") if abs(value) > 1e-12 else "0"


def plain_number(value: float) -> str:
    """Returns `number_text`, but numbers from 1,000 on in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 else number_text(value)


def _grid_marks(horizontal: Axis, vertical: Axis, show: Callable[[float], str] = number_text) -> Iterator[Markup]:
    for tick in vertical.ticks:
        y = _y(vertical, tick)
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", show(tick), x=_LEFT - 6, y=y + 4, text_anchor="end")
    for tick in horizontal.ticks:
        anchor = "end" if horizontal.place(tick) > 0.97 else "middle"
        yield tag("text", show(tick), x=_x(horizontal, tick), y=_HEIGHT - 6, text_anchor=anchor)


def _curve_marks(line: Series, horizontal: Axis, vertical: Axis) -> Iterator[Markup]:
    """Draws the curve, broken at missing values. A long curve is pale, with the running mean on top."""
    steps, values = _thinned(line.steps, line.values)
    if len(values) >= _SMOOTHED_FROM:
        yield _curve_path(steps, values, horizontal, vertical, line.colour, opacity=0.3)
        values = _running_mean(values, max(1, round(len(values) * _SMOOTHING_SHARE)))
    yield _curve_path(steps, values, horizontal, vertical, line.colour, opacity=1)
    runs = [value is not None for value in values]
    for index, (step, value) in enumerate(zip(steps, values, strict=True)):
        alone = not any(runs[max(index - 1, 0) : index] + runs[index + 1 : index + 2])
        if value is not None and alone:
            yield tag("circle", cx=_x(horizontal, step), cy=_y(vertical, value), r=2.5, fill=line.colour)


def _curve_path(
    steps: Sequence[float],
    values: Sequence[float | None],
    horizontal: Axis,
    vertical: Axis,
    colour: str,
    *,
    opacity: float,
) -> Markup:
    pieces, pen_down = [], False
    for step, value in zip(steps, values, strict=True):
        if value is not None:
            pieces.append(f"{'L' if pen_down else 'M'}{_x(horizontal, step):.1f} {_y(vertical, value):.1f}")
        pen_down = value is not None
    return tag("path", d="".join(pieces), stroke=colour, class_="curve", opacity=opacity)


def _thinned(steps: Sequence[int], values: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """Returns at most _MAX_POINTS points, each the mean of several steps."""
    stride = -(-len(steps) // _MAX_POINTS)
    starts = range(0, len(steps), stride)
    means = [_mean_of_numbers(values[start : start + stride]) for start in starts]
    return [sum(steps[start : start + stride]) / len(steps[start : start + stride]) for start in starts], means


def _running_mean(values: Sequence[float | None], window: int) -> list[float | None]:
    """Returns means of up to `window` values on each side. Equal numbers on both sides keep a slope in place."""
    means = []
    for index, value in enumerate(values):
        reach = min(window, index, len(values) - 1 - index)
        means.append(None if value is None else _mean_of_numbers(values[index - reach : index + reach + 1]))
    return means


def _mean_of_numbers(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else None


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _x(axis: Axis, step: float) -> float:
    return _LEFT + axis.place(step) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


@dataclass(frozen=True, slots=True)
class Summary:
    """Size, sum and quantiles of a list of values."""

    num_values: int
    total: float
    least: float
    median: float
    mean: float
    p90: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarises at least one value."""
        numbers = np.asarray(values, np.float64)
        least, median, p90, most = np.quantile(numbers, [0, 0.5, 0.9, 1]).tolist()
        return cls(len(values), float(numbers.sum()), least, median, float(numbers.mean()), p90, most)


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values lie in [edges[i], edges[i + 1]); the last bin includes its end. `axis` spans the edges."""

    title: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    axis: Axis
    summary: Summary


def histogram(title: str, unit: str, values: Sequence[float]) -> Histogram | None:
    """Returns None without any value. A few whole numbers get one bin each; a long tail gets bins of growing width."""
    if not values:
        return None
    summary = Summary.of(values)
    whole = all(value == int(value) for value in values)
    if whole and summary.most - summary.least < _NUM_BINS:
        first, last = int(summary.least), int(summary.most)
        edges = np.arange(first - 0.5, last + 1)
        stride = -(-(last - first + 1) // 8)
        axis = Axis(first - 0.5, last + 0.5, tuple(float(tick) for tick in range(first, last + 1, stride)))
    elif summary.least > 0 and summary.most > _LONG_TAIL * summary.median:
        axis = Axis.fit([summary.least, summary.most], log=True)
        edges = np.geomspace(axis.low, axis.high, _NUM_BINS + 1)
    else:
        axis = Axis.fit([summary.least, summary.most])
        edges = np.linspace(axis.low, axis.high, _NUM_BINS + 1)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(title, unit, tuple(edges.tolist()), tuple(counts.tolist()), axis, summary)
