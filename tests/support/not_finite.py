"""`videoseek.train` with a NaN in one loss: python not_finite.py STAGE STEP RANK KEY=VALUE ... (STEP counts from 0)."""

from __future__ import annotations

import sys

import torch

from videoseek.command import run_command
from videoseek.engine import BatchSums, TrainEngine
from videoseek.runtime import rank
from videoseek.stages.stage_run import StageRun
from videoseek.train import main

stage, step, chosen_rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
current = {"stage": "", "step": 0}
accumulate, check_finite = TrainEngine.accumulate, StageRun.check_finite


def poisoned(self: TrainEngine, rows, loss_of, filler) -> BatchSums:  # type: ignore[no-untyped-def]
    """Replaces the loss of the first row of the chosen step and rank; weights and data stay unchanged."""
    hit = (current["stage"], current["step"], chosen_rank) == (stage, step, rank())
    seen: list[object] = []

    def loss(row):  # type: ignore[no-untyped-def]
        value, metrics = loss_of(row)
        seen.append(row)
        return (value * torch.nan if hit and len(seen) == 1 else value), metrics

    return accumulate(self, rows, loss, filler)


def counted(self: StageRun, number: int, sums: BatchSums, grad_norm: float) -> dict[str, float]:
    current.update(stage=self.name, step=number + 1)
    return check_finite(self, number, sums, grad_norm)


def opened(cls, context, name, *rest):  # type: ignore[no-untyped-def]
    current.update(stage=name, step=0)
    return open_stage(context, name, *rest)


open_stage = StageRun.open
TrainEngine.accumulate = poisoned  # type: ignore[method-assign]
StageRun.check_finite = counted  # type: ignore[method-assign]
StageRun.open = classmethod(opened)  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[4:]))
