"""What tests and benchmarks share: masks to try, and the error budget that a kernel must keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.tree import tree_end

TEXT, GLOBAL_VIDEO, CROP_VIDEO = 1, 2, 4
ALL = -1


def random_mask(rng: np.random.Generator, num_tokens: int) -> TokenMask:
    """Any mask that the form can hold: a random forest, runs of classes and visible sets, hidden keys, blind rows."""
    lengths, parents = _random_forest(rng, num_tokens)
    end = tree_end(lengths, parents)
    if rng.random() < 0.1:
        end = torch.from_numpy(rng.integers(0, num_tokens + 1, num_tokens).astype(np.int32))
    classes = np.array([TEXT, GLOBAL_VIDEO, CROP_VIDEO, 1 << 30, 0], np.int32)
    sets = np.array([ALL, ALL, ALL & ~CROP_VIDEO, ALL & ~GLOBAL_VIDEO, TEXT, 0], np.int32)
    key_class = classes[_random_runs(rng, num_tokens, len(classes))]
    visible = sets[_random_runs(rng, num_tokens, len(sets))]
    return TokenMask(end, torch.from_numpy(key_class), torch.from_numpy(visible))


def _random_forest(rng: np.random.Generator, num_tokens: int) -> tuple[list[int], list[int]]:
    cuts = rng.integers(0, num_tokens, rng.integers(0, 6))
    bounds = np.unique([0, num_tokens, *cuts])
    parents: list[int] = []
    path: list[int] = []
    for node in range(len(bounds) - 1):
        depth = int(rng.integers(0, len(path) + 1))
        parents.append(path[depth - 1] if depth else -1)
        path = [*path[:depth], node]
    return np.diff(bounds).tolist(), parents


def _random_runs(rng: np.random.Generator, num_tokens: int, num_values: int) -> np.ndarray:
    """Values in stretches; now and then a single one throughout, which is what most real rows hold."""
    if rng.random() < 0.3:
        return np.zeros(num_tokens, int)
    turns = rng.random(num_tokens) < rng.choice([0.05, 0.3, 1.0])
    return rng.integers(0, num_values, num_tokens)[np.cumsum(turns) % num_tokens]


def pack(masks: Iterable[TokenMask]) -> TokenMask:
    """Masks one behind the other in one row."""
    parts = list(masks)
    starts = np.cumsum([0, *(len(part) for part in parts)])
    return TokenMask(
        torch.cat([part.end + int(start) for part, start in zip(parts, starts[:-1], strict=True)]),
        torch.cat([part.key_class for part in parts]),
        torch.cat([part.visible for part in parts]),
    )


def trajectory_mask(num_tokens: int, num_crops: int, rule: str = "turns") -> TokenMask:
    """A tool trajectory of about this shape: overview video, then (think, call, crop) per crop, then think and answer.

    rule: "causal" hides nothing, "spans" restricts rows of calls and answer, "turns" their think as well.
    """
    if rule not in ("causal", "spans", "turns"):
        raise ValueError(f"rule {rule!r} is not one of causal, spans, turns")
    overview = num_tokens * 2 // 5
    think, call = min(256, max(1, num_tokens // 40)), min(32, max(1, num_tokens // 100))
    crop = max(1, (num_tokens - overview - 2 * think - call) // max(1, num_crops) - think - call)
    segments = [("text", think), ("global", overview)]
    for _ in range(num_crops):
        segments += [("seek", think), ("call", call), ("crop", crop)]
    segments += [("solve", think), ("answer", num_tokens)]
    kinds = {"global": GLOBAL_VIDEO, "crop": CROP_VIDEO}
    rows = {"call": ALL & ~CROP_VIDEO, "answer": ALL & ~GLOBAL_VIDEO}
    rows |= {"seek": ALL & ~CROP_VIDEO, "solve": ALL & ~GLOBAL_VIDEO} if rule == "turns" else {}
    rows = {} if rule == "causal" else rows
    lengths = torch.tensor([length for _, length in segments])
    key_class, visible = (
        torch.tensor([table.get(name, other) for name, _ in segments], dtype=torch.int32)
        .repeat_interleave(lengths)[:num_tokens]
        .contiguous()
        for table, other in ((kinds, TEXT), (rows, ALL))
    )
    return TokenMask(torch.full_like(visible, num_tokens), key_class, visible)


def random_inputs(
    num_tokens: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> list[torch.Tensor]:
    """q, k, v that take gradients, and the gradient that comes back; normal data, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    counts = (heads[0], heads[1], heads[1], heads[0])
    tensors = [torch.randn(num_tokens, count, head_dim, generator=generator).to(device, dtype) for count in counts]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def gradients(outputs: torch.Tensor, inputs: Sequence[torch.Tensor], upstream: torch.Tensor) -> list[torch.Tensor]:
    """[O, dq, dk, dv]: everything that a comparison looks at."""
    return [outputs.detach(), *torch.autograd.grad(outputs, inputs, upstream)]


def eager_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float
) -> torch.Tensor:
    """q [M, Hq, D] under seen bool [M, N], as a plain model computes it in its own type: the yardstick of errors.

    Another order than the reference: scale on K, softmax in float32, probabilities rounded before they meet V.
    """
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("mhd,nhd->hmn", q, (k * scale).repeat_interleave(group, 1))
    scores = scores.masked_fill(~(seen | ~seen.any(1, keepdim=True)), float("-inf"))
    weights = (scores.float().softmax(-1) * seen).to(q.dtype)
    return torch.einsum("hmn,nhd->mhd", weights, v.repeat_interleave(group, 1))


#: What every budget allows beyond the plain error. In a flash backward dP - delta, exactly 0 in eager maths for a row
#: that sees one key, cancels only to rounding: a few 1e-6 for data of size 1.
FLOOR = 1e-5


def budget(exact: torch.Tensor, plain: torch.Tensor) -> float:
    """Largest error allowed: twice that of the same maths in the working type, one rounding at this size, and FLOOR.

    exact is float32 or wider from the same inputs; plain is the eager result in the working type.
    """
    rounded = exact.to(plain.dtype)
    rounding = 2 * (rounded + 0.3 - 0.3 - rounded).abs().max().item()
    return 2 * (plain.to(exact.dtype) - exact).abs().max().item() + rounding + FLOOR


def excess(got: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> float:
    """Error of a result over its budget: at most 1 passes. Infinite for NaN, which no comparison would let fail."""
    over = (got.to(exact.dtype) - exact).abs().max().item() / budget(exact, plain)
    return math.inf if math.isnan(over) else over


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """|got - exact| / |exact| in the Frobenius norm; infinite for NaN."""
    over = ((got.to(exact.dtype) - exact).norm() / exact.norm()).item()
    return math.inf if math.isnan(over) else over
