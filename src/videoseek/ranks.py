"""Ranks of this process, from the environment that torchrun, the deepspeed launcher or SLURM's wrapper sets."""

from __future__ import annotations

import os


def rank() -> int:
    """Returns the index of this process in the run, 0 if it is the only one."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns the index of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Returns the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))
