"""Loads objects from the user's own Python files, which run with the user's rights."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from videoseek.config import UsageError


@lru_cache  # a file is run once, however often its object is asked for
def load_member(spec: str, key: str) -> Any:
    """Returns the object of `FILE.py:NAME`, the value of the configuration's `key`. Raises UsageError."""
    path_text, _, member = spec.rpartition(":")
    path = Path(path_text).expanduser()
    if path.suffix != ".py" or not member.isidentifier():
        raise UsageError(f"{key} {spec!r} must be a known name or read FILE.py:NAME")
    if not path.is_file():
        raise UsageError(f"{key} {spec}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{key} {spec}: {path} failed to load: {error!r}") from error
    if member not in vars(module):
        raise UsageError(f"{key} {spec}: {path} defines no {member}")
    return vars(module)[member]


def tool_names(specs: Sequence[str]) -> dict[str, str]:
    """Returns the names of a run's tools, for a parser: with empty descriptions, and without loading the tools' room.

    Raises UsageError.
    """
    return {load_member(spec, "tools").name if ".py:" in spec else spec: "" for spec in specs}
