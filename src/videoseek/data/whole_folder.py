"""Folders that appear whole or not at all, and what a killed process left of one."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = ".partial-"
_LOCK = ".lock"


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
