"""`python -m videoseek.data clueworld`: generates videos, questions and trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from videoseek.command import parse_files
from videoseek.config import UsageError, option
from videoseek.files import remove_abandoned
from videoseek.runtime import Progress
from videoseek.samples.clueworld import SAMPLES, SPLITS, generate

USAGE = "python -m videoseek.data clueworld out=DIR [num=N] [seed=S] [split=SPLIT]"


@dataclass(frozen=True)
class ClueWorldSettings:
    out: str | None = option(None, "folder to make, which must not exist yet")
    num: int = option(1000, "number of samples", at_least=1)
    seed: int = option(0, "of everything that is drawn", at_least=0)
    split: str = option(
        "train", "questions with trajectories (train, heldout) or perception (base*)", choices=tuple(SPLITS)
    )


def main(arguments: list[str]) -> None:
    files, settings = parse_files(arguments, ClueWorldSettings(), USAGE)
    if files:
        raise UsageError(f"clueworld reads no file, got {files[0]!r}; {USAGE}")
    if settings.out is None:
        raise UsageError(f"out= is missing; {USAGE}")
    folder = Path(settings.out).expanduser().absolute()
    if folder.exists():
        raise UsageError(f"out={settings.out} exists already; name a new folder")
    remove_abandoned(folder.parent, folder.name)
    with Progress("videos", 1) as progress:
        generate(folder, settings.split, settings.num, settings.seed, progress.track)
    print(folder / SAMPLES)
