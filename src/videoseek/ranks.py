"""This process among those of its run, from the environment of torchrun, the deepspeed launcher or SLURM's wrapper."""

from __future__ import annotations

import os


def rank() -> int:
    """This process among all of the run (RANK of torchrun and the deepspeed launcher; 0 alone)."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))
