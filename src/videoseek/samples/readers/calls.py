"""Calls in recorded turns: foreign arguments to the project's, and one call form to the other.

A turn keeps its text but for its calls. Both forms of `trajectory.grammar` are stored as they come: the arguments
alone between `<grounding>` tags, or name and arguments between `<tool_call>` tags. Other tools' calls of a crop (start
and end as two numbers, no strategy) become the second form at strategy medium, which is what a crop without one costs.
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
    """A function call of a tool message (`name`, and `arguments` as an object or as JSON text) in the second form."""
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        call = call | {"arguments": read_object(arguments) or arguments}
    return f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"


def with_own_arguments(turn: str) -> str:
    """The turn with every readable crop call in the project's arguments. Raises RecordError for another tool."""
    return _BLOCKS["hermes"].sub(lambda block: _own_block(block.group(0), read_object(block.group(1))), turn)


def _own_block(text: str, call: dict[str, Any] | None) -> str:
    if call is None or not isinstance(call.get("arguments"), dict):
        return text  # not readable as a call: the grammar has a fault for it
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
    """The call form that the turns are in, None without any call. Raises RecordError when both occur."""
    forms = {name for name, cls in FORMATS.items() for turn in turns if f"<{cls.call_tag}>" in turn}
    if len(forms) > 1:
        raise RecordError("bad_turn", f"the turns mix the call forms {' and '.join(sorted(forms))}")
    return forms.pop() if forms else None


def parse_turns(turns: tuple[str, ...]) -> list[ParsedTurn]:
    """The turns as the grammar of their call form reads them. Raises RecordError when both forms occur."""
    fmt = FORMATS[form_of(turns) or "hermes"]()
    return [fmt.parse(turn) for turn in turns]


def in_form(turns: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The turns with their calls in the form `name`: the same arguments between other tags.

    A call that cannot be read changes its tags only. Raises RecordError where a turn holds more calls than the form
    allows.
    """
    have = form_of(turns)
    if have in (None, name):
        return turns
    if not FORMATS[name].several_calls:
        for number, turn in enumerate(turns, 1):
            if (count := len(_BLOCKS[have].findall(turn))) > 1:
                raise RecordError("bad_turn", f"turn {number} holds {count} calls; prompt.format={name} allows one")
    convert = _to_hermes if name == "hermes" else _to_grounding
    return tuple(_BLOCKS[have].sub(lambda block: convert(block.group(1)), turn) for turn in turns)


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
