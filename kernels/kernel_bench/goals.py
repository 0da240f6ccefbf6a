"""The goals of the kernels, and how rows of results answer them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kernel_bench.recording import Row

Steps = Mapping[str, Sequence[Row]]
#: (place, contestant, value); the value should be at least the goal's bound.
Finding = tuple[str, str, float]

_KERNELS = ("Triton", "Hopper")
_OURS = (*_KERNELS, "SDPA segments", "SDPA segments, cuDNN")
_TDAM = ("spans", "turns")
_SHAPES = ("28:4 D128 T16384", "28:4 D128 T32768")
#: A yardstick that is told beside FA3, and meets no goal.
_STAND_IN = "cuDNN causal"
_NOT_MEASURED = {"measured": "not measured", "met by": ""}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A goal that is a number: findings of at least `bound` at every place, against the named rival itself."""

    text: str
    step: str
    bound: float
    find: Callable[[Sequence[Row]], Iterator[Finding]]
    #: Whose findings may meet the goal: by default the contestant that `impl="auto"` runs on a GPU.
    judged: str = "Triton"

    def judge(self, steps: Steps, faults: Mapping[str, str]) -> Row:
        """Returns every finding, and who reached the bound at each place; names the fault of a step that failed."""
        found = list(self.find(steps.get(self.step, ())))
        if not found:
            return _NOT_MEASURED
        places = dict.fromkeys(where for where, _, _ in found)
        told = "; ".join(
            f"{place}: " + ", ".join(f"{who} {value:g}" for where, who, value in found if where == place)
            for place in places
        )
        values = [value for place, who, value in found if who == self.judged and not place.endswith(_STAND_IN)]
        met = bool(values) and min(values) >= self.bound
        told += f" ({self.step}: {faults[self.step]})" if self.step in faults else ""
        return {"measured": told, "met by": self.judged if met else "none"}


@dataclass(frozen=True, slots=True)
class Pass:
    """A goal that is the absence of failures in some steps; `tell` sums up the rows of each."""

    text: str
    tell: Mapping[str, Callable[[Sequence[Row]], str]]

    def judge(self, steps: Steps, faults: Mapping[str, str]) -> Row:
        seen = [step for step in self.tell if steps.get(step)]
        if not seen:
            return _NOT_MEASURED
        told = [f"{step}: {faults.get(step) or self.tell[step](steps[step])}" for step in seen]
        told += [f"{step}: not measured" for step in self.tell if step not in seen]
        ran = len(seen) == len(self.tell) and not any("not run" in row for step in seen for row in steps[step])
        return {"measured": "; ".join(told), "met by": "all" if ran and not set(seen) & set(faults) else "none"}


def _timed(rows: Sequence[Row], stage: str, masks: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yields (where, row) for our contestants' times at the goals' shapes."""
    for row in rows:
        ours = row.get("contestant") in _OURS and "ms" in row
        if ours and row["stage"] == stage and row["mask"] in masks and row["shape"] in _SHAPES:
            yield f"{row['mask']} {row['shape'].split()[-1]}", row


def _over_flex(stage: str) -> Callable[[Sequence[Row]], Iterator[Finding]]:
    def find(rows: Sequence[Row]) -> Iterator[Finding]:
        """Yields the speed over the fastest FlexAttention that ran: of either backend, searched tiles or not."""
        for where, row in _timed(rows, stage, _TDAM):
            ratios = [value for column, value in row.items() if column.startswith("x FlexAttention")]
            if ratios:
                yield where, row["contestant"], min(ratios)

    return find


def _over_flash(stage: str) -> Callable[[Sequence[Row]], Iterator[Finding]]:
    """Speed over FA3 and over cuDNN, both causal and scaled to the visible area. Only FA3 is FA3-class."""

    def find(rows: Sequence[Row]) -> Iterator[Finding]:
        for where, row in _timed(rows, stage, _TDAM):
            for yardstick in ("FA3 causal", _STAND_IN):
                if f"x {yardstick}" in row:
                    yield f"{where} over {yardstick}", row["contestant"], row[f"x {yardstick}"]

    return find


def _over_causal(masks: Sequence[str]) -> Callable[[Sequence[Row]], Iterator[Finding]]:
    """Rate on visible pairs over the same contestant's rate on one causal document."""

    def find(rows: Sequence[Row]) -> Iterator[Finding]:
        for stage in ("forward", "backward"):
            plain = {(row["shape"], row["contestant"]): row["TFLOP/s"] for _, row in _timed(rows, stage, ("causal",))}
            for where, row in _timed(rows, stage, masks):
                key = row["shape"], row["contestant"]
                if row["contestant"] in _KERNELS and key in plain:
                    yield f"{where} {stage}", row["contestant"], round(row["TFLOP/s"] / plain[key], 3)

    return find


def _over_triton(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yields the Hopper forward's rate over the Triton forward's at the same place."""
    timed = {(where, row["contestant"]): row["TFLOP/s"] for where, row in _timed(rows, "forward", ("causal", *_TDAM))}
    for (where, contestant), rate in timed.items():
        if contestant == "Hopper" and (where, "Triton") in timed:
            yield where, contestant, round(rate / timed[where, "Triton"], 3)


def _dense(rows: Sequence[Row]) -> Iterator[Finding]:
    for where, row in _timed(rows, "forward + backward", _TDAM):
        if "T32768" in row["shape"] and "x SDPA dense mask" in row:
            yield where, row["contestant"], row["x SDPA dense mask"]


def _prefix(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows:
        if "of bound" in row and row["shape"] in _SHAPES:
            yield f"{row['mask']} {row['shape'].split()[-1]} {row['stage']}", "Triton", row["of bound"]


def _decode(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows:
        if "of copy" in row:
            yield row["case"], "decode", row["of copy"]


def _worst(rows: Sequence[Row]) -> str:
    values = [row[key] for row in rows for key in ("out", "dq", "dk", "dv", "lse") if key in row]
    return f"worst error {max(values):g} of its budget, {len(rows)} cases"


def _said(rows: Sequence[Row]) -> str:
    return "; ".join(row.get("result") or row["not run"] for row in rows)


def _numerics(rows: Sequence[Row]) -> str:
    column = "gap of loss / first loss"
    return ", ".join(f"{row['against SDPA, dense mask']} {row[column]:g}" for row in rows)


GOALS: tuple[Ratio | Pass, ...] = (
    Pass("two-times rule; compute-sanitizer", {"correctness": _worst, "sanitizer": _said}),
    Ratio("forward >= 0.95 of FA3-class causal, scaled by area", "benchmark", 0.95, _over_flash("forward")),
    Ratio("forward >= 1.4 x FlexAttention", "benchmark", 1.4, _over_flex("forward")),
    Ratio("backward >= 0.90 of FA3-class causal, scaled by area", "benchmark", 0.9, _over_flash("backward")),
    Ratio("backward >= 1.8 x FlexAttention", "benchmark", 1.8, _over_flex("backward")),
    Ratio("masked against unmasked, per visible pair: >= 0.98", "benchmark", 0.98, _over_causal(_TDAM)),
    Ratio("packed against unpacked, per visible pair: >= 0.97", "benchmark", 0.97, _over_causal(("packed 1:1:2:4",))),
    Ratio("forward + backward >= 20 x SDPA with a dense mask at 32k", "benchmark", 20, _dense),
    Ratio("shared prefix >= 0.9 of its bound", "benchmark", 0.9, _prefix),
    Ratio("decode >= 0.85 of copy bandwidth", "decode", 0.85, _decode, "decode"),
    Pass("Hopper forward: two-times rule", {"hopper": _said}),
    Ratio("Hopper forward >= 1.1 x Triton, or it goes", "benchmark", 1.1, _over_triton, "Hopper"),
    Pass("training, 20 steps: loss gap at most 1e-3, a wrong mask's above", {"numerics": _numerics}),
)
