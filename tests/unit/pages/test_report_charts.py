"""Axes, curves, bars and the time line: right places for ordinary values, no failure for odd ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoseek.pages.charts import Axis, Bar, Series, bar_chart, line_chart, number_text
from videoseek.pages.viewer import Lane, Span, timeline
from videoseek.types import Call, CallRecord, Clip, Fault

#: What a metric can be: training computes in single precision at most.
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def curve(values: list[float | None]) -> str:
    return line_chart("Loss", [Series("a", "#000", range(1, len(values) + 1), values)])


@given(st.lists(finite, min_size=1), st.booleans())
def test_axis_spans_its_values_with_few_ticks(values: list[float], log: bool) -> None:
    axis = Axis.fit(values, log=log)
    assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 8
    assert list(axis.ticks) == sorted(set(axis.ticks))


def test_axis_has_round_ticks() -> None:
    assert Axis.fit([0.1, 3.7]).ticks == (0, 1, 2, 3, 4)
    assert Axis.fit([0.02, 4], log=True).ticks == pytest.approx((0.01, 0.1, 1, 10))
    assert Axis.fit([0, 5], log=True).log is False, "zero has no logarithm"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1e-15, "0"), (2e-6, "2e-6"), (0.30000000000000004, "0.3"), (3e10, "3e10"), (6400, "6400")],
)
def test_tick_labels_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


@given(st.lists(st.none() | st.floats(width=32), max_size=120))
def test_any_values_make_a_curve_without_nan(values: list[float | None]) -> None:
    drawn = curve(values)
    assert not re.search(r"\b(nan|inf|None)\b", drawn)


def test_curve_goes_through_its_points_and_breaks_at_gaps() -> None:
    (path,) = re.findall(r' d="([^"]*)"', curve([0.0, 1.0, None, 0.5, 0.5]))
    assert [piece[0] for piece in re.findall(r"[ML][^ML]+", path)] == ["M", "L", "M", "L"]
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    assert heights[0] > heights[2] == heights[3] > heights[1], "SVG counts downwards"


def test_missing_values_give_no_chart() -> None:
    assert curve([]) == curve([None, None]) == curve([float("nan")]) == ""


def test_single_value_is_a_dot() -> None:
    assert "<circle" in curve([1.0]) and "<circle" not in curve([1.0, 2.0])


def test_long_curves_are_thinned_and_keep_their_mean() -> None:
    drawn = curve([float(index % 2) for index in range(100_000)])
    assert len(drawn) < 20_000


def test_bars_show_value_error_and_chance() -> None:
    drawn = bar_chart([Bar("SFT", "#123456", 0.98, error=0.05, chance=0.25)])
    assert 'width="98.00%"' in drawn and "98.0\N{NO-BREAK SPACE}%" in drawn
    assert 'x1="93.00%" x2="100.00%"' in drawn, "a whisker ends with the scale"
    assert 'x1="25.00%" x2="25.00%"' in drawn


def test_timeline_places_windows_in_per_cent() -> None:
    clip = Clip("v.mp4", 8.0, 12.0, (8.0, 10.0), 56, 56, 0.5)
    shown = CallRecord(0, Call(8.0, 12.0, "medium"), None, clip)
    failed = CallRecord(1, Call(900.0, 1e300, "fine"), Fault("window_outside", ""))
    unreadable = CallRecord(2, None)
    drawn = timeline(Span(0, 32), [(4.0, 8.0)], [Lane("SFT", (shown, failed, unreadable)), Lane("Direct", ())])
    assert re.findall(r'<rect x="([\d.]+)%" width="([\d.]+)%"', drawn) == [
        ("12.50", "12.50"),
        ("12.50", "12.50"),
        ("25.00", "12.50"),
        ("100.00", "0.40"),
    ]
    assert re.findall(r'class="crop-number">(\d)<', drawn) == ["1", "2"]
    assert drawn.count('class="crop failed"') == 1 and "no call" in drawn
    assert "SFT crop 8.0–12.0 s" in drawn and "1e+300" in drawn
