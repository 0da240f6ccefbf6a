"""Which implementation answers, by a rule that can be overruled. The one place that imports Triton."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

IMPLEMENTATIONS = ("auto", "triton", "composition", "reference")
TRITON_HEAD_DIMS = (32, 64, 128)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

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


def tier1(module: str) -> ModuleType:
    """A module of Triton kernels; raises if Triton is not installed."""
    if find_spec("triton") is None:
        raise RuntimeError('impl="triton" needs the triton package, which is not installed; use "composition"')
    return importlib.import_module(f"videoseek_kernels.tier1.{module}")


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


@cache
def log_choice(operation: str, requested: str, chosen: str, device: str, dtype: torch.dtype) -> None:
    """One line per distinct choice and process."""
    _log.info("%s: impl=%r runs %s on %s, %s", operation, requested, chosen, device, dtype)
