"""Names on the command line as files: those that are read, and those that are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videoseek.config import UsageError
from videoseek.samples.readers.messages import DATASET_INFO

#: Endings of the data files of a folder; the description of them that LLaMA-Factory keeps beside them is none.
DATA_SUFFIXES = (".json", ".jsonl", ".parquet")


def existing_files(names: Sequence[str], written: str | None = None) -> list[Path]:
    """Data files by their names; a folder stands for those that lie in it. Raises UsageError where there is none.

    `written` is what the command writes: in such a folder it is left over from an earlier run, and not read.
    """
    found = [path for name in names for path in _data_files(name)]
    own = Path(written).expanduser().resolve() if written is not None else None
    return [path for path in found if path.resolve() != own]


def _data_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"data file {name!r} does not exist")
    inside = sorted(file for file in path.iterdir() if file.suffix in DATA_SUFFIXES and file.name != DATASET_INFO)
    if not inside:
        raise UsageError(f"folder {name!r} holds no data file ({' '.join(DATA_SUFFIXES)})")
    return inside


def output_file(key: str, name: str, suffixes: Sequence[str]) -> Path:
    """A file to write, with one of the suffixes, in a folder that is there. Raises UsageError."""
    path = Path(name).expanduser()
    if path.suffix not in suffixes:
        raise UsageError(f"{key}={name} must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"{key}={name} must name a file in a folder that exists")
    return path
