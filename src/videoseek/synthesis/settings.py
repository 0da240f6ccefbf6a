"""The keys of `python -m videoseek.data synthesize`, and the subset that determines the content of the output."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videoseek.config import UsageError, VideoConfig, option
from videoseek.endpoint import EndpointSettings, check_endpoint
from videoseek.samples.readers.calls import STORED_FORMS
from videoseek.synthesis.items import Usage

#: The kinds of samples, in the order of the target shares in `shares`.
QUADRANTS = ("clue_single_w_tool", "clue_multi_w_tool", "clue_single_wo_tool", "clue_multi_wo_tool")

#: Keys of the work's execution. The content of the output is the same for all values.
_EXECUTION_KEYS = frozenset(
    ("out", "endpoint", "api_key_env", "concurrency", "attempts", "deadline_seconds", "max_wait_seconds", "cache_dir")
    + ("shard", "merge", "dry_run", "driver", "review", "video_root")
)
_SHARD = re.compile(r"([0-9]+)/([0-9]+)")


@dataclass(frozen=True)
class SynthesisSettings(EndpointSettings):
    out: str = option("synthesis", "output folder")
    media: str = option(
        "frames", "how clips are sent: JPEG pictures with their times, or MP4", choices=("frames", "video")
    )
    response_format: str = option(
        "json_schema",
        "how the endpoint enforces JSON (none: the prompt alone asks for it)",
        choices=("json_schema", "json_object", "none"),
    )
    prompt_price: float = option(0.0, "price of a million prompt tokens, in any currency", at_least=0)
    completion_price: float = option(0.0, "price of a million completion tokens, in the same currency", at_least=0)
    cache_dir: str | None = option(None, "folder of cached replies, which runs may share (null: OUT/cache)")
    video_root: str | None = option(
        None, "folder that all videos must lie in after links are resolved (null: the input's folder)"
    )
    limit: int | None = option(None, "use only this many of the first videos or lines", at_least=1)
    shard: str | None = option(None, "i/n: run only the i-th of n shards (1/n to n/n) and write to OUT/shard-i-of-n")
    merge: bool = option(False, "merge the shards in OUT; sends no request")
    driver: str = option("local", "where stages run: in this process, or on a Ray cluster", choices=("local", "ray"))
    dry_run: bool = option(False, "count items, and estimate calls, tokens and price; sends no request")
    caption_seconds: float = option(60.0, "seconds of video per caption request", at_least=4)
    questions_per_video: int = option(5, "maximum number of questions generated per video", at_least=1)
    max_clues: int = option(5, "maximum number of clues per question; an episode needs one turn more", at_least=1)
    merge_gap_seconds: float = option(1.0, "clues at most this far apart are merged", at_least=0)
    max_clue_share: float = option(
        0.5, "largest share of a video that the clues of a w_tool item may cover", above=0, at_most=1
    )
    check_overview: bool = option(
        True, "ask whether the overview alone suffices, which separates w_tool from wo_tool (false: all are w_tool)"
    )
    format: str = option("grounding", "how a call is written", choices=STORED_FORMS)
    shares: list[float] = option(
        [], f"target shares of {', '.join(QUADRANTS)}; the surplus goes to surplus.jsonl ([]: keep all)", at_least=0
    )
    seed: int = option(0, "seed of the option order, of the balance and of the review page's draw", at_least=0)
    review: int = option(24, "number of samples on the page for human review", at_least=0)
    video: VideoConfig = field(default_factory=lambda: VideoConfig(max_frames=128))

    @property
    def folder(self) -> Path:
        """Returns the output folder of the run: OUT, or the folder of the run's shard in OUT."""
        if self.shard is None:
            return Path(self.out)
        index, count = self.part
        return Path(self.out) / shard_name(index, count)

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir is not None else Path(self.out) / "cache"

    @property
    def part(self) -> tuple[int, int]:
        """Returns the index (counted from 1) and the number of shards. Raises UsageError."""
        if self.shard is None:
            return 1, 1
        match = _SHARD.fullmatch(self.shard)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"shard must be i/n with i from 1 to n, such as 1/4, got {self.shard!r}")
        return int(match[1]), int(match[2])

    def content(self) -> dict[str, Any]:
        """Returns the keys that determine the content of the output. A merge of shards needs equal keys."""
        content = {name: value for name, value in asdict(self).items() if name not in _EXECUTION_KEYS}
        return content | {"video": self.video.shown_by()}

    def cost(self, usage: Usage) -> float:
        """Returns the price of the tokens, in the currency of `prompt_price` and `completion_price`."""
        millionths = usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price
        return millionths / 1e6


def shard_name(index: int, count: int) -> str:
    return f"shard-{index}-of-{count}"


def check_settings(settings: SynthesisSettings) -> None:
    """Checks rules beyond the limits of single keys. Raises UsageError."""
    check_endpoint(settings)
    if settings.model is None and not (settings.merge or settings.dry_run):
        raise UsageError("model is missing; name the model at the endpoint with model=NAME")
    if settings.shares and (len(settings.shares) != len(QUADRANTS) or sum(settings.shares) <= 0):
        raise UsageError(f"shares must be four numbers, for {', '.join(QUADRANTS)}, got {settings.shares}")
    if settings.merge and settings.shard is not None:
        raise UsageError("merge=true joins all shards, so shard must not be given with it")
    if settings.video.min_frames > settings.video.max_frames:
        raise UsageError(
            f"video.min_frames {settings.video.min_frames} exceeds video.max_frames {settings.video.max_frames}"
        )
    _ = settings.part  # raises for a malformed shard
