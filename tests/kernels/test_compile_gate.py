"""The off-line compile gate: what it compiles here is what a GPU would be given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_bench import compile_gate as gate

# A fresh interpreter: in this one Triton's kernels are decorated for interpretation.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
ENVIRONMENT["PYTHONPATH"] = str(Path(__file__).parents[2] / "kernels")
COMMAND = [sys.executable, "-m", "kernel_bench.compile_gate"]


def table(*arguments: str) -> list[str]:
    done = subprocess.run([*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "| sm_" in line]


def test_the_7b_shape_compiles_for_hopper_without_spills() -> None:
    rows = table("--quick")
    assert [row.split()[1] for row in rows] == ["forward", "dq", "dkdv", "dkdv", "forward,"]
    assert all(row.endswith("| ok |") for row in rows)
    assert rows[-1].split("|")[-3].strip() == "2"


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_every_shipped_configuration_compiles() -> None:
    rows = table()
    assert len(rows) > 40
    assert all(row.endswith("| ok |") for row in rows)


def test_the_gate_names_every_fault() -> None:
    case = next(gate.attention_cases(90, torch.bfloat16, 128, (2, 1)))
    good = gate.Report(case, registers=255, stack_bytes=0, spills=0, shared_bytes=1, matrix=1, bulk_loads=1)
    assert good.faults == []
    bad = gate.Report(case, registers=255, stack_bytes=8, spills=3, shared_bytes=1 << 20, matrix=0, bulk_loads=0)
    assert len(bad.faults) == 4
    assert "3 spills" in bad.faults[0] and "HGMMA" in bad.faults[2]


@pytest.mark.parametrize(
    ("order", "num_overlaps"),
    [("W0 66E W1 66E W0 W0 W0 66E W1 66E W0", 2), ("W0 66E W1 W0 66E W0", 0), ("W1 2E W0 64E", 0), ("", 0)],
)
def test_the_gate_counts_softmaxes_beside_a_product(order: str, num_overlaps: int) -> None:
    case = gate.Case("forward", 90, next(gate.attention_cases(90, torch.bfloat16, 128, (2, 1))).launch, overlaps=2)
    report = gate.Report(case, 168, 0, 0, 1, matrix=1, bulk_loads=1, order=order)
    assert report.num_overlaps == num_overlaps
    assert report.faults == ([] if num_overlaps == 2 else ["the softmax waits for P V"])
