"""Whole or not at all: failures, kills, and two makers of one folder."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from videoseek.files import remove_abandoned, whole_folder
from videoseek.samples import clueworld


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


def test_what_the_killed_leave_is_removed_and_what_the_living_make_is_not(tmp_path: Path) -> None:
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
