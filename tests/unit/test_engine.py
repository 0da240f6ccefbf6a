from __future__ import annotations

import deepspeed
import pytest
import torch
import torch.distributed as dist

from videoseek.engine import start_distributed


def test_a_rank_computes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen before the group is joined: NCCL binds a rank to the device that is current then."""
    done: list[object] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda dist_backend, verbose: done.append(dist_backend))
    monkeypatch.setenv("RANK", "1")
    start_distributed(torch.device("cuda", 1))
    assert done == [torch.device("cuda", 1), "nccl"]
    start_distributed(torch.device("cpu"))
    assert done[2:] == ["gloo"]
