"""Rewrites the calls in recorded turns: other tools' arguments to the project's, and a call form to the other form.

The rest of a turn's text stays unchanged. Both forms of `trajectory.grammar` are stored unchanged: the arguments alone
between `<grounding>` tags, or name and arguments between `<tool_call>` tags. Another tool's crop call (start and end as
two numbers, no strategy) becomes the second form, at strategy medium.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from videoseek.samples.schema import RecordError
from videoseek.trajectory.grammar import FORMATS, read_object
from videoseek.types import ParsedTurn

TOOL = "crop_video"
_DEFAULT_STRATEGY = "medium"
_BOUNDS = (("start_time", "end_time"), ("start", "end"))
_BLOCKS = {name: re.compile(f"<{cls.call_tag}>(.*?)</{cls.call_tag}>", re.DOTALL) for name, cls in FORMATS.items()}


def call_block(call: dict[str, Any]) -> str:
    """Writes a function call of a tool message in the second form.

    `call` has a `name`, and `arguments` as an object or as JSON text.
    """
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        call = call | {"arguments": read_object(arguments) or arguments}
    return f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"


def with_own_arguments(turn: str) -> str:
    """Rewrites every readable crop call of a turn to the project's arguments. Raises RecordError for another tool."""
    return _BLOCKS["hermes"].sub(lambda block: _own_block(block.group(0), read_object(block.group(1))), turn)


def _own_block(text: str, call: dict[str, Any] | None) -> str:
    if call is None or not isinstance(call.get("arguments"), dict):
        return text  # the grammar reports the malformed call as a fault
    if call.get("name") != TOOL:
        raise RecordError("bad_turn", f"a turn calls the tool {call.get('name')!r}; the only one is {TOOL}")
    arguments = call["arguments"]
    for start, end in _BOUNDS:
        if start in arguments and end in arguments:
            strategy = arguments.get("sampling_strategy", _DEFAULT_STRATEGY)
            own = {"temporal_segment": [arguments[start], arguments[end]], "sampling_strategy": strategy}
            return call_block({"name": TOOL, "arguments": own})
    return text


def form_of(turns: Iterable[str]) -> str | None:
    """Returns the call form of the turns, or None for turns without calls. Raises RecordError when both forms occur."""
    forms = {name for name, cls in FORMATS.items() for turn in turns if f"<{cls.call_tag}>" in turn}
    if len(forms) > 1:
        raise RecordError("bad_turn", f"the turns mix the call forms {' and '.join(sorted(forms))}")
    return forms.pop() if forms else None


def parse_turns(turns: tuple[str, ...]) -> list[ParsedTurn]:
    """Parses the turns with the grammar of the call form. Raises RecordError when both forms occur."""
    fmt = FORMATS[form_of(turns) or "hermes"]()
    return [fmt.parse(turn) for turn in turns]


def in_form(turns: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Rewrites the calls of the turns in the form `name`: the same arguments between other tags.

    An unreadable call changes only the tags. Raises RecordError for a turn with more calls than the form allows.
    """
    form = form_of(turns)
    if form in (None, name):
        return turns
    if not FORMATS[name].several_calls:
        for number, turn in enumerate(turns, 1):
            if (count := len(_BLOCKS[form].findall(turn))) > 1:
                raise RecordError("bad_turn", f"turn {number} holds {count} calls; prompt.format={name} allows one")
    convert = _to_hermes if name == "hermes" else _to_grounding
    return tuple(_BLOCKS[form].sub(lambda block: convert(block.group(1)), turn) for turn in turns)


def _to_hermes(payload: str) -> str:
    readable = read_object(payload) is not None
    return f'<tool_call>{{"name": "{TOOL}", "arguments": {payload}}}</tool_call>' if readable else _tags(payload)


def _tags(payload: str) -> str:
    return f"<tool_call>{payload}</tool_call>"


def _to_grounding(payload: str) -> str:
    call = read_object(payload)
    if call is not None and isinstance(call.get("arguments"), dict):
        payload = json.dumps(call["arguments"], ensure_ascii=False)
    return f"<grounding>{payload}</grounding>"
