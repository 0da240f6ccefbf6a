"""The forward with specialised warps, on the machine of `hopper_machine`; on a GPU `run_on_gpu.py` tests it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_bench.testing import pack, random_inputs, random_mask, trajectory_mask
from support.hopper_machine import Descriptor, Machine, MachineError, Pointer, load_kernels
from videoseek_kernels import TokenMask, build_block_mask, tdam_attention
from videoseek_kernels.dispatch import HOPPER_TRITON, check_hopper_inputs

D = 16


def forward(
    kernels: dict,
    mask: TokenMask,
    heads: tuple[int, int],
    block_n: int,
    num_stages: int,
    seed: int,
    alternate: bool = False,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(O, L) by the machine and by the reference."""
    q, k, v, _ = (x.detach() for x in random_inputs(len(mask), heads, D, torch.float32, seed=seed))
    block_mask = build_block_mask(mask)
    out, lse = torch.full_like(q, math.nan), torch.full((heads[0], len(mask)), math.nan)
    flat = {name: x.flatten(1) for name, x in (("q", q), ("k", k), ("v", v), ("out", out))}
    rows = {"q": 64, "k": block_n, "v": block_n, "out": 64}
    lists = block_mask.by_query
    vectors = {
        "lse": lse.view(-1),
        "key_word": block_mask.key_word,
        "visible": block_mask.mask.visible,
        "indices": lists.indices,
        "offsets": lists.offsets,
        "num_full": lists.num_full,
        "order": lists.order,
    }
    num_tiles = len(lists.order)
    constants = {"HQ": heads[0], "HKV": heads[1], "D": D, "BM": 128, "BN": block_n}
    constants |= {"SUB_M": 1, "SUB_N": 128 // block_n, "STAGES": num_stages, "ALTERNATE": alternate}
    arguments = {name: Descriptor(x, (rows[name], D)) for name, x in flat.items()}
    arguments |= {name: Pointer(x) for name, x in vectors.items()}
    numbers = {"scale": D**-0.5, "num_tokens": len(mask), "num_tiles": num_tiles}
    Machine(seed).run(kernels["attn_fwd_kernel_hopper"], num_tiles * heads[0], arguments | numbers | constants)
    wanted = tdam_attention(q, k, v, mask, impl="reference", return_lse=True)
    return [out, lse.t() * math.log(2)], list(wanted)


@pytest.mark.parametrize(
    ("block_n", "num_stages", "heads", "alternate"),
    [(128, 2, (2, 1), True), (64, 4, (2, 2), False), (64, 2, (7, 1), True), (128, 1, (1, 1), False)],
)
def test_agrees_with_the_reference_whenever_copies_and_products_end(
    block_n: int, num_stages: int, heads: tuple[int, int], alternate: bool
) -> None:
    kernels = load_kernels()
    rng = np.random.default_rng(block_n + num_stages)
    masks = [pack(random_mask(rng, int(rng.integers(1, 200))) for _ in range(3)) for _ in range(6)]
    masks += [TokenMask.documents([length]) for length in (1, 63, 65, 128, 129)] + [trajectory_mask(700, 3)]
    for seed, mask in enumerate(masks):
        for got, wanted in zip(*forward(kernels, mask, heads, block_n, num_stages, seed, alternate), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_rows_without_a_tile_give_zero() -> None:
    hidden = TokenMask(*(torch.zeros(200, dtype=torch.int32) for _ in range(3)))
    (out, lse), _ = forward(load_kernels(), hidden, (1, 1), 128, 2, 0)
    assert not out.any() and bool((lse == -math.inf).all())


NEEDED = {
    "Q is awaited": ("mbarrier.wait(q_ready, 0)", "pass"),
    "K is awaited": ("mbarrier.wait(k_ready.index(i_stage), (i_turn // STAGES) & 1)", "pass"),
    "V is awaited": ("mbarrier.wait(v_ready.index(i_before), ((i_turn - 1) // STAGES) & 1)", "pass"),
    "the last V is awaited": ("mbarrier.wait(v_ready.index(i_turn % STAGES), (i_turn // STAGES) & 1)", "pass"),
    "a stage is overwritten when both are done": (
        "mbarrier.wait(free.index(i_stage), (i_turn // STAGES + 1) & 1)",
        "pass",
    ),
    "both release a K": (
        "mbarrier.init(k_free.index(i_stage), count=2)",
        "mbarrier.init(k_free.index(i_stage), count=1)",
    ),
    "both release a V": (
        "mbarrier.init(v_free.index(i_stage), count=2)",
        "mbarrier.init(v_free.index(i_stage), count=1)",
    ),
    "phases start before the first": ("(i_turn // STAGES + 1) & 1", "(i_turn // STAGES) & 1"),
    "bytes are announced": (
        "mbarrier.expect(ready.index(i_stage), x.block_type.nbytes)",
        "mbarrier.arrive(ready.index(i_stage))",
    ),
    "K is released after the product": (
        "b_s = warpgroup_mma_wait(1, [b_s])\n            mbarrier.arrive(k_free.index(i_stage))",
        "mbarrier.arrive(k_free.index(i_stage))\n            b_s = warpgroup_mma_wait(1, [b_s])",
    ),
    "V is released after the product": (
        "b_out = warpgroup_mma_wait(0, [b_out])\n            mbarrier.arrive(v_free.index(i_before))",
        "mbarrier.arrive(v_free.index(i_before))\n            b_out = warpgroup_mma_wait(0, [b_out])",
    ),
    "scores are awaited": ("warpgroup_mma_wait(1, [b_s])", "warpgroup_mma_wait(2, [b_s])"),
    "the output is awaited": (
        "b_out = warpgroup_mma_wait(0, [b_out])\n            mbarrier",
        "b_out = warpgroup_mma_wait(1, [b_out])\n            mbarrier",
    ),
    "stores are fenced": ("fence_async_shared()\n", "pass\n"),
    "stores are awaited": ("tma.store_wait(0)", "pass"),
    "what came before decays": (
        "b_out = b_out * gl.convert_layout(b_decay, gl.SliceLayout(1, OUTPUT))[:, None]",
        "pass",
    ),
    "V is that of the probabilities": (
        "load_stage(v, i_n_before, i_kv, i_turn - 1",
        "load_stage(v, i_n, i_kv, i_turn - 1",
    ),
    "partial tiles are masked": ("if i >= i_partial:", "if i > i_partial:"),
    "the first K is awaited": ("mbarrier.wait(k_ready.index(0), 0)", "pass"),
    "the first scores are awaited": (
        "b_s = warpgroup_mma_wait(0, [b_s])\n        mbarrier",
        "b_s = warpgroup_mma_wait(1, [b_s])\n        mbarrier",
    ),
    "the first K is released": ("mbarrier.arrive(k_free.index(0))", "pass"),
    "each K is released": ("mbarrier.arrive(k_free.index(i_stage))", "pass"),
    "each V is released": ("mbarrier.arrive(v_free.index(i_before))", "pass"),
    "the last output is awaited": (
        "b_out = warpgroup_mma_wait(0, [b_out])\n\n    m_sighted",
        "b_out = warpgroup_mma_wait(1, [b_out])\n\n    m_sighted",
    ),
    "Q is announced once": (
        "mbarrier.init(q_ready.index(i_half), count=1)",
        "mbarrier.init(q_ready.index(i_half), count=2)",
    ),
    "K is announced once": (
        "mbarrier.init(k_ready.index(i_stage), count=1)",
        "mbarrier.init(k_ready.index(i_stage), count=2)",
    ),
    "V is announced once": (
        "mbarrier.init(v_ready.index(i_stage), count=1)",
        "mbarrier.init(v_ready.index(i_stage), count=2)",
    ),
    "a turn ends the wait of the other group": ("mbarrier.arrive(other_turn)", "pass"),
    "the first group begins": ("(i_turn + i_half) & 1", "(i_turn + 1) & 1"),
}


@pytest.mark.parametrize("line", NEEDED)
def test_every_wait_is_needed(line: str) -> None:
    """The machine can tell: without any one of these lines, some order of events gives another result or none."""
    old, new = NEEDED[line]

    def broken(source: str) -> str:
        assert old in source
        return source.replace(old, new)

    kernels, mask = load_kernels(broken), trajectory_mask(900, 3)
    for seed in range(40):
        try:
            got, wanted = forward(kernels, mask, (1, 1), 128, 2, seed, alternate=True)
        except MachineError:
            return
        if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, wanted, strict=True)):
            return
    pytest.fail("no order of events shows that the line is missing")


@pytest.mark.parametrize(
    ("q", "blocks", "message"),
    [
        (torch.zeros(1, 1, 32, dtype=torch.float16), (128, 128), "head sizes"),
        (torch.zeros(1, 1, 64), (128, 128), "takes float16 or bfloat16, got torch.float32"),
        (torch.zeros(1, 1, 64, dtype=torch.float16), (64, 128), "whole 128 x 128 blocks, got \\(64, 128\\)"),
        (torch.zeros(1, 1, 64, dtype=torch.float16), (128, 128), "compute capability 9, q is on cpu"),
    ],
    ids=["head-size", "fp32", "blocks", "cpu"],
)
def test_refusals(q: torch.Tensor, blocks: tuple[int, int], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        check_hopper_inputs(q, blocks)


@pytest.mark.parametrize(("installed", "fits"), [("3.5.1", False), ("3.6.0", True), ("3.9.2", True), ("3.10.0", False)])
def test_triton_outside_the_range_is_refused(installed: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HOPPER_TRITON == ((3, 6), (3, 9))
    monkeypatch.setattr("videoseek_kernels.dispatch.version", lambda _: installed)
    q = torch.zeros(1, 1, 64, dtype=torch.float16)
    monkeypatch.setattr("videoseek_kernels.dispatch._is_hopper", lambda _: True)
    if fits:
        check_hopper_inputs(q, (128, 128))
    else:
        with pytest.raises(RuntimeError, match=f"Triton 3.6 to 3.9, {installed} is installed"):
            check_hopper_inputs(q, (128, 128))
