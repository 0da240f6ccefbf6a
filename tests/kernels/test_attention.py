"""The operator in all its implementations, against the dense reference."""

from __future__ import annotations

import logging
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from kernel_bench.testing import (
    eager_attention,
    excess,
    gradients,
    pack,
    random_inputs,
    random_mask,
    trajectory_mask,
)
from torch.utils.flop_counter import FlopCounterMode
from videoseek_kernels import TokenMask, build_block_mask, tdam_attention
from videoseek_kernels.block_mask import BlockMask
from videoseek_kernels.dense import find_segments, padded_attention, segmented_attention
from videoseek_kernels.dispatch import choose_on_gpu, log_choice
from videoseek_kernels.impl.triton import operator as triton_operator
from videoseek_kernels.impl.triton.launch import TileConfig

NUM_MASKS = 2000


def run(impl: str, inputs: list[torch.Tensor], mask: TokenMask | BlockMask) -> list[torch.Tensor]:
    """[O, dq, dk, dv] by an implementation, or by one of the two cuts of the dense path, whatever the device."""
    q, k, v, upstream = inputs
    if impl in ("padded", "segments"):
        block_mask = mask if isinstance(mask, BlockMask) else build_block_mask(mask)
        if impl == "padded":
            return gradients(padded_attention(q, k, v, block_mask.documents), (q, k, v), upstream)
        return gradients(segmented_attention(q, k, v, block_mask.segments), (q, k, v), upstream)
    return gradients(tdam_attention(q, k, v, mask, impl=impl), (q, k, v), upstream)


def check_budget(got: list[torch.Tensor], inputs: list[torch.Tensor], mask: TokenMask) -> None:
    """Every result within the budget: twice the error of the eager maths in the same type, and a floor."""
    exact = run("reference", [x.detach().double().requires_grad_() for x in inputs], mask)
    plain = eager(inputs, mask)
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), got, exact, plain, strict=True):
        assert excess(a, b, c) <= 1, f"{name}: {excess(a, b, c):.2f} of the error budget"


def eager(inputs: list[torch.Tensor], mask: TokenMask) -> list[torch.Tensor]:
    q, k, v, upstream = inputs
    return gradients(eager_attention(q, k, v, mask.dense(), q.shape[-1] ** -0.5), (q, k, v), upstream)


@pytest.mark.parametrize("cut", ["padded", "segments"])
def test_fuzz_dense_is_exact(cut: str) -> None:
    rng = np.random.default_rng(7)
    for case in range(NUM_MASKS // 8):
        mask = pack(random_mask(rng, int(rng.choice([1, 6, 9, 12]))) for _ in range(8))
        inputs = [x.detach().double().requires_grad_() for x in random_inputs(len(mask), (2, 1), 8, torch.float32)]
        for got, wanted in zip(run(cut, inputs, mask), run("reference", inputs, mask), strict=True):
            error = (got - wanted).abs().max().item()
            assert error < 1e-12, f"case {case}: off by {error:.1e}"


def test_fuzz_kernel(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are packed many to a row, which tests each of them and tiles that straddle them."""
    monkeypatch.setattr(triton_operator, "tile_config", lambda *_: TileConfig(64, 64, 4, 2))
    rng = np.random.default_rng(11)
    for case in range(NUM_MASKS // 40):
        mask = pack(random_mask(rng, int(rng.choice([1, 3, 9, 14, 17]))) for _ in range(40)).to(device)
        block_m, block_n = ((64, 64), (128, 64), (64, 128), (128, 128))[case % 4]
        inputs = random_inputs(len(mask), (1, 1), 32, torch.float32, device, case)
        got, wanted = (run(impl, inputs, build_block_mask(mask, block_m, block_n)) for impl in ("triton", "reference"))
        for name, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
            error = (a - b).abs().max().item()
            assert error < 1e-5, f"case {case}: {name} off by {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("num_tokens", "heads", "head_dim"),
    [(1, (2, 2), 32), (63, (7, 1), 32), (65, (2, 1), 64), (111, (4, 2), 32), (129, (2, 1), 128), (300, (1, 1), 64)],
    ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else str(x),
)
def test_kernel_keeps_the_budget(
    num_tokens: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, device: str
) -> None:
    mask = trajectory_mask(num_tokens, 3).to(device)
    inputs = random_inputs(num_tokens, heads, head_dim, dtype, device)
    check_budget(run("triton", inputs, build_block_mask(mask)), inputs, mask)


@pytest.mark.parametrize("tma", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("splits", [1, 3])
def test_every_route_of_the_kernel(splits: int, tma: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles smaller than the block mask's blocks, tensor descriptors, and dk/dv cut into parts."""
    tile = TileConfig(32, 16, 4, 2, tma)
    monkeypatch.setattr(triton_operator, "tile_config", lambda *_: tile)
    monkeypatch.setattr(triton_operator, "_num_splits", lambda *_: splits)
    mask = pack(random_mask(np.random.default_rng(seed), 50) for seed in range(3)).to(device)
    inputs = random_inputs(150, (3, 1), 32, torch.float32, device)
    check_budget(run("triton", inputs, build_block_mask(mask, 64, 64)), inputs, mask)


@pytest.mark.parametrize("impl", ["triton", "padded", "segments", "reference"])
def test_blind_rows_give_zero_and_finite_gradients(impl: str, device: str) -> None:
    visible = torch.full((40,), -1, dtype=torch.int32)
    visible[[0, 7, 8, 39]] = 0
    causal = TokenMask.documents([40])
    inputs = random_inputs(40, (2, 1), 32, torch.float32, device)
    out, dq, dk, dv = run(impl, inputs, TokenMask(causal.end, causal.key_class, visible).to(device))
    assert not out[[0, 7, 8, 39]].any() and not dq[[0, 7, 8, 39]].any()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))
    assert not dk[39].any() and not dv[39].any()


@pytest.mark.parametrize("impl", ["triton", "padded", "segments"])
def test_hidden_keys_do_not_leak(impl: str, device: str) -> None:
    """NaN where a whole tile is hidden, huge values where a tile is shared with visible keys."""
    key_class = torch.ones(96, dtype=torch.int32)
    key_class[16:48] = 2
    key_class[70] = 2
    visible = torch.full((96,), -1, dtype=torch.int32)
    visible[48:] = 1
    mask = TokenMask(torch.full((96,), 96, dtype=torch.int32), key_class, visible).to(device)
    q, k, v, upstream = random_inputs(96, (2, 1), 32, torch.float32, device)
    upstream[16:48] = 0
    wanted = run("reference", [q, k, v, upstream], mask)
    with torch.no_grad():
        k[70], v[70] = 1e4, 1e4
        k[16:48], v[16:48] = (float("nan"), float("nan")) if impl == "triton" else (1e4, 1e4)
    got = run(impl, [q, k, v, upstream], build_block_mask(mask, 16, 16))
    torch.testing.assert_close(got[0][48:], wanted[0][48:], rtol=0, atol=1e-5)
    torch.testing.assert_close(got[1][48:], wanted[1][48:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1e-4, 1e2])
def test_extreme_scores(size: float, device: str) -> None:
    """Scores up to +-1e4 neither overflow nor lose the largest key."""
    mask = TokenMask.documents([20, 45]).to(device)
    q, k, v, upstream = random_inputs(65, (2, 1), 32, torch.float32, device)
    inputs = [(q * size).detach().requires_grad_(), (k * size).detach().requires_grad_(), v, upstream]
    # float32 holds a score of 1e4 to 1e-3, so its exponential too; a gradient is that times the size of q and k.
    relative = max(1e-4, size**2 * torch.finfo(torch.float32).eps)
    for got, wanted in zip(run("triton", inputs, mask), run("reference", inputs, mask), strict=True):
        torch.testing.assert_close(got, wanted, rtol=relative, atol=relative * max(1.0, size))


def test_full_visibility_equals_causal_attention_bit_for_bit(device: str) -> None:
    causal = TokenMask.documents([90]).to(device)
    colourful = trajectory_mask(90, 2, "causal").to(device)
    inputs = random_inputs(90, (2, 1), 32, torch.float32, device)
    found = [run("triton", inputs, build_block_mask(mask, 32, 32)) for mask in (causal, colourful)]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_order_of_documents_permutes_the_output(device: str) -> None:
    inputs = random_inputs(90, (2, 1), 32, torch.float32, device)
    swapped = [torch.cat([x[33:], x[:33]]).detach().requires_grad_() for x in inputs]
    forth = run("triton", inputs, TokenMask.documents([33, 57]).to(device))
    back = run("triton", swapped, TokenMask.documents([57, 33]).to(device))
    for a, b in zip(forth, back, strict=True):
        torch.testing.assert_close(torch.cat([a[33:], a[:33]]), b, rtol=0, atol=1e-5)


def test_backward_is_deterministic(device: str) -> None:
    mask = random_mask(np.random.default_rng(0), 100).to(device)
    inputs = random_inputs(100, (7, 1), 32, torch.float32, device)
    first = run("triton", inputs, mask)
    assert all(torch.equal(a, b) for _ in range(2) for a, b in zip(first, run("triton", inputs, mask), strict=True))


def test_log_sum_exp_and_its_gradient_equal_the_reference(device: str) -> None:
    mask = pack(random_mask(np.random.default_rng(seed), 40) for seed in range(2)).to(device)
    q, k, v, upstream = random_inputs(80, (4, 2), 32, torch.float32, device)
    results = []
    for impl in ("triton", "reference"):
        out, lse = tdam_attention(q, k, v, build_block_mask(mask, 32, 32), impl=impl, return_lse=True)
        assert lse.shape == (80, 4)
        sighted = mask.dense().any(1)
        assert bool((lse[~sighted] == float("-inf")).all())
        loss = (out * upstream).sum() + (lse[sighted] * upstream[sighted, :, 0]).sum()
        results.append([lse[sighted].detach(), *torch.autograd.grad(loss, (q, k, v))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_strided_inputs_and_gradients(device: str) -> None:
    """q, k and v as slices of one projection, and a gradient that is a transposed view."""
    fused = torch.randn(50, 4, 32, device=device, requires_grad=True)
    upstream = torch.randn(2, 50, 32, device=device).transpose(0, 1)
    mask = TokenMask.documents([50]).to(device)
    grads = []
    for impl in ("triton", "reference"):
        out = tdam_attention(fused[:, :2], fused[:, 2:3], fused[:, 3:], mask, impl=impl, scale=0.3)
        grads += torch.autograd.grad(out, fused, upstream)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "reference", "dense"])
def test_autocast_changes_no_type(impl: str, device: str) -> None:
    q, k, v, _ = random_inputs(40, (2, 1), 32, torch.float32, device)
    mask = TokenMask.documents([15, 25]).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = tdam_attention(q, k, v, mask, impl=impl)
    assert torch.equal(out, tdam_attention(q, k, v, mask, impl=impl)) and out.dtype == torch.float32


def test_segments_of_blind_rows_alone_give_zero_gradients() -> None:
    q, k, v, _ = random_inputs(20, (2, 1), 32, torch.float32)
    hidden = TokenMask(*(torch.zeros(20, dtype=torch.int32) for _ in range(3)))
    out = segmented_attention(q, k, v, find_segments(hidden))
    assert not any(x.any() for x in (out, *torch.autograd.grad(out.sum(), (q, k, v))))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_compiled_graph_is_whole_and_equal(impl: str, device: str) -> None:
    """`fullgraph` raises at the first break of the graph; two lengths show that shapes may change."""

    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> torch.Tensor:
        return tdam_attention(q * 2, k, v, mask, impl=impl).sin()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for num_tokens in (40, 57):
        q, k, v, upstream = random_inputs(num_tokens, (4, 2), 32, torch.float32, device)
        mask = build_block_mask(trajectory_mask(num_tokens, 2).to(device), 32, 32)
        found = [
            (out, *torch.autograd.grad(out, (q, k, v), upstream))
            for out in (function(q, k, v, mask) for function in (compiled, step))
        ]
        for ours, wanted in zip(*found, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)


def test_the_operator_is_sound_and_counts_its_products(device: str) -> None:
    q, k, v, _ = random_inputs(40, (4, 2), 32, torch.float32, device)
    mask = build_block_mask(TokenMask.documents([40]).to(device), 32, 32)
    operator = torch.ops.videoseek_kernels.attention
    arguments = (q, k, v, mask.tensors, [32, 32], 0.2, False)
    torch.library.opcheck(
        operator, arguments, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )
    with FlopCounterMode(display=False) as counter:
        tdam_attention(q, k, v, mask, impl="triton").sum().backward()
    pairs = 40 * 41 // 2
    assert counter.get_total_flops() == (4 + 10) * pairs * 4 * 32


def test_gradcheck_of_the_reference() -> None:
    mask = random_mask(np.random.default_rng(4), 7)
    inputs = [torch.randn(7, h, 3, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1)]
    assert torch.autograd.gradcheck(lambda q, k, v: tdam_attention(q, k, v, mask, impl="reference"), inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(5, 3, 32)}, "Hq a multiple"),
        ({"k": torch.zeros(4, 2, 32)}, "k \\[4, 2, 32\\]"),
        ({"v": torch.zeros(5, 2, 32, dtype=torch.float64)}, "v torch.float64"),
        ({"mask": TokenMask.documents([4])}, "covers 4 tokens, q has 5"),
        ({"scale": 0.0}, "scale must be a positive"),
        ({"scale": torch.tensor(1.0)}, "positive, finite number, got tensor"),
        ({"k": torch.zeros(5, 0, 32), "v": torch.zeros(5, 0, 32)}, "k \\[5, 0, 32\\]"),
        ({"mask": None}, "TokenMask or a BlockMask, got NoneType"),
        ({name: torch.zeros(5, 2, 32, dtype=torch.int64) for name in "qkv"}, "float64, got torch.int64"),
        ({"impl": "flash"}, "'flash' is not one of auto"),
        ({"impl": "dense", "return_lse": True}, "no log-sum-exp"),
    ],
    ids=["ratio", "length", "dtype", "mask", "scale", "scale-tensor", "no-heads", "no-mask", "int64", "impl", "lse"],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    good = {"q": torch.zeros(5, 4, 32), "k": torch.zeros(5, 2, 32), "v": torch.zeros(5, 2, 32)}
    arguments = good | {"mask": TokenMask.documents([5])} | change
    with pytest.raises(ValueError, match=message):
        tdam_attention(**arguments)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((5, 2, 48), torch.float32, "head sizes"),
        ((5, 2, 32), torch.float64, "float64"),
        pytest.param(
            *((5, 2, 32), torch.bfloat16, "interp"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is not used on a GPU"),
        ),
    ],
    ids=["head-size", "fp64", "bf16-on-cpu"],
)
def test_a_forced_kernel_never_falls_back(
    shape: tuple[int, ...], dtype: torch.dtype, message: str, device: str
) -> None:
    x = torch.zeros(shape, dtype=dtype, device=device)
    with pytest.raises(ValueError, match=message):
        tdam_attention(x, x, x, TokenMask.documents([5]).to(device), impl="triton")


def test_rule_chooses_the_kernels_on_gpus() -> None:
    """The kernels wherever they can run: SDPA over cuDNN plans anew for every length."""
    for capability in ((8, 0), (8, 9), (9, 0), (10, 0)):
        assert choose_on_gpu(capability, torch.bfloat16, 128) == "triton"
    assert choose_on_gpu((7, 5), torch.float16, 128) == "dense"
    assert choose_on_gpu((9, 0), torch.bfloat16, 80) == "dense"
    assert choose_on_gpu((9, 0), torch.float64, 128) == "dense"


def test_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    log_choice.cache_clear()
    q = torch.zeros(5, 1, 8)
    with caplog.at_level(logging.INFO, "videoseek_kernels"):
        for _ in range(3):
            tdam_attention(q, q, q, TokenMask.documents([5]))
    assert [record.getMessage() for record in caplog.records] == [
        "tdam_attention: impl='auto' runs dense on cpu, torch.float32"
    ]


def test_works_without_triton() -> None:
    """A fresh interpreter in which Triton cannot be found: the torch paths run, the kernel says what is missing."""
    script = """
import sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else real(name, *rest)
import torch
from torch.utils.flop_counter import FlopCounterMode
from videoseek_kernels import TokenMask, tdam_attention
q = torch.randn(5, 2, 32)
mask = TokenMask.documents([2, 3])
a, b = (tdam_attention(q, q, q, mask, impl=impl) for impl in ("reference", "auto"))
assert torch.allclose(a, b, atol=1e-6)
try:
    tdam_attention(q, q, q, mask, impl="triton")
except RuntimeError as error:
    assert "not installed" in str(error)
else:
    raise SystemExit("no error")
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_stays_below_the_product_and_leaves_the_kernels_alone() -> None:
    """Neither the parent project nor a single Triton kernel is loaded before it is asked for."""
    script = (
        "import sys, videoseek_kernels; print([m for m in sys.modules if m.startswith('videoseek') and '.impl' in m])"
    )
    script += "; print('videoseek' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_public_names_are_few() -> None:
    import videoseek_kernels

    assert len(videoseek_kernels.__all__) <= 4
    public = [name for name, value in vars(videoseek_kernels).items() if not name.startswith("_")]
    modules = [name for name in public if isinstance(getattr(videoseek_kernels, name), types.ModuleType)]
    assert set(public) - set(modules) - {"annotations"} == set(videoseek_kernels.__all__)
