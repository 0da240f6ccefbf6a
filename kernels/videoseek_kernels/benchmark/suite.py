"""The benchmark: parity, then time, effective TFLOP/s, memory and ratios, for masks and lengths that training meets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from videoseek_kernels.benchmark.contestants import Contestant, contestants
from videoseek_kernels.benchmark.measure import Timing, interleave
from videoseek_kernels.benchmark.parity import sampled_excess
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.plan import Plan, plan, plan_with_numpy, plan_with_torch
from videoseek_kernels.testing import pack, random_inputs, trajectory_mask
from videoseek_kernels.tree import group, tree_end

#: Who must pass parity before anything is timed.
OURS = ("tier 1", "composition")
#: Every contestant is also told as a ratio to these, where they ran.
YARDSTICKS = ("FA3 causal", "cuDNN causal", "composition", "FlexAttention")


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads (query, key/value), head size and tokens of one packed row."""

    heads: tuple[int, int]
    head_dim: int
    num_tokens: int

    def __str__(self) -> str:
        return f"{self.heads[0]}:{self.heads[1]} D{self.head_dim} T{self.num_tokens}"


def masks(num_tokens: int) -> dict[str, TokenMask]:
    """The masks of the protocol at one length, on the CPU."""
    quarter, prompt = num_tokens // 4, num_tokens // 2
    lengths, parents = group(prompt, [(num_tokens - prompt) // 8] * 8)
    end = tree_end(lengths, parents)
    return {
        "causal": trajectory_mask(num_tokens, 4, "causal"),
        "spans": trajectory_mask(num_tokens, 4, "spans"),
        "turns": trajectory_mask(num_tokens, 4, "turns"),
        "packed 1:1:2:4": TokenMask.documents([quarter // 2, quarter // 2, quarter, num_tokens - 2 * quarter]),
        "packed turns": pack([trajectory_mask(quarter, 2), trajectory_mask(num_tokens - quarter, 4)]),
        "group of 8": TokenMask(end, torch.ones_like(end), torch.full_like(end, -1)),
    }


def visible_pairs(mask: TokenMask) -> int:
    """Counted in slices of rows, exactly."""
    rows = torch.arange(len(mask), device=mask.device).split(1024)
    return sum(int(mask.dense(part).sum()) for part in rows)


def time_builders(num_tokens: Sequence[int], device: str) -> Iterator[dict[str, Any]]:
    """Milliseconds of both plan builders and what a plan weighs; the part of the benchmark that needs no GPU."""
    for count in num_tokens:
        mask = trajectory_mask(count, 4)
        row: dict[str, Any] = {"tokens": count, "KB": round(plan(mask).num_bytes / 1024)}
        row["numpy ms"] = _best_ms(plan_with_numpy, mask)
        on_gpu = device == "cuda"
        row["torch on GPU ms"] = _best_ms(plan_with_torch, mask.to(device)) if on_gpu else "not run: no CUDA device"
        yield row


def _best_ms(build: Callable[[TokenMask, int, int], Plan], mask: TokenMask) -> float:
    # On the CPU its own time, which other work on the machine does not change.
    clock = time.perf_counter if mask.device.type == "cuda" else time.process_time
    best = float("inf")
    for _ in range(5):
        start = clock()
        build(mask, 128, 128)
        if mask.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, 1000 * (clock() - start))
    return round(best, 3)


def compare(shape: Shape, name: str, mask: TokenMask) -> Iterator[dict[str, Any]]:
    """All contestants on one shape and mask, forward and forward with backward; one row each, absent ones with why."""
    q, k, v, upstream = random_inputs(shape.num_tokens, shape.heads, shape.head_dim, torch.bfloat16, "cuda")
    ready = plan(mask).to("cuda")
    found, absent = contestants(ready, shape.heads[0])
    pairs = {False: visible_pairs(ready.mask), True: shape.num_tokens * (shape.num_tokens + 1) // 2}
    errors = _gate(found, absent, (q, k, v, upstream), ready.mask)

    for stage, factor in (("forward", 4), ("forward + backward", 14)):
        calls = {c.name: _call(c, (q, k, v), upstream, stage == "forward") for c in found}
        timings = interleave(calls)
        for contestant in found:
            timing = timings[contestant.name]
            flop = factor * shape.head_dim * shape.heads[0] * pairs[contestant.causal]
            yield {
                "shape": str(shape),
                "mask": name,
                "stage": stage,
                "contestant": contestant.name,
                "ms": round(timing.median_ms, 4),
                "p20 ms": round(timing.p20_ms, 4),
                "p80 ms": round(timing.p80_ms, 4),
                "samples": timing.num_samples,
                "TFLOP/s": round(flop / timing.median_ms / 1e9, 1),
                "error / budget": errors.get(contestant.name, ""),
                "visible share": round(pairs[False] / pairs[True], 4),
                "peak MB": timing.peak_bytes >> 20,
                "mask build ms": round(1000 * contestant.build_seconds, 2),
                **_ratios(timing, timings, {c.name for c in found if c.causal}, pairs),
            }
        for rival, reason in absent.items():
            yield {"shape": str(shape), "mask": name, "stage": stage, "contestant": rival, "not run": reason}


def _gate(
    found: list[Contestant], absent: dict[str, str], inputs: Sequence[torch.Tensor], mask: TokenMask
) -> dict[str, float]:
    """Largest error over budget by name. Ours must pass; a rival that cannot run moves from found to absent."""
    errors: dict[str, float] = {}
    for contestant in list(found):
        ours = contestant.name in OURS
        try:
            over = max(sampled_excess(contestant.run, inputs, mask).values())
        except RuntimeError as error:
            if ours:
                raise
            absent[contestant.name] = str(error).split("\n")[0][:200]
            found.remove(contestant)
            continue
        if ours and not over <= 1:
            raise AssertionError(f"{contestant.name}: error is {over:.2f} of its budget")
        if not contestant.causal:
            errors[contestant.name] = round(over, 3)
    return errors


def _call(
    contestant: Contestant, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], upstream: torch.Tensor, only: bool
) -> Callable[[], object]:
    if only:

        def forward() -> object:
            with torch.no_grad():
                return contestant.run(*inputs)

        return forward
    return lambda: torch.autograd.grad(contestant.run(*inputs), inputs, upstream)


def _ratios(timing: Timing, timings: dict[str, Timing], causal: set[str], pairs: dict[bool, int]) -> dict[str, float]:
    """Speed over each yardstick; a causal one is first scaled to the visible area."""
    ratios = {}
    for name in YARDSTICKS:
        if name in timings:
            scale = pairs[False] / pairs[True] if name in causal else 1.0
            ratios[f"x {name}"] = round(timings[name].median_ms * scale / timing.median_ms, 3)
    return ratios


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table with the union of their columns; a missing cell is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)
