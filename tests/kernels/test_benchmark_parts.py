"""The parts of the benchmark that can be wrong without a GPU: parity, counting, tables, the training comparison."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from kernel_bench import correctness, numerics, suite
from kernel_bench.contestants import Contestant
from kernel_bench.cudnn_flex import interval_ends
from kernel_bench.numerics import BOUND, SliceShape, compare_training, recall_task
from kernel_bench.parity import sampled_excess
from kernel_bench.testing import (
    FLOOR,
    budget,
    excess,
    gradients,
    random_inputs,
    random_mask,
    relative_error,
    trajectory_mask,
)
from videoseek_kernels import TokenMask, build_block_mask, tdam_attention
from videoseek_kernels.impl.triton import operator as triton_operator


def test_parity_on_sampled_rows_passes_the_kernel_and_fails_a_wrong_mask() -> None:
    mask = trajectory_mask(200, 2)
    inputs = random_inputs(200, (2, 1), 32, torch.bfloat16)

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, mask, impl="dense")

    def wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, trajectory_mask(200, 2, "causal"), impl="dense")

    assert max(sampled_excess(ours, inputs, mask, 150).values()) <= 1
    assert min(sampled_excess(wrong, inputs, mask, 150).values()) > 1


def test_a_rival_that_cannot_run_is_named_and_ours_must_run() -> None:
    mask = trajectory_mask(64, 2)
    inputs = random_inputs(64, (2, 1), 32, torch.bfloat16)

    class Absurd(Exception):
        pass

    def fails(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise Absurd("no kernel here\nsecond line")

    def works(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, mask, impl="dense")

    def wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return works(q, k, v) * 1.5

    def not_a_number(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return works(q, k, v) * float("nan")

    found = [Contestant("SDPA segments", works), Contestant("rival", fails), Contestant("wrong rival", wrong)]
    absent: dict[str, str] = {}
    errors = suite._gate(found, absent, inputs, mask)
    assert absent == {"rival": "Absurd: no kernel here"} and errors["SDPA segments"] <= 1 < errors["wrong rival"]
    assert [contestant.name for contestant in found] == ["SDPA segments", "wrong rival"]
    for run, why in ((fails, "no kernel here"), (wrong, "of its budget"), (not_a_number, "error is inf")):
        found, absent = [Contestant("Triton", run)], {}
        suite._gate(found, absent, inputs, mask)
        assert not found and why in absent["Triton"]
        assert "failed" in suite._reason("Triton", absent["Triton"])
    assert "not run" in suite._reason("rival", "why")


def test_a_rival_without_a_backward_pass_is_gated_without_gradients() -> None:
    inputs = random_inputs(64, (2, 1), 32, torch.bfloat16)

    def forward_only(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return tdam_attention(q, k, v, TokenMask.documents([64]), impl="dense")

    found, absent = [Contestant("FA3 causal", forward_only, causal=True, backward=False)], {}
    errors = suite._gate(found, absent, inputs, trajectory_mask(64, 2))
    assert not absent and errors["FA3 causal"] <= 1


def test_budget_is_twice_the_plain_error_and_a_floor() -> None:
    exact = torch.tensor([0.0, 1.0], dtype=torch.float64)
    plain = torch.tensor([0.0, 1.5], dtype=torch.float64)
    assert budget(exact, plain) == pytest.approx(1.0 + FLOOR)
    assert budget(exact, exact) == pytest.approx(FLOOR)
    assert excess(torch.tensor([0.0, 3.0]), exact, plain) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("plain", [0.0, 0.5], ids=["no-error-allowed", "some"])
def test_nan_fails_the_budget(plain: float) -> None:
    exact, wrong = torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, float("nan"), 0.0])
    assert excess(wrong, exact, torch.full((3,), plain)) == math.inf
    assert relative_error(wrong, torch.ones(3)) == math.inf


def test_a_case_whose_gradients_are_nan_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's cases, on the CPU with the reference in the kernel's place: as it is, and with NaN for dq."""
    mask = trajectory_mask(65, 2)
    monkeypatch.setattr(correctness, "check", partial(correctness.check, device="cpu"))
    assert "failed" not in correctness.over_budget("good", mask, torch.bfloat16, 32, (2, 1), "reference")

    def spoilt(*arguments: torch.Tensor) -> list[torch.Tensor]:
        out, dq, dk, dv = gradients(*arguments)
        return [out, dq * float("nan"), dk, dv]

    monkeypatch.setattr(correctness, "gradients", spoilt)
    row = correctness.over_budget("bad", mask, torch.bfloat16, 32, (2, 1), "reference")
    assert "failed" in row and row["dq"] == math.inf


def test_poisoned_memory_is_nan_and_ends() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with correctness.poisoned_memory():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.ones(2).new_empty(5).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_the_case_of_one_part_has_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the multiprocessors of a Hopper GPU; the other cases have several."""
    monkeypatch.setattr(triton_operator, "num_processors", lambda _: 132)
    whole = build_block_mask(trajectory_mask(2048, 3))
    assert len(triton_operator.empty_parts(torch.zeros(2048, 32, 128), whole)[0]) == 1
    assert len(triton_operator.empty_parts(torch.zeros(2048, 2, 128), whole)[0]) > 1
    sweep = build_block_mask(trajectory_mask(16384, 4))
    assert triton_operator._num_splits(torch.zeros(16384, 4, 1), sweep) == 1


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


def test_training_tells_a_wrong_mask_and_not_the_implementation() -> None:
    small = SliceShape(128, 128, (4, 2), num_layers=1, num_tokens=192, num_steps=8, num_addresses=8)
    rows = list(compare_training(small, "cpu", torch.float32, kernel="reference"))
    assert [row["against SDPA, dense mask"] for row in rows] == [
        *("reference", "SDPA segments", "eager", "SDPA, plain causal mask")
    ]
    assert not any("failed" in row for row in rows)
    gaps = [row["gap of loss / first loss"] for row in rows]
    assert max(gaps[:3]) < 1e-5 and gaps[3] > 2 * BOUND


def test_training_in_half_precision_keeps_the_bound() -> None:
    small = SliceShape(128, 128, (4, 2), num_layers=1, num_tokens=192, num_steps=8, num_addresses=8)
    rows = list(compare_training(small, "cpu", torch.bfloat16, kernel="reference"))
    assert not any("failed" in row for row in rows)


def test_training_with_one_mask_for_all_proves_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SliceShape(64, 64, (2, 1), num_layers=1, num_tokens=96, num_steps=2, num_addresses=4)
    causal = TokenMask.documents([96])
    monkeypatch.setattr(numerics, "trajectory_mask", lambda *_: causal)
    monkeypatch.setattr(numerics, "recall_task", lambda *_: recall_task(trajectory_mask(96, 3), 4))
    rows = list(compare_training(small, "cpu", torch.float32, kernel="reference"))
    assert ["failed" in row for row in rows] == [False, False, False, True]


def test_a_restricted_row_must_tell_what_only_its_mask_shows() -> None:
    mask = trajectory_mask(600, 3)
    address, content, label = recall_task(mask, 8)
    seen, asked = mask.dense(), label >= 0
    assert asked.any() and bool((content[asked] == 24).all())
    for row in asked.nonzero().flatten().tolist():
        same = seen[row] & (address == address[row])
        classes = {int(content[key]) // 8 for key in same.nonzero().flatten() if content[key] < 24} - {0}
        assert classes <= {int(label[row]) // 8}, f"row {row} sees both classes of video"


def test_intervals_tell_the_same_mask() -> None:
    rng = np.random.default_rng(5)
    for case in range(40):
        mask = random_mask(rng, int(rng.integers(1, 70)))
        (ends,) = interval_ends(mask)
        assert len(ends) % 2 == 1 and bool((ends[1:] >= ends[:-1]).all()), f"case {case}"
        # A key is seen where an odd number of ends is still to come.
        seen = (ends[:, :, None] > torch.arange(len(mask))).sum(0) % 2 == 1
        assert torch.equal(seen, mask.dense()), f"case {case}"
