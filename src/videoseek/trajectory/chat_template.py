"""The chat template of saved folders: other tools write the same turns as `EpisodeBuilder`."""

from __future__ import annotations

import json
from pathlib import Path

from videoseek.trajectory.grammar import CallFormat

#: The formats whose calls the template writes from a message's `tool_calls`.
_WRITTEN = ("grounding", "hermes")


def chat_template(fmt: CallFormat) -> str:
    """Returns the Jinja template of a run's turns. The system prompt and the tags of a call are `fmt`'s."""
    template = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
    # A JSON string without characters beyond ASCII is a Jinja string too.
    for hole, text in (
        ("SYSTEM_PROMPT", fmt.system_prompt()),
        ("CALL_TAG", fmt.call_tag if fmt.name in _WRITTEN else ""),
    ):
        template = template.replace(hole, json.dumps(text))
    return template
