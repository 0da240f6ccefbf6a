"""Prompt templates from the files in `prompts/`, and the JSON Schema of each reply."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from videoseek.synthesis.items import DETAILS

#: Faults that the judge may find in a trajectory.
JUDGE_FAULTS = (
    *("time_outside", "told_early", "hallucinated", "contradiction", "no_evidence"),
    *("guess", "circular", "vague", "audio", "meta"),
)

_TEXT, _NUMBER, _FLAG = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
_MAX_MESSAGE_CHARACTERS = 400


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """Requires every property and allows no other property, as strict structured output demands."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


#: Schema of a reply by name. The schemas use only features of every engine of structured output, without lengths,
#: patterns and references. `rules` checks the rest.
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
def _templates() -> dict[str, str]:
    return {
        entry.name.removesuffix(".jinja"): entry.read_text(encoding="utf-8")
        for entry in sorted(_FOLDER.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".jinja")
    }


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.DictLoader(_templates()), undefined=jinja2.StrictUndefined, autoescape=False
    )


def prompt(name: str, task_input: dict[str, Any] | None = None, **values: Any) -> str:
    """Renders `prompts/NAME.jinja` with `values`, and appends `task_input` to the task as JSON."""
    input_text = json.dumps(task_input, ensure_ascii=False, indent=1)
    return _environment().get_template(name).render(**values, input=input_text)


@cache
def prompt_version() -> str:
    """Returns twelve hex digits that change with any word of a prompt and with any schema."""
    text = json.dumps([_templates(), SCHEMAS], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def schema_fault(value: Any, schema: str) -> str | None:
    """Returns a sentence on the place and the kind of a JSON value's fault, or None for a valid value."""
    import jsonschema  # belongs to the extra `data`; only this function needs the library

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMAS[schema]).iter_errors(value))
    if error is None:
        return None
    where = "".join(f"[{step!r}]" for step in error.absolute_path)
    return f"it has not the shape asked for: {where} {error.message[:_MAX_MESSAGE_CHARACTERS]}."
