"""The protocol of a command's settings: the rules for texts, and the environment for replayed trajectories."""

from __future__ import annotations

from videoseek.data_tools.settings import SourceSettings
from videoseek.model.load import load_tokenizer, model_folder
from videoseek.rollout.environment import Environment
from videoseek.samples.rules import Rules
from videoseek.tools.crop import VideoCrop
from videoseek.tools.table import load_tools
from videoseek.trajectory.run_format import format_with_tools
from videoseek.trajectory.vocabulary import Vocabulary


def protocol_rules(settings: SourceSettings) -> Rules:
    """Returns the rules for the texts of a trajectory."""
    return Rules(settings.call_format, settings.max_turns, settings.video.min_window_seconds)


def replay_environment(settings: SourceSettings, tool: type[VideoCrop] = VideoCrop) -> Environment:
    """Returns the environment that replays recorded trajectories.

    Raises ModelError for a model without a usable tokenizer.
    """
    tokenizer = load_tokenizer(model_folder(settings.model))
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    fmt = format_with_tools(settings.prompt.format, settings.prompt.style, settings.tools, settings.video)
    tools = load_tools(settings.tools, settings.video)
    limits = (settings.max_turns, settings.max_tokens)
    return Environment(vocabulary, fmt, tool(settings.video), *limits, tools=tools)
