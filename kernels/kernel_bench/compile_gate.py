"""Compiles every shipped kernel for Hopper and Ampere without a GPU, and refuses what would be slow.

    PYTHONPATH=kernels python -m kernel_bench.compile_gate [--quick]

Registers, stack and instructions are read from the cubin by the cuobjdump that ships inside Triton's wheel. Exit code 1
if any kernel spills, takes more shared memory than the chip has, or lacks the matrix or copy instructions of its chip.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor
from videoseek_kernels.block_mask import build_block_mask
from videoseek_kernels.impl.hopper.forward import CANDIDATES as HOPPER_CANDIDATES
from videoseek_kernels.impl.hopper.forward import TILES, hopper_launch
from videoseek_kernels.impl.triton.backward import dkdv_launch, dq_launch
from videoseek_kernels.impl.triton.decode import merge_launch, split_launch
from videoseek_kernels.impl.triton.forward import forward_launch
from videoseek_kernels.impl.triton.launch import CANDIDATES, Launch, TileConfig, tile_config
from videoseek_kernels.impl.triton.rope import rotate_launch
from videoseek_kernels.key_values import KeyValues
from videoseek_kernels.mask import TokenMask

#: Bytes of shared memory that one block may take, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
HEADS = {"7B": (28, 4), "3B": (16, 2)}
_TYPE_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One launch for one chip, and the matrix instruction that it must show; float32 and rotations have none.

    overlaps: the loops that must take exponentials while P V is under way.
    """

    name: str
    capability: int
    launch: Launch
    matrix: str = ""
    overlaps: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What the compiler made of a case; counts are of instructions in the machine code."""

    case: Case
    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    matrix: int
    bulk_loads: int
    #: Waits for matrix products and exponentials in the order of the machine code, as "W1 66E W0".
    order: str = ""

    @property
    def faults(self) -> list[str]:
        limit = SHARED_LIMIT[self.case.capability]
        tests = {
            f"{self.stack_bytes} bytes of stack, {self.spills} spills": self.stack_bytes or self.spills,
            f"{self.shared_bytes} bytes of shared memory, the chip has {limit}": self.shared_bytes > limit,
            f"no {self.case.matrix}": self.case.matrix and not self.matrix,
            "no bulk loads, though descriptors are used": self.case.launch.config.tma and not self.bulk_loads,
            "the softmax waits for P V": self.num_overlaps < self.case.overlaps,
        }
        return [fault for fault, failed in tests.items() if failed]

    @property
    def num_overlaps(self) -> int:
        """Counts softmaxes with P V under way: a wait for all but one product, exponentials, the wait for all."""
        runs = [int(count) for count in re.findall(r"W1 (\d+)E W0", self.order)]
        # 128 threads take the exponentials of 64 rows: a thread takes half of block_n.
        return sum(count >= self.case.launch.config.block_n // 2 for count in runs)


def attention_cases(capability: int, dtype: torch.dtype, head_dim: int, heads: tuple[int, int]) -> Iterator[Case]:
    """The three passes of one configuration, as `impl.triton.autograd` launches them; dk and dv also cut into parts."""
    for stage, num_parts in (("forward", 1), ("dq", 1), ("dkdv", 1), ("dkdv", 2)):
        config = tile_config(stage, capability, dtype)
        launch = _attention_launch(stage, config, dtype, head_dim, heads, num_parts)
        name = f"{stage}{' in parts' if num_parts > 1 else ''} {_TYPE_NAMES[dtype]} D{head_dim} {heads[0]}:{heads[1]}"
        yield Case(name, capability, launch, _matrix_instruction(capability, dtype))


def hopper_case(dtype: torch.dtype, head_dim: int, heads: tuple[int, int]) -> Case:
    """The forward with specialised warps."""
    launch = _attention_launch("forward, Hopper", TILES[head_dim], dtype, head_dim, heads, 1)
    return Case(
        f"forward, Hopper {_TYPE_NAMES[dtype]} D{head_dim} {heads[0]}:{heads[1]}", 90, launch, "HGMMA", overlaps=2
    )


def candidate_cases() -> Iterator[Case]:
    """The tiles that the sweep tries on Hopper beside the shipped ones."""
    dtype, heads = torch.bfloat16, HEADS["7B"]
    for stage, candidates in (CANDIDATES | HOPPER_CANDIDATES).items():
        shipped = {"forward, Hopper": TILES[128], "forward, Hopper in turns": None}
        for config in (TileConfig(*tile, tma=True) for tile in candidates):
            if config != (shipped[stage] if stage in shipped else tile_config(stage, 90, dtype)):
                launch = _attention_launch(stage, config, dtype, 128, heads, 1)
                yield Case(f"candidate {stage}", 90, launch, "HGMMA", overlaps=2 * (stage in HOPPER_CANDIDATES))


def _attention_launch(
    stage: str, config: TileConfig, dtype: torch.dtype, head_dim: int, heads: tuple[int, int], num_parts: int
) -> Launch:
    num_tokens, (num_heads, num_kv_heads) = 300, heads
    block_mask = build_block_mask(TokenMask.documents([num_tokens]))
    q, out, d_out, dq = (torch.zeros(num_tokens, num_heads, head_dim, dtype=dtype) for _ in range(4))
    k, v = (torch.zeros(num_tokens, num_kv_heads, head_dim, dtype=dtype) for _ in range(2))
    lse, delta = (torch.zeros(num_heads, num_tokens) for _ in range(2))
    if stage == "forward":
        return forward_launch((q, k, v), (out, lse), block_mask, 1.0, config)
    if stage in HOPPER_CANDIDATES:
        return hopper_launch((q, k, v), (out, lse), block_mask, 1.0, config, alternate=stage.endswith("turns"))
    if stage == "dq":
        return dq_launch((q, k, v), (out, lse), (d_out, None), (dq, delta), block_mask, 1.0, config)
    part_type = dtype if num_parts == 1 else torch.float32
    dk, dv = (torch.zeros(num_parts, *k.shape, dtype=part_type) for _ in range(2))
    return dkdv_launch((q, k, v), (d_out, lse, delta), (dk, dv), block_mask, 1.0, config)


def decode_cases(capability: int, dtype: torch.dtype, head_dim: int, heads: tuple[int, int]) -> Iterator[Case]:
    """One new row for each of eight sequences on a shared prefix, and the rotation of q and k."""
    num_heads, num_kv_heads = heads
    q = torch.zeros(8, 1, num_heads, head_dim, dtype=dtype)
    parts, lse = torch.zeros(4, 8 * num_heads, head_dim), torch.zeros(4, 8 * num_heads)
    visible = torch.zeros(8, 1, dtype=torch.int32)
    names = f"{_TYPE_NAMES[dtype]} D{head_dim} {num_heads}:{num_kv_heads}"
    for name, num_caches in (("decode", 8), ("decode prefix", 1)):
        slots = torch.zeros(num_caches, 600, num_kv_heads, head_dim, dtype=dtype)
        classes = torch.zeros(num_caches, 600, dtype=torch.int32)
        cache = KeyValues(slots, slots, torch.zeros(num_caches, dtype=torch.int32), classes)
        launch = split_launch(q, cache, visible, (parts, lse), 0, num_caches > 1, 1.0)
        # Fewer than 64 rows do not fill a Hopper matrix instruction; they are bound by memory anyway.
        hopper = launch.config.block_m >= 64
        yield Case(f"{name} {names}", capability, launch, _matrix_instruction(capability if hopper else 80, dtype))
    yield Case(f"decode merge {names}", capability, merge_launch(parts, lse, q))
    keys, table = torch.zeros(8, num_kv_heads, head_dim, dtype=dtype), torch.zeros(8, head_dim // 2)
    launch = rotate_launch((q[:, 0], keys), (q[:, 0], keys), (table, table), 1.0)
    yield Case(f"mrope {names}", capability, launch)


def _matrix_instruction(capability: int, dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return ""
    return "HGMMA" if capability >= 90 else "HMMA"


def cases(quick: bool) -> Iterator[Case]:
    """Every shipped configuration; quick keeps the 7B shape on Hopper, which is the one that matters most."""
    if quick:
        yield from attention_cases(90, torch.bfloat16, 128, HEADS["7B"])
        yield hopper_case(torch.bfloat16, 128, HEADS["7B"])
        return
    yield from candidate_cases()
    for heads in HEADS.values():
        yield hopper_case(torch.bfloat16, 128, heads)
    yield hopper_case(torch.float16, 128, HEADS["7B"])
    yield hopper_case(torch.bfloat16, 64, HEADS["7B"])
    for capability in (90, 80):
        yield from decode_cases(capability, torch.bfloat16, 128, HEADS["7B"])
        yield from decode_cases(capability, torch.float32, 32, (4, 2))
        for heads in HEADS.values():
            yield from attention_cases(capability, torch.bfloat16, 128, heads)
        yield from attention_cases(capability, torch.float16, 128, HEADS["7B"])
        yield from attention_cases(capability, torch.bfloat16, 64, HEADS["7B"])
        yield from attention_cases(capability, torch.bfloat16, 32, (4, 2))
        yield from attention_cases(capability, torch.float32, 128, HEADS["7B"])


def compile_case(case: Case) -> CompiledKernel:
    """Compile as the just-in-time path would: aligned pointers, and no other run-time fact."""
    launch = case.launch
    names = launch.kernel.arg_names
    types = {name: _signature(value) for name, value in launch.arguments.items()}
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, value in launch.arguments.items()
        if isinstance(value, torch.Tensor)
    }
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    source_type = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = source_type(launch.kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", case.capability, 32), options=launch.options)


def _signature(value: Any) -> str:
    if isinstance(value, GluonDescriptor):
        return f"tensordesc<{_TYPE_NAMES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPE_NAMES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, torch.Tensor):
        return f"*{_TYPE_NAMES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def inspect(case: Case) -> Report:
    """Compile a case and read the machine code."""
    compiled = compile_case(case)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, code = (_cuobjdump(flag, cubin) for flag in ("--dump-resource-usage", "--dump-sass"))
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    return Report(
        case,
        registers=int(found["REG"]),
        stack_bytes=int(found["STACK"]),
        spills=_count(r"\b(?:STL|LDL)\b", code),
        shared_bytes=compiled.metadata.shared,
        matrix=_count(r"\bHG?MMA\b", code) if case.matrix == "HMMA" else _count(r"\bHGMMA\b", code),
        bulk_loads=_count(r"\bUTMALDG\b", code),
        order=_order(code),
    )


def _order(code: str) -> str:
    """Returns `Report.order` of machine code: waits for warpgroup products by number, exponentials counted."""
    found = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)|(MUFU\.EX2)", code)
    parts: list[str] = []
    for exponential, run in groupby(found, key=lambda match: bool(match[1])):
        steps = list(run)
        parts += [f"{len(steps)}E"] if exponential else [f"W{number}" for number, _ in steps]
    return " ".join(parts)


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def _cuobjdump(flag: str, cubin: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, cubin], check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the shipped kernels off-line and check the machine code.")
    parser.add_argument("--quick", action="store_true", help="only the 7B shape on Hopper")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}")
    print(
        "| kernel | chip | tile | warps, stages | registers | spills | shared KB | matrix | bulk loads "
        "| exponentials beside P V | verdict |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    failed = False
    for case in cases(arguments.quick):
        report, config = inspect(case), case.launch.config
        failed |= bool(report.faults)
        cells = [
            case.name,
            f"sm_{case.capability}",
            f"{config.block_m}x{config.block_n}",
            f"{config.num_warps}, {config.num_stages}",
            report.registers,
            report.spills,
            round(report.shared_bytes / 1024),
            report.matrix,
            report.bulk_loads,
            report.num_overlaps,
            "; ".join(report.faults) or "ok",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
