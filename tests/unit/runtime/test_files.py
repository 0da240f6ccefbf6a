"""Files and folders appear whole or not at all: failures, kills, and two makers of one folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videoseek.config import UsageError
from videoseek.files import (
    append_json_line,
    hold_folder,
    open_json_lines,
    partial_path,
    prepare_output_dir,
    publish,
    read_json_lines,
    remove_abandoned,
    remove_folder,
    remove_leftovers,
    whole_folder,
    write_json,
)
from videoseek.samples import clueworld


def test_output_dir_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = prepare_output_dir(tmp_path / "a/b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_output_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UsageError, match=r"output_dir .*taken cannot be written to"):
        prepare_output_dir(tmp_path / "taken")


def test_unwritable_output_dir_is_refused() -> None:
    with pytest.raises(UsageError, match="output_dir /proc cannot be written to"):
        prepare_output_dir("/proc")


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1, "é": [None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1, "é": [None]}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_disk_full_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_json(path, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, 2)
    assert path.read_text() == "1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_appears_when_it_is_full(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "new" / "data") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "new" / "data").exists()
    assert names(tmp_path / "new") == {"data"} and names(tmp_path / "new" / "data") == {"file"}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "data") as partial:
        (partial / "file").write_text("x")
        raise KeyboardInterrupt
    assert names(tmp_path) == set()


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "data") as slow:
        (slow / "slow").touch()
        with whole_folder(tmp_path / "data") as fast:
            (fast / "fast").touch()
    assert names(tmp_path) == {"data"} and names(tmp_path / "data") == {"fast"}


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(OSError), whole_folder(tmp_path / "data"):
        pass
    assert (tmp_path / "data").read_text() == "mine" and names(tmp_path) == {"data"}


MAKER = """
import sys, time
from pathlib import Path
from videoseek.files import whole_folder
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "half").touch()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_only_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    makers = []
    for name in ("killed", "alive"):
        command = [sys.executable, "-c", MAKER, str(tmp_path / f"clueworld-{name}")]
        maker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert maker.stdout is not None and maker.stdout.readline() == "ready\n"
        makers.append(maker)
    killed, alive = makers
    killed.kill()
    killed.wait()
    (tmp_path / "clueworld-old.partial-4242").mkdir()  # of a release that took no lock
    (tmp_path / "other.partial-1").mkdir()
    removed = remove_abandoned(tmp_path, "clueworld-")
    assert {path.name.split(".")[0] for path in removed} == {"clueworld-killed", "clueworld-old"}
    assert {name.split(".")[0] for name in names(tmp_path)} == {"clueworld-alive", "other"}
    alive.terminate()
    alive.wait()


def test_a_killed_generation_leaves_nothing_for_long(tmp_path: Path) -> None:
    command = "import sys; from pathlib import Path; from videoseek.samples.clueworld import prepare; "
    command += "prepare(Path(sys.argv[1]), 'train', 6000, 0)"
    maker = subprocess.Popen([sys.executable, "-c", command, str(tmp_path)])
    while not list(tmp_path.glob("*/videos/*.mp4")):
        assert maker.poll() is None
        time.sleep(0.1)
    maker.kill()
    maker.wait()
    assert any(".partial-" in name for name in names(tmp_path))
    path = clueworld.prepare(tmp_path, "train", 6, 0)
    assert names(tmp_path) == {path.parent.name}


def make_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


def test_a_published_folder_replaces_the_old_one(tmp_path: Path) -> None:
    final = make_folder(tmp_path / "checkpoint-4", "old")
    partial = make_folder(partial_path(final, "ranks"), "new")
    with pytest.raises(OSError):
        publish(partial, final)
    assert (final / "file").read_text() == "old"
    publish(partial, final, replace_folder=True)
    assert names(tmp_path) == {"checkpoint-4"} and (final / "file").read_text() == "new"


@pytest.mark.parametrize("num_renames", [0, 1])
def test_a_kill_while_a_folder_is_replaced_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_renames: int
) -> None:
    """The old and the new folder are whole after any number of renames, under whichever name."""
    final = make_folder(tmp_path / "checkpoint-4", "old")
    partial = make_folder(partial_path(final, "ranks"), "new")
    renamed = []

    def replace(path: Path, target: Path) -> Path:
        if len(renamed) == num_renames:
            raise KeyboardInterrupt
        renamed.append(path.name)
        path.rename(target)
        return target

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        publish(partial, final, replace_folder=True)
    assert sorted((folder / "file").read_text() for folder in tmp_path.iterdir()) == ["new", "old"]
    assert final.exists() == (num_renames == 0)


def test_a_half_removed_folder_does_not_keep_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "checkpoint-4", "x")
    (folder / "complete").touch()

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "file").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove_folder(folder, "ranks")
    assert names(tmp_path) == {"checkpoint-4.partial-ranks-old"}
    remove_leftovers(tmp_path, "ranks")
    assert names(tmp_path) == set()
    remove_folder(folder, "ranks")  # nothing is there any more


def test_removal_takes_the_leftovers_of_one_maker_only(tmp_path: Path) -> None:
    make_folder(tmp_path / "direct.partial-ranks", "x")
    (tmp_path / "last.partial-ranks").symlink_to("nowhere")
    make_folder(tmp_path / "data.partial-0123456789ab", "x")
    make_folder(tmp_path / "checkpoint-4", "x")
    remove_leftovers(tmp_path, "ranks")
    assert names(tmp_path) == {"data.partial-0123456789ab", "checkpoint-4"}


@pytest.mark.parametrize("tail", [b'{"a": 1', b"\xc3", b'{"a": 1}'])
def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_json_lines(path) == []
    path.write_bytes(b"[1]\n" + tail)
    assert read_json_lines(path) == [[1]]
    with open_json_lines(path) as file:
        append_json_line(file, {"é": 2})
        with pytest.raises(ValueError, match="Out of range"):
            append_json_line(file, float("nan"))
    assert read_json_lines(path) == [[1], {"é": 2}]


@pytest.mark.parametrize("line", [b"oops", b"", b"\xff", b"[" * 100_000], ids=["words", "empty", "no text", "deep"])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b"1\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"lines\.jsonl line 2 is not JSON"):
        read_json_lines(tmp_path / "lines.jsonl")


def test_a_folder_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UsageError, match=r"output_dir .* cannot be locked: No locks available; give one with"):
        hold_folder(tmp_path)


def test_a_folder_has_one_holder_until_its_end_or_kill(tmp_path: Path) -> None:
    command = "import sys; from pathlib import Path; from videoseek.files import hold_folder\n"
    command += "hold_folder(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(UsageError, match=f"output_dir .* is in use by process {holder.pid} on .+; give another one"):
        hold_folder(tmp_path)
    holder.kill()
    holder.wait()
    os.close(hold_folder(tmp_path))
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
