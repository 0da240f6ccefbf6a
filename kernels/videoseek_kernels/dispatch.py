"""Chooses an implementation by a rule: `triton`, `hopper`, `flex`, `dense` or `reference`.

`impl` overrules the rule, and a forced choice never falls back. Only the choice of Triton imports Triton.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

import torch

IMPLEMENTATIONS = ("auto", "triton", "hopper", "flex", "dense", "reference")
TRITON_HEAD_DIMS = (32, 64, 128)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Types of the other implementations.
DTYPES = (*TRITON_DTYPES, torch.float64)
HOPPER_HEAD_DIMS = (64, 128)
HOPPER_DTYPES = (torch.float16, torch.bfloat16)
HOPPER_BLOCK = 128
#: Gluon is experimental: the first and the last (major, minor) with a green compile gate and green tests.
HOPPER_TRITON = ((3, 6), (3, 9))

_log = logging.getLogger("videoseek_kernels")


def choose(q: torch.Tensor) -> str:
    """Returns the choice of `impl="auto"` for these inputs: "triton" or "dense". The same inputs give the same answer.

    The README states the rule.
    """
    if q.device.type != "cuda" or find_spec("triton") is None:
        return "dense"
    return choose_on_gpu(torch.cuda.get_device_capability(q.device), q.dtype, q.shape[-1])


def choose_on_gpu(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> str:
    """Returns the result of `choose` on CUDA with Triton; capability is (major, minor)."""
    if capability < (8, 0) or dtype not in TRITON_DTYPES or head_dim not in TRITON_HEAD_DIMS:
        return "dense"
    return "triton"


def check_scale(scale: float | None) -> None:
    """Raises ValueError unless `scale` is None or a positive, finite number."""
    if scale is not None and not (isinstance(scale, float | int) and 0 < scale < float("inf")):
        raise ValueError(f"scale must be a positive, finite number, got {scale!r}")


def check_triton_inputs(q: torch.Tensor) -> None:
    """Raises ValueError or RuntimeError, with the reason, if the Triton kernels refuse these inputs."""
    if find_spec("triton") is None:
        raise RuntimeError('impl="triton" needs the triton package, which is not installed; use "dense"')
    if q.shape[-1] not in TRITON_HEAD_DIMS:
        raise ValueError(f'impl="triton" takes head sizes {TRITON_HEAD_DIMS}, got {q.shape[-1]}; use "dense"')
    if q.dtype not in TRITON_DTYPES:
        raise ValueError(f'impl="triton" takes float32, float16 or bfloat16, got {q.dtype}; use "dense"')
    if q.device.type == "cuda":
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f'impl="triton" on {q.device} needs TRITON_INTERPRET=1 set before Python starts')
    if q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter gets bfloat16 products wrong; use float32 or float16 on the CPU")


def check_hopper_inputs(q: torch.Tensor, blocks: tuple[int, int]) -> None:
    """Raises ValueError or RuntimeError, with the reason, if the Hopper forward refuses these inputs or this GPU.

    blocks: (block_m, block_n) of the block mask.
    """
    if q.shape[-1] not in HOPPER_HEAD_DIMS:
        raise ValueError(f'impl="hopper" takes head sizes {HOPPER_HEAD_DIMS}, got {q.shape[-1]}; use "triton"')
    if q.dtype not in HOPPER_DTYPES:
        raise ValueError(f'impl="hopper" takes float16 or bfloat16, got {q.dtype}; use "triton"')
    if any(block % HOPPER_BLOCK for block in blocks):
        raise ValueError(
            f'impl="hopper" takes block masks of whole {HOPPER_BLOCK} x {HOPPER_BLOCK} blocks, got {blocks}'
        )
    if not _is_hopper(q.device):
        raise RuntimeError(f'impl="hopper" needs a GPU of compute capability 9, q is on {q.device}; use "triton"')
    installed = version("triton")
    if not HOPPER_TRITON[0] <= tuple(map(int, installed.split(".")[:2])) <= HOPPER_TRITON[1]:
        low, high = (".".join(map(str, bound)) for bound in HOPPER_TRITON)
        raise RuntimeError(f'impl="hopper" needs Triton {low} to {high}, {installed} is installed; use "triton"')


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@cache
def log_choice(operation: str, requested: str, chosen: str, device: str, dtype: torch.dtype) -> None:
    """Logs a line per distinct choice and process."""
    _log.info("%s: impl=%r runs %s on %s, %s", operation, requested, chosen, device, dtype)
