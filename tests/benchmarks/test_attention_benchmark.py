"""`pytest --benchmark`: what the kernels are worth on this machine, parity first.

Without a GPU the block-mask builders are timed, and every row that could not run is named.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kernel_bench import suite

SHAPE = suite.Shape((28, 4), 128, 16384)
RIVALS = (
    *("Triton", "SDPA segments", "SDPA segments, cuDNN", "cuDNN causal", "FA2 causal (torch)"),
    *("FlexAttention", "cuDNN-frontend flex", "FA3 causal", "FA4 causal", "SDPA dense mask", "eager 4D mask"),
)


def show(title: str, rows: list[dict], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / f"{title.replace(' ', '-')}.json"
    path.write_text(json.dumps(rows, indent=1))
    with capsys.disabled():
        print(f"\n\n{title} (also in {path})\n{suite.markdown(rows)}")


@pytest.mark.benchmark
def test_plan_builders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = list(suite.time_builders([8192, 16384, 32768, 65536], device))
    show("block-mask builders", rows, tmp_path, capsys)
    assert rows[-1]["numpy ms"] < 50
    assert rows[-1]["KB"] < 2000


@pytest.mark.benchmark
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", suite.masks(1024))
def test_attention(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        rows = [{"contestant": rival, "not run": "no CUDA device"} for rival in RIVALS]
        show(f"attention {name}", rows, tmp_path, capsys)
        pytest.skip(f"no CUDA device: {len(rows)} rows of the benchmark not run")
    rows = list(suite.compare(SHAPE, name, suite.masks(SHAPE.num_tokens)[name]))
    show(f"attention {SHAPE} {name}", rows, tmp_path, capsys)
    assert {row["contestant"] for row in rows} >= set(RIVALS)
    assert not [row for row in rows if "failed" in row]
