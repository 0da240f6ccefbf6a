"""The prompts, which are files beside this one, and the shape of each reply."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from videoseek.synthesis.quota import DETAILS

#: What a judge may find wrong with a trajectory.
JUDGE_FAULTS = (
    *("time_outside", "told_early", "hallucinated", "contradiction", "no_evidence"),
    *("guess", "circular", "vague", "audio", "meta"),
)

_TEXT, _NUMBER, _FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """Every property is required and no other is allowed, which strict structured output asks for."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


#: Only what every engine of structured output takes: no lengths, no patterns, no references. Counts are checked by the
#: stages.
SCHEMAS: dict[str, dict[str, Any]] = {
    "caption": _object(captions=_list(_object(start=_NUMBER, end=_NUMBER, text=_TEXT))),
    "question": _object(
        questions=_list(_object(question=_TEXT, correct=_TEXT, wrong=_list(_TEXT), evidence=_list(_list(_NUMBER))))
    ),
    "localise": _object(
        clues=_list(
            _object(start=_NUMBER, end=_NUMBER, cue=_TEXT, finding=_TEXT, detail={"enum": list(DETAILS), **_TEXT})
        )
    ),
    "verify": _object(think=_TEXT, answer=_TEXT, certain=_FLAG),
    "trajectory": _object(
        steps=_list(_object(think=_TEXT, window=_list(_NUMBER))), final=_object(think=_TEXT, answer=_TEXT)
    ),
    "judge": _object(analysis=_TEXT, faults=_list({"enum": list(JUDGE_FAULTS), **_TEXT}), is_valid=_FLAG),
}

_FOLDER = files("videoseek.synthesis") / "prompts"


@cache
def _sources() -> dict[str, str]:
    return {
        entry.name.removesuffix(".jinja"): entry.read_text(encoding="utf-8")
        for entry in sorted(_FOLDER.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".jinja")
    }


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.DictLoader(_sources()), undefined=jinja2.StrictUndefined, autoescape=False)


def prompt(name: str, given: dict[str, Any] | None = None, **values: Any) -> str:
    """The text of `prompts/NAME.jinja`; `given` is what the task is about, as JSON at its end."""
    return _environment().get_template(name).render(**values, input=json.dumps(given, ensure_ascii=False, indent=1))


@cache
def prompt_version() -> str:
    """Twelve hex digits that change with any word of a prompt or a shape of a reply."""
    text = json.dumps([_sources(), SCHEMAS], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
