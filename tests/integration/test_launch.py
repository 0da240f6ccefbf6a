"""The launch files of recipes/launch start runs of two processes. Two processes learn the same as one process."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import ROOT, curve, environment, run, summary

LAUNCH = ROOT / "recipes/launch"
#: A rollout that resamples chooses its questions by rank, hence none here.
COMMON = ["save_every_steps=0", "grpo.max_resample_rounds=0", "data.eval=[]", "deepspeed.stage=2", "device=cpu"]

#: Stand-ins for SLURM: the allocation has two nodes of this machine's name, and srun starts a task for each.
SCONTROL = "#!/bin/sh\necho 127.0.0.1\necho 127.0.0.1\n"
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
SLURM_PROCID=1 "$@" &
SLURM_PROCID=0 "$@"
first=$?
wait $! && exit $first
"""

#: Stand-ins for ssh and pdsh: every host is this machine. pdsh gets `-w HOSTS COMMAND`, with %n for the host's number.
SSH = "#!/bin/sh\nexit 0\n"
PDSH = """#!/bin/bash
while [ "$1" != -w ]; do shift; done
shift 2
bash -c "${*//%n/1}" &
bash -c "${*//%n/0}"
first=$?
wait $! && exit $first
"""


@pytest.fixture(scope="module")
def arguments(tiny: list[str]) -> list[str]:
    return [*tiny, "stages=[sft,grpo]", *COMMON]


@pytest.fixture(scope="module")
def one_process(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("one_process") / "out"
    run([*arguments, f"output_dir={output_dir}"])
    return output_dir


def variables(**more: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, PYTHON=sys.executable, DS_ACCELERATOR="cpu", **more)


def stand_in(folder: Path, programs: dict[str, str]) -> str:
    """Writes `programs` to the folder, and returns a PATH with the folder first."""
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def start(command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    try:
        for process in processes:
            said, _ = process.communicate(timeout=400)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.terminate()  # torchrun ends its workers in turn


def assert_same_curves(output_dir: Path, one_process: Path) -> None:
    assert json.loads((output_dir / "env.json").read_text())["world_size"] == 2
    for name, stage in (("loss", "sft"), ("grad_norm", "sft"), ("loss", "grpo"), ("reward/mean", "grpo")):
        wanted = curve(one_process, name, stage)
        assert len(wanted) == {"sft": 4, "grpo": 3}[stage]
        assert curve(output_dir, name, stage) == pytest.approx(wanted, abs=1e-4), f"{name} of {stage}"
    assert summary(output_dir).keys() == summary(one_process).keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_equals_one_process(arguments: list[str], one_process: Path, output_dir: Path) -> None:
    shared = variables(NUM_NODES="2", PROCESSES_PER_NODE="1")
    command = [str(LAUNCH / "torchrun.sh"), *arguments, f"output_dir={output_dir}"]
    finish(*(start(command, shared | {"NODE_RANK": node}) for node in ("0", "1")))
    assert_same_curves(output_dir, one_process)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_slurm_equals_one_process(arguments: list[str], one_process: Path, output_dir: Path, tmp_path: Path) -> None:
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_SUBMIT_DIR": str(ROOT)}
    found = variables(PROCESSES_PER_NODE="1", SLURM_JOB_ID=str(os.getpid()), **job)
    found["PATH"] = stand_in(tmp_path, {"scontrol": SCONTROL, "srun": SRUN})
    finish(start(["bash", str(LAUNCH / "slurm.sbatch"), *arguments, f"output_dir={output_dir}"], found))
    assert_same_curves(output_dir, one_process)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_deepspeed_equals_one_process(
    arguments: list[str], one_process: Path, output_dir: Path, tmp_path: Path
) -> None:
    launcher = Path(sys.executable).with_name("deepspeed")
    if not launcher.is_file():
        pytest.skip("needs DeepSpeed's launcher beside the interpreter")
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    found = variables(HOSTFILE=str(hosts), DEEPSPEED=str(launcher))
    found["PATH"] = stand_in(tmp_path, {"ssh": SSH, "pdsh": PDSH})
    finish(start([str(LAUNCH / "deepspeed_hostfile.sh"), *arguments, f"output_dir={output_dir}"], found))
    assert_same_curves(output_dir, one_process)


def test_nodes_with_separate_output_folders_are_refused(arguments: list[str], tmp_path: Path) -> None:
    """Two nodes in different working folders, each with a disk of its own below `output_dir=out`."""
    shared = variables(WORLD_SIZE="2", LOCAL_RANK="0")
    processes = []
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
        command = [sys.executable, "-m", "videoseek.train", *arguments, "output_dir=out"]
        own = {"env": shared | {"RANK": node}, "cwd": tmp_path / node, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, **own))
    for process in processes:
        said = process.communicate(timeout=300)[1].splitlines()[-1]
        assert process.returncode == 2, said
        assert "output_dir out must be one folder for all ranks, but rank 1 on " in said
    assert [list((tmp_path / node / "out").iterdir()) for node in ("0", "1")] == [[], []]


@pytest.mark.parametrize(
    ("name", "needed"),
    [("torchrun.sh", ["NUM_NODES", "NODE_RANK", "MASTER_ADDR"]), ("deepspeed_hostfile.sh", ["HOSTFILE"])],
)
def test_a_missing_variable_is_named(name: str, needed: list[str]) -> None:
    given = {variable: "1" for variable in needed}
    inherited = {key: value for key, value in environment().items() if key not in needed}
    for missing in needed:
        others = {key: value for key, value in given.items() if key != missing}
        done = subprocess.run([str(LAUNCH / name)], env=inherited | others, capture_output=True, text=True)
        assert done.returncode != 0
        assert f"{missing}: " in done.stderr


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_launch_files_are_bash_that_can_be_started(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    assert path.suffix == ".sbatch" or path.stat().st_mode & stat.S_IXUSR
