"""The keys of `python -m videoseek.data synthesize`, and which of them shape what comes out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from videoseek.config import UsageError, VideoConfig, option
from videoseek.trajectory.grammar import FORMATS

#: Targets of `shares`, in this order.
QUADRANTS = ("clue_single_w_tool", "clue_multi_w_tool", "clue_single_wo_tool", "clue_multi_wo_tool")

#: Keys that say how the work is done, not what comes out of it; the keys of the endpoint's address among them.
_HOW = frozenset(
    ("out", "endpoint", "api_key_env", "concurrency", "attempts", "deadline_seconds", "max_wait_seconds", "cache_dir")
    + ("shard", "merge", "dry_run", "driver", "review", "video_root")
)


@dataclass(frozen=True)
class SynthesisSettings:
    out: str = option("synthesis", "folder for everything that is written")
    endpoint: str = option("http://127.0.0.1:8000/v1", "base URL of an OpenAI-compatible endpoint")
    model: str | None = option(None, "the model's name at the endpoint")
    api_key_env: str | None = option(
        "OPENAI_API_KEY", "environment variable that holds the key (null: the endpoint asks for none)"
    )
    media: str = option(
        "frames", "how clips are sent: JPEG pictures with their times, or MP4", choices=("frames", "video")
    )
    response_format: str = option(
        "json_schema",
        "how the endpoint is held to JSON; none: by the prompt alone",
        choices=("json_schema", "json_object", "none"),
    )
    temperature: float | None = option(0.0, "sampling temperature (null: left to the endpoint)", at_least=0)
    max_completion_tokens: int = option(4096, "most tokens of a reply", at_least=1)
    prompt_price: float = option(0.0, "price of a million prompt tokens, in any currency", at_least=0)
    completion_price: float = option(0.0, "price of a million completion tokens, in the same currency", at_least=0)
    concurrency: int = option(16, "most requests under way at once", at_least=1)
    attempts: int = option(6, "tries of a request that meets a time-out, 429 or 5xx", at_least=1)
    deadline_seconds: float = option(180.0, "most seconds one try may take", above=0)
    max_wait_seconds: float = option(120.0, "longest wait before another try, Retry-After included", above=0)
    cache_dir: str | None = option(None, "folder of cached replies, which shards may share (null: OUT/cache)")
    video_root: str | None = option(None, "folder that videos may not leave, links followed (null: the one given)")
    limit: int | None = option(None, "only the first so many videos or lines", at_least=1)
    shard: str | None = option(None, "i/n: only the i-th of n parts (1/n to n/n), written to OUT/shard-i-of-n")
    merge: bool = option(False, "join the shards in OUT; asks the endpoint nothing")
    driver: str = option("local", "where items are worked on: this process, or a Ray cluster", choices=("local", "ray"))
    dry_run: bool = option(False, "count items, and estimate calls, tokens and price; asks the endpoint nothing")
    caption_seconds: float = option(60.0, "seconds of video captioned by one request", at_least=4)
    questions_per_video: int = option(5, "questions asked for per video", at_least=1)
    max_clues: int = option(5, "most clues of a question: one less than the turns of an episode", at_least=1)
    merge_gap_seconds: float = option(1.0, "clues this close to each other are one", at_least=0)
    max_clue_share: float = option(
        0.5, "largest share of a video that clues needing the tool may cover", above=0, at_most=1
    )
    check_overview: bool = option(
        True, "ask whether the overview alone suffices, which tells w_tool from wo_tool (false: all are w_tool)"
    )
    format: str = option("grounding", "how a call is written", choices=tuple(FORMATS))
    shares: list[float] = option(
        [], f"target shares of {', '.join(QUADRANTS)}; what is over goes to surplus.jsonl ([]: keep all)", at_least=0
    )
    seed: int = option(0, "of the order of options, the balance and the review page's choice", at_least=0)
    review: int = option(24, "samples on the page for human review", at_least=0)
    video: VideoConfig = field(default_factory=lambda: VideoConfig(max_frames=128))

    @property
    def folder(self) -> Path:
        """Where this run writes: OUT, or its shard's folder in it."""
        if self.shard is None:
            return Path(self.out)
        index, count = self.part
        return Path(self.out) / shard_name(index, count)

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir is not None else Path(self.out) / "cache"

    @property
    def part(self) -> tuple[int, int]:
        """Which of how many shards, from 1. Raises UsageError."""
        if self.shard is None:
            return 1, 1
        index, _, count = self.shard.partition("/")
        if not (
            index.isascii()
            and index.isdigit()
            and count.isascii()
            and count.isdigit()
            and 1 <= int(index) <= int(count)
        ):
            raise UsageError(f"shard must be i/n with i from 1 to n, such as 1/4, got {self.shard!r}")
        return int(index), int(count)

    def content(self) -> dict[str, Any]:
        """The keys that decide what comes out, for the summary: shards that differ in them do not belong together."""
        decisive = {name: value for name, value in asdict(self).items() if name not in _HOW}
        return decisive | {"video": self.video.shown_by()}


def shard_name(index: int, count: int) -> str:
    return f"shard-{index}-of-{count}"


def check_settings(settings: SynthesisSettings) -> None:
    """What the limits of single keys cannot say. Raises UsageError."""
    url = urlsplit(settings.endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"endpoint must be a URL such as http://127.0.0.1:8000/v1, got {settings.endpoint!r}")
    if url.username or url.password or url.query:
        raise UsageError(
            "endpoint must hold no user, password or query: the key comes from the variable in api_key_env"
        )
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
    _ = settings.part
