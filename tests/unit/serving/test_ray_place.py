"""Workers placed by Ray: two nodes of a local cluster, a stand-in for vLLM, and every way to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_vllm import interpreter
from support.ray_cluster import two_nodes
from support.tiny_world import TinyWorld, tiny_world

from videoseek.config import RolloutConfig, UsageError
from videoseek.config_merge import load_config
from videoseek.model.load import model_folder
from videoseek.rollout.sampler import TurnSettings
from videoseek.rollout.vllm import VllmSampler
from videoseek.serving.client import WorkerError, WorkerLostError
from videoseek.serving.ray_place import RayPlace
from videoseek.serving.remote import rank_workers

SETTINGS = TurnSettings(temperature=1.0, top_p=1.0, max_new_tokens=8, stream=5, num_drawn=0)

#: A trainer that has two workers and then waits for its end.
TRAINER = """
import sys, time
sys.path.insert(0, "tests")
from pathlib import Path
from unit.serving.test_ray_place import ask, open_sampler
sampler = open_sampler(Path(sys.argv[1]), num_workers=2)
print(ask(sampler, "0/0").token_ids, ask(sampler, "0/1").token_ids, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with two_nodes():
        yield


def settings(folder: Path, *keys: str) -> RolloutConfig:
    own = [f"rollout.vllm_python={interpreter(folder)}", f"rollout.vllm_options=[pid_dir={folder}]"]
    ray = ["rollout.engine=vllm", "rollout.placement=ray", "rollout.worker_silence_seconds=60"]
    return load_config(["recipe=sft_rl", *own, *ray, *keys]).rollout


def open_sampler(folder: Path, num_workers: int, *keys: str) -> VllmSampler:
    rollout = settings(folder, f"rollout.workers={num_workers}", *keys)
    workers = rank_workers(rollout, "float32", model_folder("tiny"), folder)
    assert len(workers) == num_workers
    return VllmSampler(workers, tiny_world().vocabulary)


def ask(sampler: VllmSampler, name: str) -> Any:
    world: TinyWorld = tiny_world()
    builder = world.environment.open(world.samples[0])
    return sampler.submit(name, builder.token_ids, builder.clips, SETTINGS).result(120)


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def wait(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.ray
def test_two_workers_sample_and_a_killed_one_is_placed_again(cluster: None, tmp_path: Path) -> None:
    sampler = open_sampler(tmp_path, 2)
    first = ask(sampler, "0/0").token_ids
    assert ask(sampler, "0/1").token_ids == first, "the seed decides, not the worker"
    assert len(pids(tmp_path)) == 2
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids(tmp_path)]
    assert all("fake_vllm.py" in command for command in commands)
    assert not any(worker._token in command for command in commands for worker in sampler._workers)
    for pid in pids(tmp_path):
        os.kill(pid, signal.SIGKILL)
    assert ask(sampler, "0/2").token_ids == ask(sampler, "0/3").token_ids == first
    assert sorted(map(runs, pids(tmp_path))) == [False, False, True, True]
    sampler.close()
    wait(lambda: not any(map(runs, pids(tmp_path))))


@pytest.mark.ray
def test_the_loss_is_named_with_its_node(cluster: None, tmp_path: Path) -> None:
    sampler = open_sampler(tmp_path, 1, "rollout.worker_restarts=0")
    ask(sampler, "0/0")
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    wait(lambda: not runs(pids(tmp_path)[0]))
    with pytest.raises(WorkerLostError, match=r"SIGKILL on .*; its output is in Ray's logs of actor \w+"):
        ask(sampler, "0/1")
    sampler.close()


@pytest.mark.ray
def test_no_worker_outlives_a_killed_trainer(cluster: None, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None and trainer.stdout.readline().startswith("[")
        assert len(pids(tmp_path)) == 2 and all(map(runs, pids(tmp_path)))
        trainer.kill()
    wait(lambda: not any(map(runs, pids(tmp_path))))


@pytest.mark.ray
def test_a_cluster_without_room_is_named(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a CPU for each of 3 workers; the Ray cluster has 2"):
        open_sampler(tmp_path, 3)
    taken = open_sampler(tmp_path, 2)
    ask(taken, "0/0"), ask(taken, "0/1")
    late = RayPlace(None, tmp_path, {}, "token", device="CPU", wait_seconds=2.0)
    with pytest.raises(WorkerLostError, match="it needs a node with a free CPU, and 0 of the cluster's CPUs are free"):
        late.start()
    late.stop()
    taken.close()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("python", "model", "sentence"),
    [
        ("/no/python", "", "vllm_python=/no/python is not a program"),
        (None, "missing", "the model folder .*/missing is not on .*; all nodes need it under the same path"),
    ],
)
def test_what_a_node_lacks_is_named(
    cluster: None, tmp_path: Path, python: str | None, model: str, sentence: str
) -> None:
    place = RayPlace(python, tmp_path / model, {}, "token", device="CPU", wait_seconds=60.0)
    with pytest.raises(WorkerError, match=sentence):
        place.start()
    place.stop()


@pytest.mark.ray
def test_a_missing_cluster_is_named(tmp_path: Path) -> None:
    """In a process of its own: this process may have joined a cluster."""
    code = "import sys; from videoseek.serving.ray_place import connect_to_ray; connect_to_ray(1)"
    variables = os.environ | {"RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert "UsageError: rollout.placement=ray reaches no Ray cluster; `ray start --head` starts one" in done.stderr


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ([], r"rollout.placement=ray needs Ray: pip install 'videoseek\[ray\]'"),
        (["rollout.servers=[a:1]"], r"rollout.placement=ray starts workers; rollout.servers=\['a:1'\] run already"),
        (["rollout.workers=1"], "rollout.workers=1 is below the number of ranks, 2"),
    ],
)
def test_refusals(keys: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=sentence):
        rank_workers(settings(tmp_path, *keys), "float32", tmp_path, tmp_path)
