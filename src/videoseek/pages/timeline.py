"""The time line of a question: clue windows as bands through all models' lanes, crop windows numbered in them.

Places are in per cent of the width, so that text keeps its size on any screen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from videoseek.pages.charts import Axis
from videoseek.pages.markup import Markup, tag
from videoseek.types import CallRecord, Interval

CLUE_COLOUR = "#009e73"
CROP_COLOUR = "#c04a00"

ROW_PIXELS = 20
_AXIS_PIXELS = 22


@dataclass(frozen=True, slots=True)
class Lane:
    """One model's calls; each has a row of its own, so that equal windows do not hide each other."""

    label: str
    calls: tuple[CallRecord, ...]

    @property
    def num_rows(self) -> int:
        return max(1, len(self.calls))


@dataclass(frozen=True, slots=True)
class Span:
    """The stretch of video, in seconds, that the time line covers."""

    start_seconds: float
    end_seconds: float

    def percent(self, seconds: float) -> float:
        share = (seconds - self.start_seconds) / (self.end_seconds - self.start_seconds)
        return 100 * min(max(share, 0), 1)


def timeline(span: Span, clues: Sequence[Interval], lanes: Sequence[Lane]) -> Markup:
    """An SVG of full width; its rows are ROW_PIXELS high: the clues, then the lanes in order, then the axis."""
    rows_height = ROW_PIXELS * (1 + sum(lane.num_rows for lane in lanes))
    marks: list[Markup] = []
    for number, (start_seconds, end_seconds) in enumerate(clues, start=1):
        left, width = _extent(span, start_seconds, end_seconds)
        title = tag("title", f"clue {number}: {window_text(start_seconds, end_seconds)}")
        marks.append(tag("rect", x=left, width=width, y=0, height=rows_height, fill=CLUE_COLOUR, opacity=0.15))
        marks.append(tag("rect", title, x=left, width=width, y=2, height=ROW_PIXELS - 4, rx=2, fill=CLUE_COLOUR))
    top = ROW_PIXELS
    for lane in lanes:
        marks.append(tag("line", x1="0", x2="100%", y1=top, y2=top, class_="grid"))
        if not lane.calls:
            marks.append(tag("text", "no call", x="4", y=top + 14))
        for index, record in enumerate(lane.calls):
            marks += _call_marks(span, record, index + 1, top + index * ROW_PIXELS)
        top += lane.num_rows * ROW_PIXELS
    marks += _axis_marks(span, rows_height)
    label = "; ".join(
        [f"clue {window_text(*clue)}" for clue in clues]
        + [
            f"{lane.label} crop {window_text(record.call.start_seconds, record.call.end_seconds)}"
            for lane in lanes
            for record in lane.calls
            if record.call is not None
        ]
    )
    height = rows_height + _AXIS_PIXELS
    return tag("svg", *marks, width="100%", height=height, role="img", aria_label=f"Time line: {label or 'no windows'}")


def window_text(start_seconds: float, end_seconds: float) -> str:
    """Seconds to a tenth; what no video is as long as, in short."""
    start, end = (f"{value:.1f}" if abs(value) < 1e6 else f"{value:.3g}" for value in (start_seconds, end_seconds))
    return f"{start}\N{EN DASH}{end} s"


def _extent(span: Span, start_seconds: float, end_seconds: float) -> tuple[str, str]:
    left, right = span.percent(start_seconds), span.percent(end_seconds)
    return f"{left:.2f}%", f"{max(right - left, 0.4):.2f}%"


def _call_marks(span: Span, record: CallRecord, number: int, top: float) -> Iterator[Markup]:
    """A filled window for an executed call, a dashed one for a failed one; nothing to draw for an unreadable one."""
    if record.call is None:
        return
    start_seconds, end_seconds = record.call.start_seconds, record.call.end_seconds
    left, width = _extent(span, start_seconds, end_seconds)
    failed = record.clip is None
    yield tag(
        "rect",
        tag("title", f"crop {number}: {window_text(start_seconds, end_seconds)}"),
        x=left,
        width=width,
        y=top + 3,
        height=ROW_PIXELS - 6,
        rx=2,
        class_="crop failed" if failed else "crop",
    )
    middle = (span.percent(start_seconds) + span.percent(end_seconds)) / 2
    # Kept off the edges, so that the number of a narrow window at the end is not cut.
    place = f"{min(max(middle, 1.5), 98.5):.2f}%"
    yield tag("text", str(number), x=place, y=top + 14, text_anchor="middle", class_="crop-number")


def _axis_marks(span: Span, top: float) -> Iterator[Markup]:
    yield tag("line", x1="0", x2="100%", y1=top, y2=top, class_="axis")
    for tick in Axis.fit([span.start_seconds, span.end_seconds]).ticks:
        if not span.start_seconds <= tick <= span.end_seconds:
            continue
        place = span.percent(tick)
        anchor = "start" if place < 3 else "end" if place > 97 else "middle"
        yield tag("line", x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=top, y2=top + 4, class_="axis")
        yield tag("text", f"{tick:g} s", x=f"{place:.2f}%", y=top + 17, text_anchor=anchor)
