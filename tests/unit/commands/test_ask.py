"""The trail that `ask` prints: what was seen, said and answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.tiny_world import TinyWorld, answer, look, tiny_world

from videoseek.ask import main, trail
from videoseek.config import UsageError
from videoseek.types import StopReason


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


def test_trail_names_clips_calls_and_the_chosen_option(world: TinyWorld) -> None:
    episode = world.replay(0, look(4, 8), look(500, 504), answer("B"))
    lines = list(trail(episode))
    assert [line.split("  ")[0] for line in lines if not line.startswith(" ")] == [
        "overview",
        "turn 1",
        "turn 2",
        "turn 3",
        "answer",
    ]
    assert lines[2].startswith("  crop    4.0 to 8.0 s: 2 frames of ")
    assert lines[4].startswith("  failed  The window [500, 504] must lie between 0 and ")
    assert lines[-1] == f"answer    B. {episode.sample.options[1]}"


def test_trail_without_an_answer_says_why(world: TinyWorld) -> None:
    episode = world.replay(0, look(4, 8), look(4, 8))
    episode.stop_reason = StopReason.TURN_LIMIT
    assert list(trail(episode))[-1] == "answer    none (turn limit)"


def test_an_answer_in_words_stays_as_it_is(world: TinyWorld) -> None:
    episode = world.replay(0, answer("a red card"))
    episode.sample = replace(episode.sample, options=())
    assert list(trail(episode))[-1] == "answer    a red card"


@pytest.mark.parametrize("arguments", [[], ["video.mp4"]])
def test_ask_needs_a_video_and_a_question(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="a video and a question are wanted"):
        main(arguments)


def test_help_names_the_keys_of_ask_and_the_flag_that_ask_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {"options", "out", "model", "video.overview_fps"} <= set(names)
    assert [name for name in names if name.startswith("--")] == ["--help"]


@pytest.mark.parametrize("flag", ["--dry-run", "--list-recipes", "--print-config"])
def test_flags_of_training_are_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=f"{flag} is no flag of this command"):
        main(["video.mp4", "What?", flag, "model=tiny"])
