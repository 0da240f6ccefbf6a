from __future__ import annotations

import gc

import deepspeed
import pytest
import torch
import torch.distributed as dist
from support.tiny_world import answer, tiny_world

from videoseek.batches.packing import pack_documents
from videoseek.distributed import free_memory
from videoseek.engine import OptimizerSettings, TrainEngine, start_distributed


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


def bytes_alive() -> int:
    """Of all tensors that anything refers to; of memory that several share, once."""
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_released_engine_leaves_no_memory_behind(stage: int, dtype: torch.dtype) -> None:
    world = tiny_world()
    batch = pack_documents([world.replay(0, answer("A"))], world.packing)
    free_memory()
    before = bytes_alive()
    policy = world.policy().to(dtype).train()
    model_bytes = sum(parameter.nbytes for parameter in policy.parameters())
    engine = TrainEngine(policy, OptimizerSettings(), stage=stage)
    engine.backward(-engine(batch)[0].mean(), last=True)
    assert engine.step(1e-3) > 0
    assert bytes_alive() - before > 2.5 * model_bytes
    engine.release()
    del engine, policy
    free_memory()
    assert bytes_alive() - before < 0.1 * model_bytes
