"""Files and folders written whole or not at all, and JSON-lines files robust to a kill.

Unfinished work stands beside its final name as `NAME.partial-MAKER`. Only `publish` and `remove_folder` rename: a
killed process leaves a whole NAME or no NAME, and never a half.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from videoseek.config import UsageError

_MARK = ".partial-"
_LOCK = ".lock"


def prepare_output_dir(path: str | Path) -> Path:
    """Makes the folder and tests writing. Raises UsageError before any work for a read-only folder."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise UsageError(f"output_dir {folder} cannot be written to: {error.strerror}") from error
    return folder


def hold_folder(folder: Path) -> int:
    """Locks a folder for this process, until its end or kill. Returns the descriptor of the lock, to close earlier.

    Raises UsageError while another process holds the lock.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise UsageError(f"output_dir {folder} is in use by {holder or 'another process'}; give another one") from None
    except OSError as error:  # some network file systems have no locks
        os.close(descriptor)
        raise UsageError(f"output_dir {folder} cannot be locked: {error.strerror}; give one with file locks") from error
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    return descriptor


def partial_path(path: Path, maker: str) -> Path:
    """Returns `maker`'s partial name of `path`, in the same folder for an atomic rename."""
    return path.with_name(f"{path.name}{_MARK}{maker}")


def publish(partial: Path, final: Path, *, replace_folder: bool = False) -> None:
    """Renames a finished file, link or folder to its final name, and replaces an existing file or link.

    `replace_folder` also replaces a nonempty folder: renames the old folder first and removes the old folder last.
    """
    maker = partial.name.rpartition(_MARK)[2]
    aside = _set_aside(final, maker) if replace_folder and _is_real_folder(final) else None
    partial.replace(final)
    if aside is not None:
        shutil.rmtree(aside)


def remove_folder(folder: Path, maker: str) -> None:
    """Removes a folder, if any. A kill in between leaves a whole folder, or a partial name of `maker`."""
    if _is_real_folder(folder):
        shutil.rmtree(_set_aside(folder, maker))


def remove_leftovers(parent: Path, maker: str) -> None:
    """Removes leftovers of killed processes in `parent` under the partial names of `maker`, the only user there.

    `maker` may be a pattern such as `*`.
    """
    for pattern in (maker, f"{maker}-old"):
        for partial in parent.glob(f"*{_MARK}{pattern}"):
            shutil.rmtree(partial) if _is_real_folder(partial) else partial.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`. Renames the file to `path` at the end, or removes it after a failure.

    Readers see the old file or the new file, whole. The bytes are on disk before the renaming.
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
    """Writes indented JSON by `whole_file`. Raises ValueError for NaN and infinity (absent in JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def give_usual_modes(folder: Path) -> None:
    """Gives all files of a folder the mode of a new file. Safetensors writes files that only the owner can read."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        (Path(own) / "new").touch()
        mode = (Path(own) / "new").stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`. Renames the folder at the end, or removes the folder after a failure.

    Among several processes with the same folder, the first to finish provides the folder, and the others drop their
    work. Raises OSError for anything but a folder at the final name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The name is unique: a finder of an abandoned folder may remove the folder.
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
    """Removes the folders of `whole_folder` in `parent` with ended makers. Returns the removed folders.

    The folder names begin with `prefix`. A maker holds a lock on a file beside its folder. The system releases the lock
    at any end of the maker, also across machines with a shared folder.
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
            pass  # the maker is at work
        finally:
            os.close(descriptor)
    return removed


def read_json_lines(path: Path) -> list[Any]:
    """Returns the values of an append-only JSON-lines file, or [] for a missing file.

    Skips a last line without its newline (torn by a kill). Raises ValueError with file and line for any other line of
    invalid JSON.
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
    """Opens a JSON-lines file for appending, and cuts off a torn last line first.

    The file is unbuffered: a line reaches the system in one call, and a kill can tear the last line only.
    """
    file = path.open("ab", buffering=0)
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    return file


def append_json_line(file: FileIO, value: Any) -> None:
    """Appends one line. Raises ValueError for NaN and infinity (absent in JSON)."""
    file.write(json.dumps(value, allow_nan=False).encode() + b"\n")


class FolderBound:
    """Keeps the files `pattern` of a folder within `max_bytes`: removes the files written or touched longest ago.

    Several processes may share a folder. A process looks at its first write and then after each hundredth of the bound
    that it wrote. It leaves a tenth of the bound free.
    """

    def __init__(self, folder: Path, pattern: str, max_bytes: int) -> None:
        self._folder, self._pattern, self._max_bytes = folder, pattern, max_bytes
        self._unseen_bytes = max_bytes

    def wrote(self, num_bytes: int) -> None:
        """Counts a file that this process wrote, and removes the oldest files if it is time to look."""
        self._unseen_bytes += num_bytes
        if 100 * self._unseen_bytes < self._max_bytes:
            return
        self._unseen_bytes = 0
        files = []
        for path in self._folder.rglob(self._pattern):
            with suppress(FileNotFoundError):  # another process removed the file
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in files) - self._max_bytes
        if excess > 0:
            excess += self._max_bytes // 10
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def shipped_folder(name: str, in_checkout: str) -> Path:
    """Returns a data folder of the package: beside this file if installed, else in the source tree."""
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
