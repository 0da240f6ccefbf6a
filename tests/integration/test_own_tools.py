"""Tools and a format from outside the package train end to end, as the pages document them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from support.commands import ROOT, run

from videoseek.trajectory.formats import load_format
from videoseek.types import Call, ParsedTurn, ToolCall

SHORT = ["stages=[sft,grpo]", "sft.steps=2", "grpo.steps=2", "sft.samples_per_step=2", "save_every_steps=0"]
VIDEO = ROOT / "data/samples/videos/cards.mp4"


def written(page: str, path: Path) -> Path:
    """Writes the Python block of a page."""
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    path.write_text(block)
    return path


def scored(folder: Path) -> list[dict[str, float]]:
    """Scores the run's held-out episodes by the command."""
    out = run([str(folder / "trajectories/eval_sft_rl.jsonl")], launcher=[sys.executable, "-m", "videoseek.score"])
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_tools_of_the_users_own_train_end_to_end(tiny: list[str], tmp_path: Path) -> None:
    notes = written("tools.md", tmp_path / "notes.py")
    fmt = load_format("hermes", tools={"note": "", "recall": "", "subtitle_search": ""})
    search = ToolCall("subtitle_search", {"query": "red"})
    first = ParsedTurn("look", (ToolCall("note", {"text": "red"}), Call(4.0, 8.0, "fine"), search), None, ())
    turns = [first, ParsedTurn("again", (ToolCall("recall", {}),), None, ()), ParsedTurn("rows", (), "A", ())]
    record = {"id": "s", "video": str(VIDEO), "question": "What is on the red card?", "answer": "A"}
    record |= {"kind": "clue_single_w_tool", "options": ["rows", "columns"], "clues": [[4, 8]]}  # type: ignore[dict-item]
    lines = [json.dumps(record | {"id": name, "turns": list(map(fmt.render, turns))}) for name in ("a", "b")]
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    root = f"data.video_root={VIDEO.parent}"
    tools = f"tools=[subtitle_search, {notes}:note, {notes}:recall]"
    data = ["prompt.format=hermes", f"data.sft=[{tmp_path / 's.jsonl'}]", f"output_dir={tmp_path / 'out'}", tools, root]
    run([*tiny, *SHORT, "rollout.max_context_tokens=4000", *data])
    episodes = [json.loads(line) for line in (tmp_path / "out/trajectories/eval_sft_rl.jsonl").read_text().splitlines()]
    assert all('"name": "recall"' in episode["turns"][0]["text"] for episode in episodes)
    rewards = [episode["rewards"]["reward"] for episode in episodes]
    assert [row["reward"] for row in scored(tmp_path / "out")] == pytest.approx(rewards)


@pytest.mark.slow
def test_a_format_of_the_users_own_trains_end_to_end(tiny: list[str], tmp_path: Path) -> None:
    clock = written("formats.md", tmp_path / "clock.py")
    run(
        [
            *tiny,
            *SHORT,
            f"prompt.format={clock}:ClockFormat",
            "prompt.style=full",
            f"output_dir={tmp_path / 'out'}",
            "rollout.max_context_tokens=4000",
        ]
    )
    assert len(scored(tmp_path / "out")) > 0
    episode = json.loads((tmp_path / "out/trajectories/eval_sft_rl.jsonl").read_text().splitlines()[0])
    assert "<look>00:12-00:20</look>" in episode["turns"][0]["text"]
