"""Counts the tokens of a recorded episode with the builder of training; plans crops without decoding."""

from __future__ import annotations

from dataclasses import dataclass

from videoseek.rollout.environment import Environment
from videoseek.tools.crop import VideoCrop
from videoseek.types import Call, Clip, Fault, Sample
from videoseek.video.errors import VideoError


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of an episode: of the overview, of all crops, and of all else."""

    overview: int
    crops: int
    text: int

    @property
    def total(self) -> int:
        return self.overview + self.crops + self.text


@dataclass(frozen=True, slots=True)
class PlannedCrop(VideoCrop):
    """Answers calls like the tool, but from the file's index alone."""

    def run(self, video: str, call: Call) -> Clip | Fault:
        try:
            return self.plan(video, call)
        except VideoError as error:
            return Fault(error.code, error.message)


def measure_lengths(sample: Sample, environment: Environment) -> Lengths | None:
    """Counts the tokens of a whole trajectory, or of the prompt alone for a sample without trajectory.

    `environment` holds a PlannedCrop. Returns None for a trajectory that continues after its end. Raises VideoError for
    a video unfit for opening or showing.
    """
    if sample.turns:
        try:
            episode = environment.replay(sample)
        except ValueError:
            return None
        clips, num_tokens = episode.clips, len(episode.token_ids)
    else:
        builder = environment.open(sample)
        clips, num_tokens = builder.clips, len(builder.token_ids)
    overview, crops = clips[0].num_tokens, sum(clip.num_tokens for clip in clips[1:])
    return Lengths(overview, crops, num_tokens - overview - crops)
