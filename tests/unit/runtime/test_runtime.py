"""Ranks, seeds, devices, and the report of the environment."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from videoseek import distributed, runtime
from videoseek.config import UsageError
from videoseek.files import write_json


def test_seed_repeats_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        distributed.seed_everything(2**40 + 3)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (runtime.rank(), runtime.local_rank(), runtime.world_size()) == (0, 0, 1)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert (runtime.rank(), runtime.local_rank(), runtime.world_size()) == (9, 1, 16)


@pytest.mark.parametrize(
    ("name", "has_gpu", "device"),
    [("cpu", True, "cpu"), ("auto", False, "cpu"), ("auto", True, "cuda:3"), ("cuda", True, "cuda:3")],
)
def test_device_matches_the_name(monkeypatch: pytest.MonkeyPatch, name: str, has_gpu: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.choose_device(name) == torch.device(device)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device=cuda, but torch sees no GPU"):
        distributed.choose_device("cuda")


def test_dtype_choice() -> None:
    assert distributed.choose_dtype("bfloat16") is torch.bfloat16
    assert distributed.choose_dtype("float32") is torch.float32


@pytest.mark.parametrize("content", ["", "{}", '{"threads": 0}', '{"threads": "x"}', "[]"])
def test_env_json_without_a_number_of_threads_is_refused(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "env.json").write_text(content)
    with pytest.raises(UsageError, match="env.json has no number of threads; OMP_NUM_THREADS must set it"):
        distributed.choose_threads(torch.device("cpu"), tmp_path / "env.json")


def test_environment_report_is_json(tmp_path: Path) -> None:
    report = distributed.environment_report()
    write_json(tmp_path / "env.json", report)
    assert report["versions"]["torch"] == torch.__version__
    assert report["num_cpus"] >= 1 and report["memory_gib"] > 0
    assert report["revision"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", report["revision"])
