"""Which implementation answers, by a rule that can be overruled. The one place that imports Triton."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

import torch

IMPLEMENTATIONS = ("auto", "triton", "hopper", "composition", "reference")
TRITON_HEAD_DIMS = (32, 64, 128)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HOPPER_HEAD_DIMS = (64, 128)
HOPPER_DTYPES = (torch.float16, torch.bfloat16)
HOPPER_BLOCK = 128
#: Gluon is experimental: the first and the last (major, minor) for which the compile gate and the tests were green.
HOPPER_TRITON = ((3, 6), (3, 9))

_log = logging.getLogger("videoseek_kernels")


def choose(q: torch.Tensor) -> str:
    """What `impl="auto"` means for these inputs; the same inputs always give the same answer. See the README."""
    if q.device.type != "cuda" or find_spec("triton") is None:
        return "composition"
    return choose_on_gpu(torch.cuda.get_device_capability(q.device), q.dtype, q.shape[-1])


def choose_on_gpu(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> str:
    """The rule for CUDA with Triton, from plain facts."""
    if capability < (8, 0) or dtype not in TRITON_DTYPES or head_dim not in TRITON_HEAD_DIMS:
        return "composition"
    return "triton"


def kernels(module: str) -> ModuleType:
    """A module of Triton kernels, such as "tier1.attention"; raises if Triton is not installed."""
    if find_spec("triton") is None:
        raise RuntimeError('impl="triton" needs the triton package, which is not installed; use "composition"')
    return importlib.import_module(f"videoseek_kernels.{module}")


def check_triton_inputs(q: torch.Tensor) -> None:
    """Say plainly why the Triton kernels cannot take these inputs."""
    if q.shape[-1] not in TRITON_HEAD_DIMS:
        raise ValueError(f'impl="triton" takes head sizes {TRITON_HEAD_DIMS}, got {q.shape[-1]}; use "composition"')
    if q.dtype not in TRITON_DTYPES:
        raise ValueError(f'impl="triton" takes float32, float16 or bfloat16, got {q.dtype}; use "composition"')
    if q.device.type == "cuda":
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f'impl="triton" on {q.device} needs TRITON_INTERPRET=1 set before Python starts')
    if q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter gets bfloat16 products wrong; use float32 or float16 on the CPU")


def check_hopper_inputs(q: torch.Tensor, blocks: tuple[int, int]) -> None:
    """Say plainly why the Hopper forward cannot take these inputs, or cannot run here."""
    if q.shape[-1] not in HOPPER_HEAD_DIMS:
        raise ValueError(f'impl="hopper" takes head sizes {HOPPER_HEAD_DIMS}, got {q.shape[-1]}; use "triton"')
    if q.dtype not in HOPPER_DTYPES:
        raise ValueError(f'impl="hopper" takes float16 or bfloat16, got {q.dtype}; use "triton"')
    if any(block % HOPPER_BLOCK for block in blocks):
        raise ValueError(f'impl="hopper" takes plans of whole {HOPPER_BLOCK} x {HOPPER_BLOCK} blocks, got {blocks}')
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
    """One line per distinct choice and process."""
    _log.info("%s: impl=%r runs %s on %s, %s", operation, requested, chosen, device, dtype)
