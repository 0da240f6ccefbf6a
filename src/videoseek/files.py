"""Files and folders that appear whole or not at all, and what a killed process left of one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videoseek.config import UsageError

_MARK = ".partial-"
_LOCK = ".lock"


def prepare_output_dir(path: str | Path) -> Path:
    """Make the folder and prove that files can be written to it; UsageError before any work if not."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise UsageError(f"output_dir {folder} cannot be written to: {error.strerror}") from error
    return folder


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, renames it to `path` at the end, and removes it if the block fails.

    Readers see the old file or the new one, whole. The bytes are on disk before the name changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_MARK}{os.getpid()}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file by `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON by `whole_file`. NaN and infinity raise ValueError, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, beside `folder`: renamed to it in the end, removed when the `with` block fails.

    Of several processes that make the same folder the first to finish gives its own; the others' are dropped. OSError
    when something else stands in its place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A name that is never used again, so that whoever finds it without its owner may remove it.
    partial = folder.with_name(f"{folder.name}{_MARK}{uuid.uuid4().hex[:12]}")
    lock = _lock_of(partial)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        partial.mkdir()
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def remove_abandoned(parent: Path, prefix: str) -> list[Path]:
    """Removes the unfinished folders in `parent` whose makers are gone; returns them. Names begin with `prefix`.

    A maker holds a lock on a file beside its folder. The system lets go of it when the maker ends, however it ends, and
    keeps it across machines that share the folder.
    """
    unfinished = {Path(str(path).removesuffix(_LOCK)) for path in parent.glob(f"{prefix}*{_MARK}*")}
    removed = []
    for partial in sorted(unfinished):
        descriptor = os.open(_lock_of(partial), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)
            _lock_of(partial).unlink(missing_ok=True)
            removed.append(partial)
        except BlockingIOError:
            pass  # its maker is at work
        finally:
            os.close(descriptor)
    return removed


def _lock_of(partial: Path) -> Path:
    return partial.with_name(partial.name + _LOCK)


def shipped_folder(name: str, in_checkout: str) -> Path:
    """A data folder of the package: beside this file once installed, at its place in the source tree otherwise."""
    installed = Path(__file__).parent / name
    return installed if installed.is_dir() else Path(__file__).parents[2] / in_checkout
