"""What the formats of other projects share: the sentences about windows, and numbers in plain text."""

from __future__ import annotations

import re

from videoseek.trajectory.grammar import FAULTS

#: The sentences of a window that is not called temporal_segment.
WINDOW_FAULTS = FAULTS | {
    "missing_field": "The call needs a start and an end.",
    "bad_segment": "The window must be two times, the start and the end.",
    "not_numbers": "The start and end of the window must be numbers.",
    "not_finite": "The start and end of the window must be finite.",
    "negative_segment": "The window must not start before 0 seconds.",
    "reversed_segment": "The window must start before it ends.",
}
_NUMBER = re.compile(r"[-+]?\d{1,15}(?:\.\d{1,9})?")


def plain_number(text: str) -> float | None:
    """Returns the number of a text such as `12` or `-3.5`, or None."""
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None
