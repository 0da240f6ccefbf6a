"""The parts of the benchmark that can be wrong without a GPU: parity, counting, tables, the training comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from videoseek_kernels import tdam_attention
from videoseek_kernels.benchmark import suite
from videoseek_kernels.benchmark.contestants import Contestant
from videoseek_kernels.benchmark.numerics import SliceShape, loss_gap
from videoseek_kernels.benchmark.parity import sampled_excess
from videoseek_kernels.testing import budget, excess, random_inputs, trajectory_mask


def test_parity_on_sampled_rows_passes_the_kernel_and_fails_a_wrong_mask() -> None:
    mask = trajectory_mask(200, 2)
    inputs = random_inputs(200, (2, 1), 32, torch.bfloat16)

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, mask, impl="composition")

    def wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, trajectory_mask(200, 2, "causal"), impl="composition")

    assert max(sampled_excess(ours, inputs, mask, 150).values()) <= 1
    assert min(sampled_excess(wrong, inputs, mask, 150).values()) > 1


def test_a_rival_that_cannot_run_is_named_and_ours_must_run() -> None:
    mask = trajectory_mask(64, 2)
    inputs = random_inputs(64, (2, 1), 32, torch.bfloat16)

    def fails(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel here\nsecond line")

    def works(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, mask, impl="composition")

    found, absent = [Contestant("composition", works), Contestant("rival", fails)], {}
    assert set(suite._gate(found, absent, inputs, mask)) == {"composition"}
    assert absent == {"rival": "no kernel here"} and len(found) == 1
    with pytest.raises(RuntimeError, match="no kernel"):
        suite._gate([Contestant("tier 1", fails)], {}, inputs, mask)
    with pytest.raises(AssertionError, match="of its budget"):
        suite._gate([Contestant("tier 1", lambda q, k, v: works(q, k, v) * 1.5)], {}, inputs, mask)


def test_budget_is_twice_the_plain_error() -> None:
    exact = torch.tensor([0.0, 1.0], dtype=torch.float64)
    plain = torch.tensor([0.0, 1.5], dtype=torch.float64)
    assert budget(exact, plain) == pytest.approx(1.0)
    assert excess(torch.tensor([0.0, 3.0]), exact, plain) == pytest.approx(2.0)
    assert not excess(torch.tensor([0.0, float("nan")]), exact, plain) <= 1


@pytest.mark.parametrize("name", suite.masks(1024))
def test_masks_of_the_protocol_are_counted_exactly(name: str) -> None:
    mask = suite.masks(2048)[name]
    assert suite.visible_pairs(mask) == int(mask.dense().sum())


def test_special_rows_are_few_under_spans_and_more_under_turns() -> None:
    causal, spans, turns = (suite.visible_pairs(suite.masks(4096)[name]) for name in ("causal", "spans", "turns"))
    assert causal == 4096 * 4097 // 2
    assert 0.98 * causal < spans < causal
    assert 0.8 * causal < turns < spans


def test_table_has_a_cell_for_every_column() -> None:
    text = suite.markdown([{"a": 1}, {"b": 2}])
    assert text == "| a | b |\n|---|---|\n| 1 |  |\n|  | 2 |"


def test_training_does_not_notice_the_implementation() -> None:
    small = SliceShape(128, 256, (4, 2), num_layers=2, num_tokens=64, num_steps=3, vocabulary=64)
    gaps = loss_gap(small, "composition", "cpu", torch.float32)
    assert gaps["loss"] < 1e-5 and gaps["gradient norm"] < 1e-4


def test_results_are_written_and_never_overwritten(tmp_path: Path) -> None:
    """The GPU script's bookkeeping, in a copy of its folder."""
    source = Path(__file__).parents[2] / "kernels"
    script, readme = tmp_path / "run_on_gpu.py", tmp_path / "README.md"
    script.write_text((source / "run_on_gpu.py").read_text())
    readme.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    results = {"environment": {"date": "2026-01-02", "device": "A B"}, "steps": {"decode": [{"ms": 1.5}]}}
    code = (
        f"import pathlib, run_on_gpu as r\nfor _ in 'ab': r.write_results({results}, pathlib.Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PYTHONPATH": f"{tmp_path}:{source}"})
    written = sorted(path.name for path in tmp_path.glob("*.json"))
    assert written == ["2026-01-02-A-B-2.json", "2026-01-02-A-B.json"]
    assert json.loads((tmp_path / written[0]).read_text()) == results
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "| 1.5 |" in text
