"""What goes into a tracker comes out of its own files; a tracker that fails or is missing costs no training."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from videoseek import trackers
from videoseek.config import TrainConfig, UsageError
from videoseek.config_merge import load_config
from videoseek.metrics import MetricsLog, read_metrics
from videoseek.trackers import check_trackers, open_trackers

SRC = Path(__file__).parents[3] / "src"
OTHERS = ("wandb", "trackio", "swanlab")
KEY = "0123456789abcdef0123456789abcdef01234567"

#: One process of a run: opens the named trackers and logs the steps FIRST..LAST of SFT.
WRITER = """
import sys
from pathlib import Path
from videoseek.config_merge import load_config
from videoseek.metrics import MetricsLog
from videoseek.trackers import open_trackers
output_dir, names, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = load_config([f"tracker=[{names}]", "sft.steps=7"])
resume = ("sft", first - 1) if first > 1 else None
log = MetricsLog(output_dir, ["sft"], resume, open_trackers(config, output_dir, resume))
for step in range(first, last + 1):
    log.write("sft", step, {"loss": 1 / step, "reward/mean": float(step)})
log.close()
"""


@pytest.fixture(scope="module")
def resumed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 to 3 of a process, then 3 to 5 of another one that resumes after step 2; no key is valid anywhere."""
    if not any(map(find_spec, OTHERS)):
        pytest.skip("none of wandb, trackio and swanlab is installed")
    output_dir = tmp_path_factory.mktemp("project") / "my run"
    output_dir.mkdir()
    installed = ",".join(name for name in OTHERS if find_spec(name))
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("WANDB_", "TRACKIO_", "SWANLAB_"))}
    keys = {"WANDB_API_KEY": KEY, "SWANLAB_API_KEY": KEY, "HF_TOKEN": KEY}
    for first, last in ((1, 3), (3, 5)):
        subprocess.run(
            [sys.executable, "-c", WRITER, str(output_dir), installed, str(first), str(last)],
            env={**inherited, **keys, "PYTHONPATH": str(SRC)},
            cwd=output_dir,
            check=True,
            capture_output=True,
        )
    return output_dir


def run_id(output_dir: Path) -> str:
    return (output_dir / "tracker_run_id").read_text().strip()


def log_records(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, each record behind 7 bytes of header."""
    content, offset, whole = path.read_bytes(), 7, b""  # the file's own header is as long
    while offset + 7 <= len(content):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, offset)
        whole += content[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def test_wandb_holds_what_was_logged(resumed_run: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    histories: list[list[dict[str, float]]] = []
    for path in sorted(resumed_run.glob("wandb/offline-run-*/*.wandb")):
        histories.append([])
        for data in log_records(path):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                assert (record.run.run_id, record.run.project) == (run_id(resumed_run), "project0")
                assert record.run.display_name == "my-run"
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert config["sft"]["steps"] == 7
            elif record.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                histories[-1].append({name: value for name, value in row.items() if not name.startswith("_")})
    assert histories == [
        [{"sft/step": s, "sft/loss": 1 / s, "sft/reward/mean": float(s)} for s in steps]
        for steps in (range(1, 4), range(3, 6))
    ]


def test_trackio_holds_what_was_logged(resumed_run: Path) -> None:
    pytest.importorskip("trackio")
    database = sqlite3.connect(resumed_run / "trackio/project0.db")
    rows = database.execute("SELECT run_name, run_id, step, metrics FROM metrics ORDER BY id").fetchall()
    assert [(step, json.loads(metrics)) for _, _, step, metrics in rows] == [
        (step, {"sft/loss": 1 / step, "sft/reward/mean": float(step)}) for step in (1, 2, 3, 3, 4, 5)
    ]
    assert {name for name, *_ in rows} == {f"my-run-{run_id(resumed_run)}"}
    assert len({identity for _, identity, *_ in rows}) == 1, "the resumed process goes on with the same run"
    (config,) = {text for (text,) in database.execute("SELECT config FROM configs")}
    assert json.loads(config)["sft"]["steps"] == 7


def test_swanlab_holds_what_was_logged(resumed_run: Path) -> None:
    pytest.importorskip("swanlab")
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    found: list[dict[tuple[str, int], float]] = []
    for path in sorted(resumed_run.glob("swanlab/run-*/*.swanlab")):
        records = [Record.FromString(data) for data in log_records(path)]
        (start,) = [record.start for record in records if record.HasField("start")]
        assert (start.id, start.project, start.name) == (run_id(resumed_run), "project0", "my-run")
        scalars = [record.scalar for record in records if record.HasField("scalar")]
        found.append({(scalar.key, scalar.step): scalar.value.number for scalar in scalars})
        assert "steps" in (path.parent / "files/config.yaml").read_text()
    assert found == [
        {("sft/loss", s): 1 / s for s in steps} | {("sft/reward/mean", s): float(s) for s in steps}
        for steps in (range(1, 4), range(3, 6))
    ]


def test_no_key_and_no_environment_is_written(resumed_run: Path) -> None:
    files = [path for path in resumed_run.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


class Recorder:
    """A tracker that fails at one of its calls, and enters itself into `made`."""

    def __init__(self, made: list[Recorder], fails_at: str = "") -> None:
        made.append(self)
        self.fails_at = fails_at
        self.steps: list[int] = []
        self._call("start")

    def _call(self, name: str) -> None:
        if name == self.fails_at:
            raise ConnectionError(f"no route to host, key={KEY}\nand more")

    def log(self, stage: str, step: int, values: Any) -> None:
        self.steps.append(step)
        self._call(f"step {step}")

    def close(self) -> None:
        self.steps.append(-1)
        self._call("end")


@pytest.mark.parametrize(("fails_at", "seen"), [("start", []), ("step 2", [1, 2]), ("end", [1, 2, 3, -1])])
def test_a_failing_tracker_is_named_once_and_ends_nothing(
    fails_at: str,
    seen: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made: list[Recorder] = []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setitem(trackers._TRACKERS, "wandb", lambda _: Recorder(made, fails_at))
    monkeypatch.setitem(trackers._TRACKERS, "swanlab", lambda _: Recorder(made))
    with caplog.at_level(logging.WARNING):
        log = MetricsLog(tmp_path, ["sft"], trackers=open_trackers(load_config(["tracker=[wandb,swanlab]"]), tmp_path))
        for step in (1, 2, 3):
            log.write("sft", step, {"loss": 1.0})
        log.close()
    assert [recorder.steps for recorder in made] == [seen, [1, 2, 3, -1]]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "the run goes on without the tracker wandb, which failed: ConnectionError: no route to host, key=***"
    )
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("leftover", [False, True], ids=["no_folder", "folder_of_earlier_runs"])
def test_a_missing_package_is_refused_with_its_extra(
    leftover: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir() if leftover else None
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UsageError) as caught:
        check_trackers(["wandb"])
    assert str(caught.value) == (
        "tracker=wandb needs the package wandb, which is not installed: pip install 'videoseek[trackers]'"
    )


def test_installed_trackers_pass_the_check() -> None:
    check_trackers(TrainConfig().tracker)
    check_trackers([])


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UsageError, match="tracker must be one of tensorboard, wandb, trackio, swanlab, got 'mlflow'"):
        load_config(["tracker=mlflow"])


def test_a_fresh_output_folder_is_another_run(tmp_path: Path) -> None:
    ids = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for _ in range(2):
            open_trackers(TrainConfig(), tmp_path / name)
            ids.append(run_id(tmp_path / name))
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_other_ranks_open_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert open_trackers(TrainConfig(), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
