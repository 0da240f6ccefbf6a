"""What must hold of samples before training starts: the video opens, and the evidence lies inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from videoseek.data.schema import DataError
from videoseek.types import Sample
from videoseek.video.decode import probe
from videoseek.video.errors import VideoError

#: Clue times are often rounded up to whole seconds.
_ROUNDING_SECONDS = 1.0


def check_samples(
    samples: Sequence[Sample], *, need_turns: bool, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Raises DataError, naming the sample, for the first one that cannot be trained on."""
    for index, sample in enumerate(samples):
        try:
            duration_seconds = probe(sample.video).duration_seconds
        except VideoError as error:
            raise DataError(f"sample {sample.id!r}: {error}") from error
        for start_seconds, end_seconds in sample.clues:
            if start_seconds >= duration_seconds or end_seconds > duration_seconds + _ROUNDING_SECONDS:
                raise DataError(
                    f"sample {sample.id!r}: clue [{start_seconds:g}, {end_seconds:g}] lies beyond the end of "
                    f"{sample.video} ({duration_seconds:.1f} seconds)"
                )
        if sample.window is not None and sample.window[1] > duration_seconds:
            raise DataError(
                f"sample {sample.id!r}: window [{sample.window[0]:g}, {sample.window[1]:g}] lies beyond the end of "
                f"{sample.video} ({duration_seconds:.1f} seconds)"
            )
        if need_turns and not sample.turns:
            raise DataError(f"sample {sample.id!r} has no turns; SFT needs the assistant's texts")
        if on_progress is not None:
            on_progress(index + 1, len(samples))
