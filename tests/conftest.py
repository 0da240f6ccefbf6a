"""The `--benchmark` flag, skips that say why, and the same seeds, threads and cache folder for every test."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# Triton reads this when it is imported, which other libraries may do while the first test module is collected.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Processes that tests start import both packages of this checkout, whether or not another checkout is installed.
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "src"), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks too, and print their tables")


def pytest_configure(config: pytest.Config) -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_benchmark = pytest.mark.skip(reason="benchmarks run with --benchmark only")
    no_gpu = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    no_vllm = pytest.mark.skip(reason="VIDEOSEEK_VLLM_PYTHON names no interpreter with vLLM: make test-vllm")
    no_transformers_4 = pytest.mark.skip(reason="VIDEOSEEK_TF457_PYTHON names no interpreter with transformers 4.57")
    no_ray = pytest.mark.skip(reason="Ray is not installed: make test-ray")
    for item in items:
        if "ray" in item.keywords and importlib.util.find_spec("ray") is None:
            item.add_marker(no_ray)
        if "vllm" in item.keywords and not os.environ.get("VIDEOSEEK_VLLM_PYTHON"):
            item.add_marker(no_vllm)
        if "tf457" in item.keywords and "VIDEOSEEK_TF457_PYTHON" not in os.environ:
            item.add_marker(no_transformers_4)
        if "benchmark" in item.keywords and not config.getoption("--benchmark"):
            item.add_marker(no_benchmark)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Generated videos and stored indices lie in one folder for all tests of a process, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDEOSEEK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
