"""`pytest --benchmark`: what the kernels are worth on this machine, parity first.

Without a GPU one table says what a CPU can show, and one line what a GPU would add.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernel_bench import makespan, suite
from kernel_bench.testing import gradients, random_inputs
from videoseek_kernels import build_block_mask, tdam_attention
from videoseek_kernels.dense import masked_sdpa

SHAPE = suite.Shape((28, 4), 128, 16384)
RIVALS = (
    *("Triton", "SDPA segments", "SDPA segments, cuDNN", "cuDNN causal", "FA2 causal (torch)"),
    *("FlexAttention", "FlexAttention FLASH", "varlen FA2 (torch)", "cuDNN-frontend flex"),
    *("FA3 causal", "FA4 causal", "SDPA dense mask", "eager 4D mask"),
)
KERNELS = Path(__file__).parents[2] / "kernels"


def show(title: str, rows: list[dict], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / f"{title.replace(' ', '-')}.json"
    path.write_text(json.dumps(rows, indent=1))
    with capsys.disabled():
        print(f"\n\n{title} (also in {path})\n{suite.markdown(rows)}")


@pytest.mark.benchmark
@pytest.mark.timeout(900)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU shows more")
def test_what_a_cpu_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*plan_builders(), *fill_of_the_gpu(), *dense_path_over_a_dense_mask(), *machine_code()]
    show("kernels without a GPU", rows, tmp_path, capsys)
    with capsys.disabled():
        print(f"A GPU would add times of {len(RIVALS)} contestants on {len(suite.masks(1024))} masks: run_on_gpu.py")
    assert {row["what"].split(":")[0] for row in rows} == {
        "block mask",
        "makespan over ideal",
        "dense path",
        "machine code",
    }


def plan_builders() -> Iterator[dict]:
    for row in suite.time_builders([16384, 65536], "cpu"):
        yield {"what": f"block mask: {row['tokens']} tokens", "value": f"{row['numpy ms']} ms, {row['KB']} KB"}
        assert row["numpy ms"] < 50 and row["KB"] < 2000


def fill_of_the_gpu() -> Iterator[dict]:
    for name, mask in suite.masks(16384).items():
        block_mask = build_block_mask(mask)
        shares = (makespan.makespan(stage, block_mask, SHAPE.heads) for stage in ("forward", "dq", "dkdv"))
        told = ", ".join(
            f"{stage} {share:.3f}" for stage, share in zip(("forward", "dq", "dk/dv"), shares, strict=True)
        )
        yield {"what": f"makespan over ideal: {name} T16384, 132 SMs", "value": told}


def dense_path_over_a_dense_mask(num_tokens: int = 2048) -> Iterator[dict]:
    """Forward and backward of `impl="auto"` on this CPU against SDPA with a dense mask, in turns.

    The clock is the process's own time, which other work on the machine does not change.
    """
    for name in ("causal", "packed 1:1:2:4", "group of 8"):
        mask = suite.masks(num_tokens)[name]
        block_mask, seen = build_block_mask(mask), mask.dense()[None, None]
        q, k, v, upstream = random_inputs(num_tokens, (4, 2), 64, torch.float32)

        def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor = seen) -> torch.Tensor:
            return masked_sdpa(*(x.transpose(0, 1)[None] for x in (q, k, v)), seen)[0].transpose(0, 1)

        def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object = block_mask) -> torch.Tensor:
            return tdam_attention(q, k, v, mask)

        best = {run: float("inf") for run in (dense, ours)}
        for _ in range(4):
            for run in best:
                start = time.process_time()
                gradients(run(q, k, v), (q, k, v), upstream)
                best[run] = min(best[run], time.process_time() - start)
        ratio = best[dense] / best[ours]
        yield {
            "what": f"dense path: {name} T{num_tokens} on this CPU",
            "value": f"{ratio:.2f} x SDPA with a dense mask",
        }


def machine_code() -> Iterator[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernel_bench.compile_gate", "--quick"]
    done = subprocess.run(
        command, env=environment | {"PYTHONPATH": str(KERNELS)}, capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        if "| sm_" in line:
            name, _, tile, _, registers, spills, shared, _, _, overlaps, verdict = line.strip("| ").split(" | ")
            told = f"{registers} registers, {spills} spills, {shared} KB, {overlaps} loops beside P V: {verdict}"
            yield {"what": f"machine code: {name} {tile}", "value": told}


@pytest.mark.benchmark
@pytest.mark.gpu
def test_plan_builders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(suite.time_builders([8192, 16384, 32768, 65536], "cuda"))
    show("block-mask builders", rows, tmp_path, capsys)


@pytest.mark.benchmark
@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", suite.masks(1024))
def test_attention(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(suite.compare(SHAPE, name, suite.masks(SHAPE.num_tokens)[name]))
    show(f"attention {SHAPE} {name}", rows, tmp_path, capsys)
    assert {row["contestant"] for row in rows} >= set(RIVALS)
    assert not [row for row in rows if "failed" in row]
