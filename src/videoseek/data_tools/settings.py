"""Keys that several data commands share: where records come from, and the protocol that they are held against."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from videoseek.command import parse_files
from videoseek.config import PromptConfig, UsageError, VideoConfig, option
from videoseek.config_merge import load_config
from videoseek.data_tools.paths import existing_files
from videoseek.model.load import load_tokenizer, model_folder
from videoseek.rollout.crop_tool import VideoCrop
from videoseek.rollout.environment import Environment
from videoseek.samples.check import Rules
from videoseek.samples.readers.rows import VideoPaths
from videoseek.trajectory.grammar import FORMATS, CallFormat
from videoseek.trajectory.vocabulary import Vocabulary


@dataclass(frozen=True)
class SourceSettings:
    """`recipe` replaces the defaults of the keys below it; what stands on the command line wins over both."""

    format: str | None = option(None, "format of the files (null: told from their first records)")
    video_root: str | None = option(None, "folder that relative video paths start from (null: each file's own)")
    video_prefixes: list[str] = option([], "rules FROM=>TO for the beginnings of video paths")
    recipe: str | None = option(None, "recipe whose model, grammar, limits and quotas apply (null: the code's own)")
    model: str = option("tiny", "tiny, or the model folder whose tokenizer counts text")
    max_turns: int = option(6, "most assistant turns of an episode", at_least=1)
    max_tokens: int = option(32768, "most tokens of an episode, video included", at_least=1)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    video: VideoConfig = field(default_factory=VideoConfig)

    @property
    def paths(self) -> VideoPaths:
        return VideoPaths.of(self.video_root, self.video_prefixes)

    @property
    def call_format(self) -> CallFormat:
        return FORMATS[self.prompt.format](self.prompt.style)

    @property
    def rules(self) -> Rules:
        return Rules(self.call_format, self.max_turns, self.video.min_window_seconds)

    def environment(self, tool: type[VideoCrop] = VideoCrop) -> Environment:
        """What recorded trajectories are replayed in. Raises ModelError for a model without a usable tokenizer."""
        tokenizer = load_tokenizer(model_folder(self.model))
        vocabulary = Vocabulary(tokenizer, len(tokenizer))
        return Environment(vocabulary, self.call_format, tool(self.video), self.max_turns, self.max_tokens)


@dataclass(frozen=True)
class MeasureSettings(SourceSettings):
    """For commands that open every video."""

    metadata_only: bool = option(False, "open no video: leaves out lengths, frames and tokens")
    workers: int = option(0, "processes that open videos (0: one for each core)", at_least=0)
    deadline_seconds: float = option(60.0, "most seconds of reading a video without progress", above=0)
    cache: str | None = option(None, "file that keeps what was measured, for the next run or one that was interrupted")

    @property
    def num_workers(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def cache_file(self) -> Path | None:
        return Path(self.cache) if self.cache is not None else None


Settings = TypeVar("Settings", bound=SourceSettings)


def parse_sources(
    arguments: Sequence[str], defaults: Settings, usage: str, written: str = "out"
) -> tuple[list[Path], Settings]:
    """The data files, at least one, and the settings; `written` is the key of the file to write. Raises UsageError."""
    names, settings = parse_files(arguments, defaults, usage)
    if settings.recipe is not None:
        names, settings = parse_files(arguments, _of_recipe(defaults, settings.recipe), usage)
    if not names:
        raise UsageError(f"no data file was given; {usage}")
    return existing_files(names, getattr(settings, written)), settings


def _of_recipe(defaults: Settings, recipe: str) -> Settings:
    config = load_config([f"recipe={recipe}"])
    return replace(
        defaults,
        recipe=recipe,
        model=config.model,
        max_turns=config.rollout.max_turns,
        max_tokens=config.rollout.max_context_tokens,
        prompt=config.prompt,
        video=config.video,
    )
