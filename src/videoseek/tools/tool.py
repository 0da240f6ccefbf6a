"""Tool: what a tool beside the crop tool is. A tool of the user's own subclasses it in a file outside the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from videoseek.types import Clip, Fault, ToolCall

#: What a call brings: frames, a text, or the fault that the model reads.
Observation = Clip | str | Fault


class Tool(ABC):
    """A tool, called by `name`. The system prompt shows name and `description`; the latter explains the arguments.

    Calls of one turn run side by side, so a tool keeps no state: the calls before are in `ToolCall.earlier`.
    """

    name: ClassVar[str]
    description: ClassVar[str]

    @abstractmethod
    def plan(self, video: str, call: ToolCall) -> Observation:
        """Returns what the call brings, without decoding; SFT replays recorded turns with it.

        Arguments come from a model: any of them may be absent or of another type. Raises VideoError for an unreadable
        video.
        """

    def run(self, video: str, call: ToolCall) -> Observation:
        """Returns what the call brings, in rollout, evaluation and `ask`."""
        return self.plan(video, call)
