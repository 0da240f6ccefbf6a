"""Draws histograms in one PNG picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from videoseek.config import UsageError
from videoseek.files import whole_file
from videoseek.pages.charts import MODEL_COLOURS, Histogram

_COLUMNS = 3
_PANEL_INCHES = (4.2, 2.6)
_DOTS_PER_INCH = 120


def write_picture(path: Path, title: str, histograms: Sequence[Histogram]) -> None:
    """Writes the histograms to a picture. Raises UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"out={path.name} needs matplotlib: pip install 'videoseek[data]'") from error
    rows = max(1, math.ceil(len(histograms) / _COLUMNS))
    figure = Figure((_COLUMNS * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.5), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))  # matplotlib reads a dollar as the start of a formula
    for number, item in enumerate(histograms, 1):
        panel = figure.add_subplot(rows, _COLUMNS, number)
        panel.stairs(item.counts, item.edges, fill=True, color=MODEL_COLOURS[-1])
        panel.set_title(item.title, fontsize=9)
        panel.set_xlabel(item.unit, fontsize=8)
        panel.set_xscale("log" if item.axis.log else "linear")
        panel.set_xticks(item.axis.ticks)
        panel.tick_params(labelsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=_DOTS_PER_INCH, format="png")
