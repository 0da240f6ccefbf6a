"""The wheel holds all that a run needs and nothing else, and works far from the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INGREDIENTS = ("src", "kernels", "recipes", "data/tiny_base", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def run(arguments: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        arguments, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the source tree stays clean; without isolation, so that nothing is fetched."""
    source = tmp_path_factory.mktemp("source")
    for name in INGREDIENTS:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(path, source / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."], source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    run([*pip, str(wheel)], target)
    return target


def python(installed: Path, folder: Path, *arguments: str) -> str:
    return run([sys.executable, *arguments], folder, PYTHONPATH=str(installed))


def test_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    expected = set()
    for package, folder in {
        "videoseek": ROOT / "src/videoseek",
        "videoseek_kernels": ROOT / "kernels/videoseek_kernels",
        "videoseek/recipes": ROOT / "recipes",
        "videoseek/tiny_base": ROOT / "data/tiny_base",
    }.items():
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".md")]
        files = [path for path in files if path.parent != ROOT / "recipes/launch"]  # examples of the repository
        expected |= {f"{package}/{path.relative_to(folder)}" for path in files}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 6 * 2**20


def test_both_packages_import_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import videoseek, videoseek_kernels; print(videoseek.__file__); print(videoseek_kernels.__file__)"
    lines = python(installed, tmp_path, "-c", code).split()
    assert [Path(line).is_relative_to(installed) for line in lines] == [True, True]


def test_recipe_resolves_by_name_elsewhere(installed: Path, tmp_path: Path) -> None:
    shown = python(installed, tmp_path, "-m", "videoseek.train", "recipe=sft", "seed=3", "--print-config")
    assert "seed: 3\n" in shown
    assert "style: brief\n" in shown, "of its base, sft_rl"


def test_recipe_files_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "from videoseek.config_merge import list_recipes; print(*list_recipes().values(), sep='\\n')"
    paths = python(installed, tmp_path, "-c", code).splitlines()
    assert [Path(path).parent for path in paths] == [installed / "videoseek/recipes"] * len(paths)
    assert {Path(path).name for path in paths} == {path.name for path in (ROOT / "recipes").glob("*.yaml")}
