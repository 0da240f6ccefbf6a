"""A fresh interpreter, without the optional libraries: everything imports, the light parts stay light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

WITHOUT = """
import importlib.machinery
import importlib.util
import sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""


def run_without(absent: set[str], code: str) -> str:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=sorted(absent)) + code],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_names() -> list[str]:
    folder = ROOT / "src"
    paths = [path for path in folder.rglob("*.py") if path.name != "__main__.py"]
    return sorted(".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in paths)


def test_everything_imports_without_the_optional_libraries() -> None:
    names = module_names()
    assert "videoseek.train" in names
    code = f"""
for name in {[*names, "videoseek_kernels"]!r}:
    importlib.import_module(name)
print(importlib.util.find_spec("videoseek_kernels").origin)
"""
    assert str(ROOT) in run_without({"triton", "flash_attn", "vllm", "peft"}, code)


def test_masked_attention_runs_without_triton() -> None:
    """Two packed documents, equal scores: each row is the mean of its own document's values so far."""
    code = """
import torch
from videoseek_kernels import TokenMask, tdam_attention

end = torch.tensor([2, 2, 5, 5, 5], dtype=torch.int32)
mask = TokenMask(end=end, key_class=torch.ones_like(end), visible=-torch.ones_like(end))
zeros, values = torch.zeros(5, 1, 16), torch.arange(1.0, 6.0)[:, None, None].expand(5, 1, 16)
print(tdam_attention(zeros, zeros, values, mask)[:, 0, 0].tolist())
"""
    assert run_without({"triton"}, code) == "[1.0, 1.5, 3.0, 3.5, 4.0]\n"


def test_help_needs_no_heavy_library() -> None:
    code = """
from videoseek.command import help_text
print(help_text("x").splitlines()[0])
"""
    heavy = {"torch", "transformers", "deepspeed", "av", "numpy", "triton"}
    assert run_without(heavy, code) == "usage: x\n"


def test_samples_and_their_grammar_need_no_heavy_library() -> None:
    """Commands that only read records start without torch."""
    code = """
import videoseek.types
import videoseek.trajectory.grammar
import videoseek.trajectory.wording
print("light")
"""
    assert run_without({"torch", "transformers", "deepspeed", "av", "numpy", "triton"}, code) == "light\n"
