"""Files and folders that appear whole or not at all, and JSON-lines files that survive a kill.

Whatever is not finished stands beside its final name as `NAME.partial-MAKER`. Only `publish` and
`remove_folder` rename, so a killed process leaves something whole under NAME or nothing, but never a half.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from videoseek.config import UsageError

_MARK = ".partial-"
_LOCK = ".lock"


def prepare_output_dir(path: str | Path) -> Path:
    """Makes the folder and proves that it takes files. Raises UsageError before any work if it does not."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise UsageError(f"output_dir {folder} cannot be written to: {error.strerror}") from error
    return folder


def partial_path(path: Path, maker: str) -> Path:
    """Returns the name under which `maker` prepares `path`, in the same folder so that a rename is atomic."""
    return path.with_name(f"{path.name}{_MARK}{maker}")


def publish(partial: Path, final: Path, *, replace_folder: bool = False) -> None:
    """Renames a finished file, link or folder to its final name, where it replaces a file or a link.

    A folder with content can be replaced only with `replace_folder`: the old one is renamed first and removed last.
    """
    maker = partial.name.rpartition(_MARK)[2]
    aside = _set_aside(final, maker) if replace_folder and _is_real_folder(final) else None
    partial.replace(final)
    if aside is not None:
        shutil.rmtree(aside)


def remove_folder(folder: Path, maker: str) -> None:
    """Removes a folder, if there is one. A kill in between leaves it whole, or under a partial name of `maker`."""
    if _is_real_folder(folder):
        shutil.rmtree(_set_aside(folder, maker))


def remove_leftovers(parent: Path, maker: str) -> None:
    """Removes what killed processes left in `parent` under the partial names of `maker`, who works alone there."""
    for pattern in (maker, f"{maker}-old"):
        for partial in parent.glob(f"*{_MARK}{pattern}"):
            shutil.rmtree(partial) if _is_real_folder(partial) else partial.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, renames it to `path` at the end, and removes it if the block fails.

    Readers see the old file or the new one, whole. The bytes are on disk before the name changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path, str(os.getpid()))
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file by `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON by `whole_file`. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`, renames it to `folder` at the end, and removes it if the block fails.

    If several processes make the same folder, the first to finish provides it and the others drop theirs. Raises
    OSError if something other than a folder stands there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The name is never used again, so whoever finds it without its owner may remove it.
    partial = partial_path(folder, uuid.uuid4().hex[:12])
    lock = _lock_of(partial)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        partial.mkdir()
        yield partial
        try:
            publish(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def remove_abandoned(parent: Path, prefix: str) -> list[Path]:
    """Removes the folders of `whole_folder` in `parent` whose makers have ended, and returns them.

    Their names begin with `prefix`. A maker holds a lock on a file beside its folder; the system releases the lock
    when the maker ends in any way, also across machines that share the folder.
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


def read_json_lines(path: Path) -> list[Any]:
    """Returns the values of a JSON-lines file that only grows, [] if there is no such file.

    A last line without its newline was torn by a kill and is left out. Raises ValueError, which names file and line,
    for any other line that is not JSON.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
    return values


def open_json_lines(path: Path) -> FileIO:
    """Opens a JSON-lines file to append to, after a torn last line is cut off.

    The file has no buffer: a line reaches the system in one call, so a kill can tear the last line only.
    """
    file = path.open("ab", buffering=0)
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    return file


def append_json_line(file: FileIO, value: Any) -> None:
    """Appends one line. Raises ValueError for NaN and infinity, which JSON does not have."""
    file.write(json.dumps(value, allow_nan=False).encode() + b"\n")


def shipped_folder(name: str, in_checkout: str) -> Path:
    """Returns a data folder of the package: beside this file if installed, else at its place in the source tree."""
    installed = Path(__file__).parent / name
    return installed if installed.is_dir() else Path(__file__).parents[2] / in_checkout


def _lock_of(partial: Path) -> Path:
    return partial.with_name(partial.name + _LOCK)


def _set_aside(folder: Path, maker: str) -> Path:
    aside = partial_path(folder, f"{maker}-old")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.replace(aside)


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
