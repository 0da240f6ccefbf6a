"""The real vLLM against the trainer: equal tokens, log-probs within 2e-5, weights that arrive, and workers that die."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import ROOT, environment
from support.tiny_world import LIMITS, TOKENS_PER_SECOND, TinyWorld, memorised, tiny_world

from videoseek.batches.packing import PackSettings, pack_documents
from videoseek.batches.positions import clip_positions
from videoseek.config import LoRAConfig
from videoseek.model.adapters import add_adapters, merged_weights
from videoseek.model.load import load_model, save_pretrained
from videoseek.model.policy import Policy
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.sampler import SamplingSettings
from videoseek.rollout.vllm import VllmSampler
from videoseek.serving.client import WorkerError
from videoseek.serving.launch import LocalPlace
from videoseek.serving.remote import RemoteWorker, ServerPlace, Weights
from videoseek.tools.crop import VideoCrop
from videoseek.types import Clip, Episode, Sample, StopReason
from videoseek.wire import Message

pytestmark = pytest.mark.vllm

TOKEN = "a shared secret"
OPTIONS = {"max_model_len": 512, "dtype": "float32"}
SETTINGS = SamplingSettings(max_new_tokens_per_turn=24)
#: Sums in float32 round by the company of a row, which depends on times: 6e-6 as a rule, 1.1e-5 seen.
TOLERANCE = 2e-5
GROUP_SIZE = 8


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    """Crops have another frame rate than overviews."""
    world = tiny_world()
    return replace(world, environment=replace(world.environment, tool=VideoCrop(replace(LIMITS, crop_fps=1.0))))


@pytest.fixture(scope="module")
def model(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that remembers four trajectories with calls, failed calls and broken calls."""
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(memorised()[0].model, world.vocabulary.tokenizer, folder)
    return folder


def reread(model: Path) -> Policy:
    return Policy(load_model(model, torch.float32, torch.device("cpu"))).eval()


@pytest.fixture(scope="module")
def place(model: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalPlace:
    log = tmp_path_factory.mktemp("logs") / "worker.log"
    return LocalPlace(os.environ["VIDEOSEEK_VLLM_PYTHON"], model, OPTIONS, TOKEN, log=log)


@pytest.fixture(scope="module")
def worker(place: LocalPlace) -> RemoteWorker:
    return RemoteWorker(place, TOKEN, silence_seconds=300, max_restarts=2)


@pytest.fixture(scope="module")
def sampler(world: TinyWorld, worker: RemoteWorker) -> Iterator[VllmSampler]:
    sampler = VllmSampler([worker], world.vocabulary)
    yield sampler
    sampler.close()


@pytest.fixture
def policy(model: Path) -> Policy:
    return reread(model)


@pytest.fixture
def free_ports() -> list[int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return [one.getsockname()[1], other.getsockname()[1]]


#: Weights in a worker carry a number that no other load of these tests has.
versions = iter(range(1, 1000))


def rollout(
    world: TinyWorld,
    sampler: VllmSampler,
    policy: Policy,
    settings: SamplingSettings = SETTINGS,
    seed: int = 0,
    samples: Sequence[Sample] | None = None,
) -> list[Episode]:
    """Loads the policy's weights and samples episodes."""
    engine = RolloutEngine(world.environment, sampler, None, lambda: policy.model.state_dict().items())  # type: ignore[arg-type]
    samples = memorised()[1] if samples is None else samples
    groups = engine.rollout(samples, GROUP_SIZE, seed, settings, weight_version=next(versions))
    return [episode for group in groups for episode in group]


@torch.no_grad()
def gap(episodes: Sequence[Episode], policy: Policy, packing: PackSettings, temperature: float = 1.0) -> float:
    """Returns the largest difference between the log-probs of the episodes and the trainer's."""
    batch = pack_documents(episodes, packing)
    logprobs, _ = policy(batch, temperature=temperature)
    assert len(logprobs) == sum(sum(episode.loss_mask) for episode in episodes) > 300
    return float((logprobs - batch.rollout_logprobs).abs().max())


def test_logprobs_are_the_trainers_over_turns_clips_and_failed_calls(
    world: TinyWorld, sampler: VllmSampler, policy: Policy
) -> None:
    episodes = rollout(world, sampler, policy)
    assert max(len(episode.assistant_texts()) for episode in episodes) >= 3
    assert max(len(episode.clips) for episode in episodes) >= 3
    assert any(record.call and record.fault for episode in episodes for record in episode.calls)
    assert any(record.call is None for episode in episodes for record in episode.calls)
    assert len({clip.sample_fps for episode in episodes for clip in episode.clips}) >= 2
    assert min(min(episode.rollout_logprobs) for episode in episodes) < -2
    assert gap(episodes, policy, world.packing) < TOLERANCE
    # The same episodes under the other position rule: the check above can fail.
    assert gap(episodes, policy, replace(world.packing, position_rule="hf5")) > 0.1


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 0.9), (2.0, 1.0)])
def test_logprobs_are_of_the_whole_distribution_at_the_temperature(
    world: TinyWorld, sampler: VllmSampler, policy: Policy, temperature: float, top_p: float
) -> None:
    """At temperature 2 banned tokens hold some of the mass: they are never drawn, and count in the log-probs."""
    settings = replace(SETTINGS, temperature=temperature, top_p=top_p)
    episodes = rollout(world, sampler, policy, settings)
    assert gap(episodes, policy, world.packing, temperature) < TOLERANCE
    sampled = {
        token for episode in episodes for token, on in zip(episode.token_ids, episode.loss_mask, strict=True) if on
    }
    assert not sampled & set(world.vocabulary.banned)


def test_greedy_turns_are_the_trainers_best_tokens(world: TinyWorld, sampler: VllmSampler, policy: Policy) -> None:
    episodes = rollout(world, sampler, policy, replace(SETTINGS, temperature=0.0))
    assert {tuple(episode.token_ids) for episode in episodes[:GROUP_SIZE]} == {tuple(episodes[0].token_ids)}
    assert gap(episodes, policy, world.packing) < TOLERANCE
    assert min(min(episode.rollout_logprobs) for episode in episodes) > -1.5


def test_an_episode_depends_on_its_seed(world: TinyWorld, sampler: VllmSampler, policy: Policy) -> None:
    ids = [[e.token_ids for e in rollout(world, sampler, policy, seed=seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len({tuple(episode) for episode in ids[0][:GROUP_SIZE]}) > 3


@pytest.mark.parametrize("sync", ["tensors", "disk"])
def test_new_weights_arrive_whole(
    world: TinyWorld, sampler: VllmSampler, policy: Policy, model: Path, tmp_path: Path, sync: str
) -> None:
    """Every kind of weight moves: decoder, tied embedding and head, norms, vision tower and its projector."""
    sampler.weights_dir = tmp_path / "weights" if sync == "disk" else None
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * parameter.std().nan_to_num(1.0).clamp(min=0.1) * torch.randn_like(parameter)
    episodes = rollout(world, sampler, policy)
    assert gap(episodes, policy, world.packing) < TOLERANCE
    assert gap(episodes, reread(model), world.packing) > 0.1
    if sync == "disk":
        assert (tmp_path / "weights/model.safetensors").is_file()
    sampler.weights_dir = None


def test_adapters_are_merged_before_they_are_sent(world: TinyWorld, sampler: VllmSampler, policy: Policy) -> None:
    add_adapters(policy.model, LoRAConfig(rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.03)
    engine = RolloutEngine(world.environment, sampler, None, lambda: merged_weights(policy.model).items())  # type: ignore[arg-type]
    [*groups] = engine.rollout(memorised()[1], GROUP_SIZE, 0, SETTINGS, weight_version=next(versions))
    assert gap([episode for group in groups for episode in group], policy, world.packing) < TOLERANCE


def test_stale_weights_are_named(
    world: TinyWorld, sampler: VllmSampler, worker: RemoteWorker, policy: Policy, model: Path
) -> None:
    rollout(world, sampler, policy, samples=memorised()[1][3:])
    worker.load(Weights(5000, str(model))).result()
    builder = world.environment.open(memorised()[1][0])
    engine = RolloutEngine(world.environment, sampler, None)  # type: ignore[arg-type]
    engine._weight_version = 0
    with pytest.raises(WorkerError, match="weights of version 5000, not of version"):
        engine.rollout(memorised()[1], 1, 0, SETTINGS)
    assert builder.clips


def test_a_request_that_vllm_refuses_is_named_and_harmless(
    world: TinyWorld, sampler: VllmSampler, policy: Policy, place: LocalPlace
) -> None:
    pid = place.pid
    with pytest.raises(WorkerError, match="refuses a request: .*temperature must be in"):
        rollout(world, sampler, policy, replace(SETTINGS, temperature=9.0))
    assert rollout(world, sampler, policy) and place.pid == pid


def test_an_episode_out_of_time_is_cut(world: TinyWorld, sampler: VllmSampler, policy: Policy) -> None:
    episodes = rollout(world, sampler, policy, replace(SETTINGS, deadline_seconds=0.02, temperature=2.0))
    assert StopReason.DEADLINE in {episode.stop_reason for episode in episodes}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_lost_in_mid_batch_is_replaced_and_the_batch_is_the_same(
    world: TinyWorld,
    sampler: VllmSampler,
    worker: RemoteWorker,
    place: LocalPlace,
    policy: Policy,
    how: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = replace(SETTINGS, temperature=2.0)
    undisturbed = rollout(world, sampler, policy, settings)
    lost = place.pid
    assert lost is not None
    if how is signal.SIGSTOP:
        monkeypatch.setattr(worker.connection, "_silence_seconds", 3.0)
    num_asked, ask = itertools.count(1), worker.ask

    def ask_and_kill(*request: Any) -> Future[Message]:
        if next(num_asked) == len(undisturbed) + 2:  # two second turns are asked for, the other first turns run
            os.kill(lost, how)
        return ask(*request)

    monkeypatch.setattr(worker, "ask", ask_and_kill)
    disturbed = rollout(world, sampler, policy, settings)
    assert place.pid != lost
    assert "is lost" in caplog.text
    assert [episode.token_ids for episode in disturbed] == [episode.token_ids for episode in undisturbed]
    assert gap(disturbed, policy, world.packing, 2.0) < TOLERANCE
    assert not Path(f"/proc/{lost}").exists()


#: Run by vLLM's interpreter: the time axis of each frame rate, of 60 grids.
TIMES = """
import json, sys, types
package = types.ModuleType("videoseek")
package.__path__ = [sys.argv[1]]
sys.modules["videoseek"] = package
import torch
from videoseek.serving.vllm_engine import Qwen2_5_VLForConditionalGeneration as Model, grids_of
Model.iter_mm_grid_thw = grids_of
place = types.SimpleNamespace
model = Model.__new__(Model)
torch.nn.Module.__init__(model)
model.config = place(vision_config=place(spatial_merge_size=2, tokens_per_second=2))
rows = []
for rate in json.loads(sys.stdin.read()):
    data = {"video_grid_thw": place(data=torch.tensor([60, 2, 2]))}
    data["second_per_grid_ts"] = place(data=torch.tensor(2 / rate))
    feature = place(modality="video", data=data, mm_position=place(offset=0))
    rows.append(model.get_mrope_input_positions([0] * 60, [feature])[0][0].tolist())
print(json.dumps(rows))
"""


def test_every_frame_rate_has_the_trainers_positions() -> None:
    rates = [fps / 100 for fps in range(1, 400, 3)] + [30 / every for every in range(1, 60)]
    command = [os.environ["VIDEOSEEK_VLLM_PYTHON"], "-c", TIMES, str(ROOT / "src/videoseek")]
    run = subprocess.run(command, input=json.dumps(rates), stdout=subprocess.PIPE, text=True, check=True)
    got = json.loads(run.stdout.splitlines()[-1])
    seconds = tuple(map(float, range(120)))
    clips = [Clip("a.mp4", 0.0, 1.0, seconds, 28, 28, rate) for rate in rates]
    assert got == [clip_positions(clip, 0, TOKENS_PER_SECOND)[0].tolist() for clip in clips]
    exact = [(np.arange(60) * (float(np.float32(2 / rate)) * TOKENS_PER_SECOND)).astype(int).tolist() for rate in rates]
    assert got != exact, "float64 would give other positions"


ORPHAN = """
import os, sys
from pathlib import Path
from videoseek.serving.launch import LocalPlace
place = LocalPlace(os.environ["VIDEOSEEK_VLLM_PYTHON"], Path(sys.argv[1]), {}, "secret", log=Path(sys.argv[2]))
place.start()
print(place.pid, flush=True)
sys.stdin.read()
"""


def test_no_worker_outlives_its_trainer(model: Path, tmp_path: Path) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(model), str(tmp_path / "log")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert trainer.stdout is not None
    pid = int(trainer.stdout.readline())
    time.sleep(2)
    assert Path(f"/proc/{pid}").exists()
    trainer.kill()
    trainer.wait()
    give_up_at = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_episodes_spread_over_servers(world: TinyWorld, model: Path, policy: Policy, free_ports: list[int]) -> None:
    """Two servers by the command. A trainer with another token is refused."""
    command = [sys.executable, "-m", "videoseek.serve", f"model={model}"]
    options = "options=[" + ", ".join(f"{name}={value}" for name, value in OPTIONS.items()) + "]"
    python = f"vllm_python={os.environ['VIDEOSEEK_VLLM_PYTHON']}"
    secret = environment(VIDEOSEEK_WORKER_TOKEN=TOKEN)
    servers = [subprocess.Popen([*command, f"port={port}", options, python], env=secret) for port in free_ports]
    try:
        workers = [RemoteWorker(ServerPlace(f"127.0.0.1:{port}"), TOKEN, 300, 0) for port in free_ports]
        sampler = VllmSampler(workers, world.vocabulary)
        episodes = rollout(world, sampler, policy)
        assert gap(episodes, policy, world.packing) < TOLERANCE
        assert sampler.num_sequences == [len(episodes) // 2] * 2
        stranger = RemoteWorker(ServerPlace(f"127.0.0.1:{free_ports[0]}"), "wrong", 5, 0)
        with pytest.raises(WorkerError, match="refused the token"):
            stranger.load(Weights(0, str(model))).result()
        sampler.close()
    finally:
        for server in servers:
            server.send_signal(signal.SIGINT)
        codes = [server.wait() for server in servers]
    assert codes == [130, 130]
