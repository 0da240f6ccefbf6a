"""Shared arguments of all runs of a test process."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import REWARD, TINY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns the arguments of a run of all stages within seconds."""
    folder = tmp_path_factory.mktemp("shared")
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    return [*TINY.split(), f"reward.functions=[{reward}:by_ids]"]


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "out"
