"""Rewrites the calls in recorded turns: other tools' arguments to the project's, and a stored form to the run's format.

The rest of a turn's text stays unchanged. Both stored forms are kept as they are: the arguments alone
between `<grounding>` tags, or name and arguments between `<tool_call>` tags. Another tool's crop call (start and end as
two numbers, no strategy) becomes the second form, at strategy medium.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from videoseek.samples.schema import RecordError
from videoseek.trajectory.formats import FORMATS, load_format
from videoseek.trajectory.formats.hermes import CROP_TOOL, own_arguments
from videoseek.trajectory.grammar import CallFormat, read_object
from videoseek.types import Call, ParsedTurn

#: The forms of recorded turns. A run's other format is written from them.
STORED_FORMS = ("grounding", "hermes")
_STORED = {name: FORMATS[name] for name in STORED_FORMS}
_BLOCKS = {name: re.compile(f"<{cls.call_tag}>(.*?)</{cls.call_tag}>", re.DOTALL) for name, cls in _STORED.items()}


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
    if call.get("name") != CROP_TOOL:
        raise RecordError("bad_turn", f"a turn calls the tool {call.get('name')!r}; the only one is {CROP_TOOL}")
    arguments = own_arguments(call["arguments"])
    return text if arguments is call["arguments"] else call_block({"name": CROP_TOOL, "arguments": arguments})


def form_of(turns: Iterable[str]) -> str | None:
    """Returns the call form of the turns, or None for turns without calls. Raises RecordError when both forms occur."""
    forms = {name for name, cls in _STORED.items() for turn in turns if f"<{cls.call_tag}>" in turn}
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
    if form == name or (form is None and name in STORED_FORMS):
        return turns
    form, target = form or "grounding", load_format(name)
    if not target.several_calls:
        for number, turn in enumerate(turns, 1):
            if (count := len(_BLOCKS[form].findall(turn))) > 1:
                raise RecordError("bad_turn", f"turn {number} holds {count} calls; prompt.format={name} allows one")
    if name not in STORED_FORMS:
        return tuple(_rewritten(turn, _STORED[form](), target) for turn in turns)
    convert = _to_hermes if name == "hermes" else _to_grounding
    return tuple(_BLOCKS[form].sub(lambda block: convert(block.group(1)), turn) for turn in turns)


def _rewritten(turn: str, stored: CallFormat, target: CallFormat) -> str:
    """Writes a turn in another format, also one with a reversed window. A turn of another fault stays as it is.

    Raises RecordError for a turn that the format cannot express.
    """
    parsed, calls = stored.parse(turn), []
    if any(item.code != "reversed_segment" for item in parsed.faults):
        return turn
    try:
        for payload in map(read_object, _BLOCKS[stored.name].findall(turn)):
            arguments: Any = (payload or {}).get("arguments", payload)
            start, end = arguments["temporal_segment"]
            calls.append(target.write_call(Call(start, end, arguments["sampling_strategy"])))
        if not parsed.faults:
            target.check_turn(parsed)
        return target.assemble(parsed, calls)
    except ValueError as error:
        raise RecordError("bad_turn", str(error)) from error


def _to_hermes(payload: str) -> str:
    readable = read_object(payload) is not None
    return f'<tool_call>{{"name": "{CROP_TOOL}", "arguments": {payload}}}</tool_call>' if readable else _tags(payload)


def _tags(payload: str) -> str:
    return f"<tool_call>{payload}</tool_call>"


def _to_grounding(payload: str) -> str:
    call = read_object(payload)
    if call is not None and isinstance(call.get("arguments"), dict):
        payload = json.dumps(call["arguments"], ensure_ascii=False)
    return f"<grounding>{payload}</grounding>"
