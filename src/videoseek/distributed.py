"""The ranks of a run: device and seeds of each rank, collectives, and the division of a global batch."""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from videoseek.config import UsageError
from videoseek.runtime import local_rank, rank, say, world_size

#: A network file system may show a new file of another machine this late.
_MOST_SECONDS_UNSEEN = 10.0
PACKAGES = ("torch", "transformers", "deepspeed", "triton", "av", "numpy", "omegaconf", "safetensors", "tokenizers")


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_device(name: str) -> torch.device:
    """Returns the device of a `device` key. `auto` is this rank's GPU, or the CPU on a machine without a GPU.

    Raises UsageError for `cuda` on a machine without a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda, but torch sees no GPU; use device=cpu or device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def choose_accelerator(name: str) -> None:
    """Sets DeepSpeed's accelerator before DeepSpeed's import. Otherwise DeepSpeed warns and guesses a CPU."""
    if choose_device(name).type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def choose_threads(device: torch.device, resumed_env: Path | None) -> None:
    """Says the number of CPU threads. A resumed run takes the number from its env.json: `resumed_env`.

    Another number of threads changes the last bits of sums. OMP_NUM_THREADS of the user wins. Raises UsageError for an
    env.json without a number of threads.
    """
    reason = "one for each core (OMP_NUM_THREADS sets another number)"
    if "OMP_NUM_THREADS" in os.environ:
        reason = "as OMP_NUM_THREADS sets"
    elif resumed_env is not None and resumed_env.is_file():
        try:
            torch.set_num_threads(json.loads(resumed_env.read_bytes())["threads"])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UsageError(f"{resumed_env} has no number of threads; OMP_NUM_THREADS must set it") from error
        reason = "as the resumed run had"
    if device.type == "cpu":
        say(f"  CPU threads: {torch.get_num_threads()}, {reason}")


def free_memory() -> None:
    """Frees reference cycles (model classes are full of cycles) and then torch's unused GPU blocks."""
    gc.collect()
    torch.cuda.empty_cache()


def choose_dtype(name: str) -> torch.dtype:
    """Returns the torch type of a `dtype` key."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def environment_report() -> dict[str, Any]:
    """Returns versions, machine, devices, revision of the source tree and command line, for env.json."""
    versions: dict[str, str | None] = {}
    for package in ("videoseek", *PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "num_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "world_size": world_size(),
        "revision": _source_revision(),
        "command": list(sys.argv),
    }


def _source_revision() -> str | None:
    """Returns the commit of the source tree, with `-dirty` for changed files, or None outside a source tree."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


T = TypeVar("T")


def background_group() -> dist.ProcessGroup | None:
    """Returns a group of all ranks for a background thread, apart from training's collectives. One rank needs none."""
    return dist.new_group(backend="gloo") if world_size() > 1 else None


def all_sum(values: Sequence[float], device: torch.device, group: dist.ProcessGroup | None = None) -> list[float]:
    """Returns the element-wise sum over ranks, by the collectives of `group` (None: of training)."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.all_reduce(total, group=group)
    return total.tolist()


def all_max(value: int, device: torch.device) -> int:
    """Returns the maximum over ranks."""
    most = torch.tensor(value, device=device)
    if world_size() > 1:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def gather(items: list[T]) -> list[T]:
    """Returns the joined lists of all ranks, in the order of `rank_indices`."""
    if world_size() == 1:
        return items
    shares: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(shares, items)
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


def split_minibatches(items: Sequence[T], draws: Sequence[int], num_minibatches: int) -> list[list[T]]:
    """Returns this rank's items in each of `num_minibatches` minibatches of all ranks' items.

    `draws` orders the items of all ranks. A minibatch is a stretch of the order: its items are the same for any number
    of ranks. Sizes of minibatches differ by at most 1.
    """
    order = sorted(gather([(draw, rank(), index) for index, draw in enumerate(draws)]))
    cuts = [len(order) * number // num_minibatches for number in range(num_minibatches + 1)]
    return [[items[i] for _, owner, i in order[a:b] if owner == rank()] for a, b in itertools.pairwise(cuts)]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def check_shared(folder: Path) -> None:
    """Raises UsageError on all ranks unless all ranks see one folder: every rank reads the files of other ranks."""
    if world_size() == 1:
        return
    (name,) = gather([f".seen-by-all-{uuid.uuid4().hex}"] if rank() == 0 else [])
    if rank() == 0:
        (folder / name).touch()
    barrier()
    until = time.monotonic() + _MOST_SECONDS_UNSEEN
    while not (folder / name).exists() and time.monotonic() < until:
        time.sleep(0.1)
    blind = gather([] if (folder / name).exists() else [f"rank {rank()} on {platform.node()}"])
    if rank() == 0:
        (folder / name).unlink()
    if blind:
        raise UsageError(
            f"output_dir {folder} must be one folder for all ranks, but {blind[0]} does not see the files of rank 0; "
            "name a folder on a file system that all nodes share"
        )


def rank_indices(count: int, *, contiguous: bool = False) -> range:
    """Returns this rank's indices of a global batch: every world_size-th, or `contiguous` ones.

    Numbers of indices differ by at most 1 between ranks.
    """
    if contiguous:
        return range(count * rank() // world_size(), count * (rank() + 1) // world_size())
    return range(rank(), count, world_size())
