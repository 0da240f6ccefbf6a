"""Evidence: the crops against the clues of a set, and the same run with every crop swapped for another clip.

A model that uses its crops loses accuracy when their pixels come from elsewhere (the necessity of the evidence).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from videoseek.evaluation.metrics import moment_recall
from videoseek.evaluation.tasks.task import Question
from videoseek.rewards.clue_score import overlap
from videoseek.tools.crop import VideoCrop
from videoseek.types import Call, Clip, Episode, Fault, Interval
from videoseek.video.decode import load_index, probe


def clue_scores(question: Question, episode: Episode) -> dict[str, float]:
    """Returns recall and IoU of all crops with all clues, or the recall of frames, or {} for a set without evidence.

    Raises VideoError.
    """
    windows = crops(episode)
    if question.clue_frames:
        index = load_index(question.sample.video)
        moments = index.seconds([min(frame, len(index.stamps) - 1) for frame in question.clue_frames])
        return {"clue_recall": moment_recall(windows, moments.tolist())}
    if not question.sample.clues:
        return {}
    shared = overlap(windows, question.sample.clues)
    return {"clue_recall": shared.iog, "clue_iou": shared.iou}


def crops(episode: Episode) -> list[Interval]:
    """Returns the windows of the executed calls, in order, in seconds."""
    return [(clip.start_seconds, clip.end_seconds) for clip in episode.clips[1:]]


@dataclass(frozen=True, slots=True)
class SwappedCrop(VideoCrop):
    """A crop tool that shows another stretch of the film, of the same length, under the words of the asked window.

    The stretch does not touch the asked one where the film is long enough, else it lies as far away as the film allows.
    Film, window and seed choose the stretch.
    """

    seed: int = 0

    def plan(self, video: str, call: Call) -> Clip | Fault:
        """Returns the clip of the call with the frames of another stretch, or the fault of the call."""
        clip = VideoCrop.plan(self, video, call)
        if isinstance(clip, Fault):
            return clip
        shift = swap_seconds(clip, probe(video).duration_seconds, self.seed)
        return replace(clip, frame_seconds=tuple(seconds + shift for seconds in clip.frame_seconds))


def swap_seconds(clip: Clip, duration_seconds: float, seed: int) -> float:
    """Returns the seconds from a clip's window to the window of the swap; 0 for a clip of the whole film."""
    start, end = clip.start_seconds, clip.end_seconds
    length = end - start
    before, after = max(0.0, start - length), max(0.0, duration_seconds - end - length)
    if before + after == 0:
        return -start if start > duration_seconds - end else duration_seconds - end
    key = f"{Path(clip.video).name}\0{start:.3f}\0{end:.3f}\0{seed}".encode()
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "big")).random() * (before + after)
    return draw - start if draw < before else (end + draw - before) - start
