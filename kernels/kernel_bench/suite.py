"""The benchmark: parity, then time, effective TFLOP/s, memory and ratios, for masks and lengths that training meets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from videoseek_kernels.block_mask import BlockMask, build_block_mask, build_with_numpy, build_with_torch
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.tree import group, tree_end

from kernel_bench.contestants import Contestant, causal_contestants, contestants, ours
from kernel_bench.measure import gpu_state, interleave, noting
from kernel_bench.parity import sampled_excess
from kernel_bench.testing import pack, random_inputs, trajectory_mask

Row = dict[str, Any]
#: What ships: an error or a wrong result of these is a failure; none is timed before it passes parity.
OURS = ("Triton", "SDPA segments")
#: Every row also gives the contestant's speed over these, where they ran.
YARDSTICKS = (
    *("FA3 causal", "cuDNN causal", "SDPA segments", "varlen FA2 (torch)", "SDPA dense mask"),
    *("FlexAttention", "FlexAttention tuned", "FlexAttention FLASH"),
)
#: Per visible pair, query head and element of the head.
FLOP_PER_PAIR = {"forward": 4, "forward + backward": 14, "backward": 10}

_UNSEEN = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads (query, key/value), head size and tokens of one packed row."""

    heads: tuple[int, int]
    head_dim: int
    num_tokens: int

    def __str__(self) -> str:
        return f"{self.heads[0]}:{self.heads[1]} D{self.head_dim} T{self.num_tokens}"


def masks(num_tokens: int) -> dict[str, TokenMask]:
    """Returns the masks of the protocol at one length, on the CPU; the masks of most goals come first."""
    quarter = num_tokens // 4
    return {
        "causal": trajectory_mask(num_tokens, 4, "causal"),
        "spans": trajectory_mask(num_tokens, 4, "spans"),
        "turns": trajectory_mask(num_tokens, 4, "turns"),
        "packed 1:1:2:4": TokenMask.documents([quarter // 2, quarter // 2, quarter, num_tokens - 2 * quarter]),
        "group of 8": _tree(*_group(num_tokens)),
        "packed turns": pack([trajectory_mask(quarter, 2), trajectory_mask(num_tokens - quarter, 4)]),
    }


def _group(num_tokens: int) -> tuple[list[int], list[int]]:
    """Returns (lengths, parents) of half a row of prompt and eight rollouts."""
    prompt = num_tokens // 2
    return group(prompt, [(num_tokens - prompt) // 8] * 8)


def _tree(lengths: Sequence[int], parents: Sequence[int]) -> TokenMask:
    end = tree_end(lengths, parents)
    return TokenMask(end, torch.ones_like(end), torch.full_like(end, -1))


def visible_pairs(mask: TokenMask) -> int:
    """Counts visible pairs exactly, in slices of rows."""
    rows = torch.arange(len(mask), device=mask.device).split(1024)
    return sum(int(mask.dense(part).sum()) for part in rows)


def time_builders(num_tokens: Sequence[int], device: str) -> Iterator[Row]:
    """Yields milliseconds of both builders and the size of a block mask; on a CPU without the torch builder."""
    for count in num_tokens:
        mask = trajectory_mask(count, 4)
        row: Row = {"tokens": count, "KB": round(build_block_mask(mask).num_bytes / 1024)}
        row["numpy ms"] = _best_ms(build_with_numpy, mask)
        on_gpu = device == "cuda"
        row["torch on GPU ms"] = _best_ms(build_with_torch, mask.to(device)) if on_gpu else "not run: no CUDA device"
        yield row


def _best_ms(build: Callable[[TokenMask, int, int], BlockMask], mask: TokenMask) -> float:
    # On the CPU the process's own time, which other work on the machine does not change.
    clock = time.perf_counter if mask.device.type == "cuda" else time.process_time
    best = float("inf")
    for _ in range(5):
        start = clock()
        build(mask, 128, 128)
        if mask.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, 1000 * (clock() - start))
    return round(best, 3)


def compare(shape: Shape, name: str, mask: TokenMask, *, tuned: bool = False, hopper: bool = False) -> Iterator[Row]:
    """Yields one row per contestant and stage for one shape and mask; absent contestants get a row with the reason.

    The backward pass is what forward with backward takes longer than forward. tuned, hopper: see `contestants`.
    """
    inputs = random_inputs(shape.num_tokens, shape.heads, shape.head_dim, torch.bfloat16, "cuda")
    start = time.perf_counter()
    block_mask = build_block_mask(mask).to("cuda")
    torch.cuda.synchronize()
    found, absent = contestants(
        block_mask, shape.heads, shape.head_dim, time.perf_counter() - start, tuned=tuned, hopper=hopper
    )
    errors = _gate(found, absent, inputs, block_mask.mask)
    first = first_calls(inputs, mask)
    pairs = {False: visible_pairs(block_mask.mask), True: shape.num_tokens * (shape.num_tokens + 1) // 2}
    about = {"shape": str(shape), "mask": name}
    yield about | {"contestant": "(the GPU)"} | gpu_state()
    yield from (about | {"contestant": rival} | _reason(rival, why) for rival, why in absent.items())

    medians: dict[str, dict[str, float]] = {}
    for stage in ("forward", "forward + backward"):
        able = [c for c in found if c.backward or stage == "forward"]
        timings, faults = interleave({c.name: _call(c, inputs, stage == "forward") for c in able})
        medians[stage] = {name: timing.median_ms for name, timing in timings.items()}
        for contestant in able:
            row = about | {"stage": stage, "contestant": contestant.name}
            if contestant.name in faults:
                yield row | _reason(contestant.name, faults[contestant.name])
                continue
            timing = timings[contestant.name]
            yield {
                **row,
                **_speed(contestant, stage, medians[stage], found, shape, pairs),
                "p20 ms": round(timing.p20_ms, 4),
                "p80 ms": round(timing.p80_ms, 4),
                "samples": timing.num_samples,
                "error / budget": errors[contestant.name],
                "visible share": round(pairs[False] / pairs[True], 4),
                "peak MB": timing.peak_bytes >> 20,
                "mask build ms": round(1000 * contestant.build_seconds, 2),
                "first call at a new length ms": first.get(contestant.name, ""),
            }
    both, forward = medians["forward + backward"], medians["forward"]
    medians["backward"] = {name: both[name] - forward[name] for name in both if name in forward}
    for contestant in found:
        if contestant.name in medians["backward"]:
            row = about | {"stage": "backward", "contestant": contestant.name}
            yield row | _speed(contestant, "backward", medians["backward"], found, shape, pairs)


def _gate(
    found: list[Contestant], absent: dict[str, str], inputs: Sequence[torch.Tensor], mask: TokenMask
) -> dict[str, float]:
    """Returns the largest error over budget by name.

    A contestant that raises, or one of ours that is wrong, moves from found to absent.
    """
    errors: dict[str, float] = {}
    plain = TokenMask.documents([len(mask)], mask.device)
    for contestant in list(found):
        with noting(absent, contestant.name):
            its_mask = plain if contestant.causal else mask
            over = sampled_excess(contestant.run, inputs, its_mask, backward=contestant.backward)
            errors[contestant.name] = round(max(over.values()), 3)
            if contestant.name in OURS and not all(value <= 1 for value in over.values()):
                raise AssertionError(f"error is {max(over.values()):.2f} of its budget")
        if contestant.name in absent:
            found.remove(contestant)
    return errors


def first_calls(inputs: Sequence[torch.Tensor], mask: TokenMask) -> dict[str, float]:
    """Returns milliseconds of each contestant's first call at a new length, with backward; the mask is on the CPU."""
    spent: dict[str, float] = {}
    for index in range(len(ours(build_block_mask(mask))) + len(causal_contestants())):
        length = len(mask) - 64 * next(_UNSEEN)
        block_mask = build_block_mask(
            TokenMask(mask.end[:length].clamp(max=length), mask.key_class[:length], mask.visible[:length])
        )
        block_mask = block_mask.to("cuda")
        contestant = [*ours(block_mask), *causal_contestants()][index]
        call = _call(contestant, [x[:length].detach().requires_grad_(x.requires_grad) for x in inputs], False)
        with noting({}, contestant.name):  # the timings that follow say why it cannot run
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            spent[contestant.name] = round(1000 * (time.perf_counter() - start), 1)
    return spent


def shared_prefix(shape: Shape) -> Iterator[Row]:
    """Yields the gain of one packed tree over a causal call for each prompt with rollout."""
    lengths, parents = _group(shape.num_tokens)
    prompt, branch, count = lengths[0], lengths[1], len(lengths) - 1
    whole = prompt + branch
    bound = count * whole * (whole + 1) / (prompt * (prompt + 1) + count * branch * (2 * prompt + branch + 1))
    inputs = random_inputs(sum(lengths), shape.heads, shape.head_dim, torch.bfloat16, "cuda")
    one = [x[:whole].detach().requires_grad_(x.requires_grad) for x in inputs]
    tree, path = (
        ours(build_block_mask(mask).to("cuda"))[0] for mask in (_tree(lengths, parents), TokenMask.documents([whole]))
    )
    for stage in ("forward", "forward + backward"):
        only = stage == "forward"
        timings, faults = interleave({"tree": _call(tree, inputs, only), "path": _call(path, one, only)})
        row: Row = {"shape": str(shape), "mask": f"group of {count}", "stage": stage, "contestant": "Triton, tree"}
        if faults:
            yield row | {"failed": "; ".join(faults.values())}
            continue
        gain = count * timings["path"].median_ms / timings["tree"].median_ms
        row |= {"ms": round(timings["tree"].median_ms, 4), "ms of one path": round(timings["path"].median_ms, 4)}
        yield row | {"x separate": round(gain, 3), "bound": round(bound, 3), "of bound": round(gain / bound, 3)}


def _call(contestant: Contestant, inputs: Sequence[torch.Tensor], only_forward: bool) -> Callable[[], object]:
    q, k, v, upstream = inputs
    if only_forward:

        def forward() -> object:
            with torch.no_grad():
                return contestant.run(q, k, v)

        return forward
    return lambda: torch.autograd.grad(contestant.run(q, k, v), (q, k, v), upstream)


def _reason(name: str, why: str) -> Row:
    return {"failed" if name in OURS else "not run": why}


def _speed(
    contestant: Contestant,
    stage: str,
    medians: dict[str, float],
    found: Sequence[Contestant],
    shape: Shape,
    pairs: dict[bool, int],
) -> Row:
    """Returns time, rate on visible pairs, and speed over each yardstick, causal ones scaled to the visible area."""
    ms = medians[contestant.name]
    flop = FLOP_PER_PAIR[stage] * shape.head_dim * shape.heads[0] * pairs[contestant.causal]
    row: Row = {"ms": round(ms, 4), "TFLOP/s": round(flop / ms / 1e9, 1)}
    for other in found:
        if other.name in YARDSTICKS and other.name in medians:
            scale = pairs[contestant.causal] / pairs[other.causal]
            row[f"x {other.name}"] = round(medians[other.name] * scale / ms, 3)
    return row


def guarded(rows: Iterator[Row], about: Row) -> Iterator[Row]:
    """Yields the rows; an error becomes a failed row, so that the next comparison still runs."""
    faults: dict[str, str] = {}
    with noting(faults, "failed"):
        yield from rows
    if faults:
        yield about | faults


def markdown(rows: Sequence[Row]) -> str:
    """Returns rows as a table with the union of their columns; a missing cell is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)
