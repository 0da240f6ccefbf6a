"""The keys of the data commands. `--help` imports only this module, so the module keeps torch and FFmpeg out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from videoseek.command import parse_files
from videoseek.config import PromptConfig, UsageError, VideoConfig, option
from videoseek.config_merge import load_config
from videoseek.data_tools.paths import existing_files
from videoseek.data_tools.writers import WRITERS
from videoseek.samples.readers import FORMATS
from videoseek.samples.readers.rows import VideoPaths
from videoseek.trajectory.formats import load_format
from videoseek.trajectory.grammar import CallFormat
from videoseek.user_code import tool_names


@dataclass(frozen=True)
class SourceSettings:
    """The source of records, and the protocol for the records.

    `recipe` replaces the defaults of the following keys; the command line wins over both.
    """

    usage: ClassVar[str]

    format: str | None = option(None, "format of the files (null: detected from their first records)")
    video_root: str | None = option(None, "folder that relative video paths start from (null: each file's own)")
    video_prefixes: list[str] = option([], "rules FROM=>TO for the beginnings of video paths")
    recipe: str | None = option(None, "recipe whose model, grammar, limits and quotas apply (null: the code's own)")
    model: str = option("tiny", "tiny, or the model folder whose tokenizer counts text")
    max_turns: int = option(6, "most assistant turns of an episode", at_least=1)
    max_tokens: int = option(32768, "most tokens of an episode, video included", at_least=1)
    tools: list[str] = option([], "tools beside crop_video, as in a run")
    prompt: PromptConfig = field(default_factory=PromptConfig)
    video: VideoConfig = field(default_factory=VideoConfig)

    @property
    def paths(self) -> VideoPaths:
        return VideoPaths.of(self.video_root, self.video_prefixes)

    @property
    def call_format(self) -> CallFormat:
        return load_format(self.prompt.format, self.prompt.style, tool_names(self.tools))


@dataclass(frozen=True)
class MeasureSettings(SourceSettings):
    """The keys of commands that open every video."""

    metadata_only: bool = option(False, "open no video: leaves out lengths, frames and tokens")
    workers: int = option(0, "processes that open videos (0: one for each core)", at_least=0)
    deadline_seconds: float = option(60.0, "most seconds of reading a video without progress", above=0)
    cache: str | None = option(None, "file that keeps measurements for later runs, also when this run is interrupted")

    @property
    def num_workers(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def cache_file(self) -> Path | None:
        return Path(self.cache) if self.cache is not None else None


@dataclass(frozen=True)
class CheckSettings(MeasureSettings):
    usage = "python -m videoseek.data check FILE|FOLDER ... [held_out=[FILE ...]] [report=FILE.json] [key=value ...]"

    need_turns: bool = option(False, "every record must have the assistant's turns, as SFT needs them")
    held_out: list[str] = option([], "files whose videos must not be among the checked ones")
    report: str | None = option(None, "JSON file for every finding")


@dataclass(frozen=True)
class StatsSettings(MeasureSettings):
    usage = (
        "python -m videoseek.data stats FILE|FOLDER ... [out=FILE.html|FILE.png|FILE.json] [cache=FILE] [key=value ...]"
    )

    out: str | None = option(None, "a page (.html), a picture (.png) or the numbers (.json)")


@dataclass(frozen=True)
class ShowSettings(SourceSettings):
    usage = "python -m videoseek.data show FILE id=ID|index=N out=FILE.html [key=value ...]"

    id: str | None = option(None, "id of the sample")
    index: int | None = option(None, "or its number among the file's records, from 1", at_least=1)
    out: str | None = option(None, "page to write (.html)")


@dataclass(frozen=True)
class ConvertSettings:
    usage: ClassVar[str] = "python -m videoseek.data convert FILE|FOLDER ... out=FILE [to=FORMAT] [key=value ...]"

    out: str | None = option(None, "file to write; videos inside its folder are named from there, others absolutely")
    to: str = option("videoseek", "format of that file", choices=tuple(WRITERS))
    format: str | None = option(
        None, "format of the files that are read (null: detected from the first record of each)", choices=tuple(FORMATS)
    )
    video_root: str | None = option(
        None, "folder that videos may not leave and relative ones start from (null: each file's own)"
    )
    video_prefixes: list[str] = option([], "FROM=>TO rules for the paths of videos; the first that fits is applied")
    bad_samples: str = option(
        "stop", "records that cannot be used: write nothing and fail, or pass them over", choices=("stop", "skip")
    )
    overwrite: bool = option(False, "replace the file `out` if it exists")


Settings = TypeVar("Settings", bound=SourceSettings)


def parse_sources(arguments: Sequence[str], defaults: Settings, written: str = "out") -> tuple[list[Path], Settings]:
    """Returns the data files, at least one, and the settings; `written` is the key of the output file.

    Raises UsageError.
    """
    names, settings = parse_files(arguments, defaults, defaults.usage)
    if settings.recipe is not None:
        names, settings = parse_files(arguments, _of_recipe(defaults, settings.recipe), defaults.usage)
    if not names:
        raise UsageError(f"no data file was given; {defaults.usage}")
    return existing_files(names, getattr(settings, written)), settings


def _of_recipe(defaults: Settings, recipe: str) -> Settings:
    config = load_config([f"recipe={recipe}"])
    return replace(
        defaults,
        recipe=recipe,
        model=config.model,
        max_turns=config.rollout.max_turns,
        max_tokens=config.rollout.max_context_tokens,
        tools=config.tools,
        prompt=config.prompt,
        video=config.video,
    )
