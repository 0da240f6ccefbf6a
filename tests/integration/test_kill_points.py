"""A run killed at a named place and resumed ends like an undisturbed run: weights, metrics and trajectories."""

from __future__ import annotations

import json
import random
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from support.commands import forked, numbers, summary
from support.kill_points import KINDS, watch

#: Evaluations and checkpoints at every step or two, and few steps: the whole run takes seconds.
KEYS = ["stages=[sft,grpo]", "sft.steps=4", "grpo.steps=2", "save_every_steps=1", "keep_checkpoints=1", "tracker=[]"]
KEYS += ["evaluate.every_steps=2", "evaluate.num_questions=3", "evaluate.num_questions_inside=2"]
SEED = 0
POINTS_BY_KIND = 4


@pytest.fixture(scope="module")
def undisturbed(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run that nobody killed, and beside it the file `places` of all places it passed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    forked([*tiny, *KEYS, f"output_dir={folder / 'out'}"], folder, prepare=partial(watch, str(folder / "places"), None))
    return folder / "out"


@cache
def drawn_places(log: Path) -> list[str]:
    """Returns places drawn by the seed, as many of each kind of work."""
    chance = random.Random(SEED)
    places = sorted(set(log.read_text().splitlines()))
    by_kind = [[place for place in places if place.startswith(f"{kind} | ")] for kind in KINDS]
    chosen = [chance.sample(of_kind, POINTS_BY_KIND) for of_kind in by_kind]
    return [place for turn in zip(*chosen, strict=True) for place in turn]


@pytest.mark.slow
def test_evaluation_and_background_writing_change_no_number(undisturbed: Path, tiny: list[str], tmp_path: Path) -> None:
    """A run without evaluations that waits for its checkpoints, due by minutes in SFT and by steps in GRPO."""
    keys = ["evaluate.every_steps=null", "save_in_background=false", "save_every_minutes=1e-9", "save_every_steps=0"]
    output_dir = tmp_path / "out"
    forked([*tiny, *KEYS, *keys, "grpo.save_every_steps=1", f"output_dir={output_dir}"], tmp_path)
    mine, wanted = contents(output_dir), contents(undisturbed)
    evaluated = [row for row in wanted["metrics"] if "eval/accuracy" in row]
    assert [(row["stage"], row["step"]) for row in evaluated] == [("sft", 2), ("sft", 4), ("grpo", 2)]
    assert mine["metrics"] == [
        {name: value for name, value in row.items() if not name.startswith("eval/")} for row in wanted["metrics"]
    ]
    for name in ("summary", "links"):
        assert mine[name] == wanted[name]
    # The best steps are in trainer_state.json and best.json, and the best of SFT is kept.
    shared = {name for name in mine["files"] if not name.endswith("trainer_state.json")}
    assert {name: mine["files"][name] for name in shared} == {name: wanted["files"][name] for name in shared}
    best = json.loads(wanted["files"]["best.json"])
    assert {stage: entry["step"] for stage, entry in best.items()}.keys() == {"sft", "grpo"}
    assert {f"{entry['checkpoint']}/model.safetensors" for entry in best.values()} <= wanted["files"].keys()
    assert len((undisturbed / "trajectories/greedy_sft_step_000002.jsonl").read_text().splitlines()) == 2


def contents(output_dir: Path) -> dict[str, Any]:
    """Returns everything of a run that must not depend on kills. Times do."""
    fixed = ("*.safetensors", "trajectories/*", "evaluation-*.json", "best.json", "*/trainer_state.json")
    files = {path for pattern in fixed for path in output_dir.rglob(pattern)}
    return {
        "files": {str(path.relative_to(output_dir)): path.read_bytes() for path in files},
        "metrics": numbers(output_dir),
        "summary": summary(output_dir),
        "links": {name: (output_dir / name).readlink() for name in ("last", "final")},
        "names": {path.name for path in output_dir.iterdir()},
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=[] if n in (2, 4) else pytest.mark.thorough) for n in range(len(KINDS) * POINTS_BY_KIND)],
)
def test_a_run_killed_at_a_drawn_place_ends_like_an_undisturbed_run(
    number: int, undisturbed: Path, tiny: list[str], tmp_path: Path
) -> None:
    place = drawn_places(undisturbed.parent / "places")[number]
    print(f"seed {SEED}: killed at {place}")  # shown when the test fails
    arguments = [*tiny, *KEYS, f"output_dir={tmp_path / 'out'}", "resume=auto"]
    forked(arguments, tmp_path, code=-9, prepare=partial(watch, str(tmp_path / "places"), place))
    assert (tmp_path / "places").read_text().splitlines()[-1] == place or place.startswith("checkpoint")
    forked(arguments, tmp_path)
    mine, wanted = contents(tmp_path / "out"), contents(undisturbed)
    for part, content in wanted.items():
        assert mine[part] == content, part
    attempts = json.loads((tmp_path / "out/env.json").read_text())["attempts"]
    # A second process finds nothing to do after a kill at the very end.
    assert len(attempts) in (1, 2) and all(attempt["wall_seconds"] > 0 for attempt in attempts)
