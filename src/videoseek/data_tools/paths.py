"""Turns names on the command line into files: data files to read, and files to write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videoseek.config import UsageError
from videoseek.runtime import say
from videoseek.samples.readers.messages import DATASET_INFO

#: Endings of data files. LLaMA-Factory's dataset_info.json lies in the same folder, and is excluded.
DATA_SUFFIXES = (".json", ".jsonl", ".parquet")
#: Most names in a message.
_NUM_NAMED = 5


def existing_files(names: Sequence[str], written: str | None = None) -> list[Path]:
    """Returns data files by name; a folder stands for the data files inside. Raises UsageError without any data file.

    The result leaves out `written`, the command's output: an earlier run may have put the file into a folder.
    """
    files = [path for name in names for path in _data_files(name)]
    output = Path(written).expanduser().resolve() if written is not None else None
    return [path for path in files if path.resolve() != output]


def _data_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"data file {name!r} does not exist")
    files = sorted(file for file in path.iterdir() if file.name != DATASET_INFO)
    inside = [file for file in files if file.suffix in DATA_SUFFIXES]
    # Compressed files and endings in capitals look like data files, but the readers refuse such files.
    passed_over = [
        repr(file.name)
        for file in files
        if file.suffix not in DATA_SUFFIXES and {suffix.lower() for suffix in file.suffixes} & set(DATA_SUFFIXES)
    ]
    more = f" and {len(passed_over) - _NUM_NAMED} more" if len(passed_over) > _NUM_NAMED else ""
    note = f"; not read: {', '.join(passed_over[:_NUM_NAMED])}{more}" if passed_over else ""
    if not inside:
        raise UsageError(f"folder {name!r} holds no data file ({' '.join(DATA_SUFFIXES)}){note}")
    if passed_over:
        say(f"folder {name!r}: only files in {' '.join(DATA_SUFFIXES)} are read{note}")
    return inside


def output_file(key: str, name: str, suffixes: Sequence[str]) -> Path:
    """Returns a file to write, with a suffix of `suffixes`, in an existing folder. Raises UsageError."""
    path = Path(name).expanduser()
    if path.suffix not in suffixes:
        raise UsageError(f"{key}={name} must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"{key}={name} must name a file in a folder that exists")
    return path
