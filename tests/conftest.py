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

#: Marker -> variable that names the interpreter of an environment of its own; `make test-MARKER` sets it up.
INTERPRETERS = {"tf457": "VIDEOSEEK_TF457_PYTHON", "vllm": "VIDEOSEEK_VLLM_PYTHON", "lmms": "VIDEOSEEK_LMMS_PYTHON"}

# Processes that tests start import both packages of this checkout, whether or not another checkout is installed.
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "src"), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks too, and print their tables")
    parser.addoption("--thorough", action="store_true", help="run the cases too that the default suite samples")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # another number of threads changes the last bits of sums


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_benchmark = pytest.mark.skip(reason="benchmarks run with --benchmark only")
    no_thorough = pytest.mark.skip(reason="one of many like cases; make test-slow runs all")
    no_gpu = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    no_ray = pytest.mark.skip(reason="Ray is not installed: make test-ray")
    for item in items:
        if "ray" in item.keywords and importlib.util.find_spec("ray") is None:
            item.add_marker(no_ray)
        for marker, variable in INTERPRETERS.items():
            if marker in item.keywords and not os.environ.get(variable):
                reason = f"{variable} names no interpreter: make test-{marker}"
                item.add_marker(pytest.mark.skip(reason=reason))
        if "benchmark" in item.keywords and not config.getoption("--benchmark"):
            item.add_marker(no_benchmark)
        if "thorough" in item.keywords and not config.getoption("--thorough"):
            item.add_marker(no_thorough)
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
