"""Arguments that all runs of a test process share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import REWARD, TINY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a run of all stages that takes seconds."""
    folder = tmp_path_factory.mktemp("shared")
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    return [*TINY.split(), f"reward.functions=[{reward}:by_ids]"]


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "out"
