"""What a clip says about time, in words: the one owner of the sentence that follows every clip."""

from __future__ import annotations

from videoseek.types import Clip


def time_sentence(clip: Clip) -> str:
    """Rate, number of frames and window of a clip, in true seconds of the source file (never of the crop)."""
    return (
        f"This video is uniformly sampled at {clip.sample_fps:.2f} fps, contains {len(clip.frame_seconds)} frames "
        f"from {clip.start_seconds:.1f} seconds to {clip.end_seconds:.1f} seconds."
    )
