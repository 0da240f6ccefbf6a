"""A vision language model for the clue world: the model reads the received pictures only.

The model sees colours of cards at any size and patterns from 100 px on, and takes times from the texts before the
pictures. Tests with the model therefore cover the real messages of the whole pipeline.
"""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image
from support.openai_server import schema_name

from videoseek.samples.clueworld import COLOURS, PATTERNS

LEGIBLE_PIXELS = 100
LINED = ("rows", "columns")
WHICH = ("first only", "second only", "both", "neither")


@dataclass(frozen=True)
class Sight:
    """A card in a picture: the time, the colour, and the pattern (None: illegible)."""

    seconds: float
    colour: str
    pattern: str | None


@dataclass(frozen=True)
class Shown:
    """A card over a stretch of time."""

    colour: str
    start: float
    end: float
    pattern: str | None


def reply(body: dict[str, Any]) -> str:
    """Returns the model's text for a chat-completions body of any stage; the schema's name tells the stage."""
    content = body["messages"][1]["content"]
    given = json.loads(content[-1]["text"].rpartition("INPUT\n")[2])
    return json.dumps(_STAGES[schema_name(body)](given, look(content)))


def look(content: list[dict[str, Any]]) -> list[Shown]:
    """Returns the cards in all pictures of a message, in the order of time."""
    pictures: list[tuple[float, np.ndarray]] = []
    seconds = 0.0
    for part in content:
        if part["type"] == "text":
            found = re.search(r"^(\d+\.\d) s:$|first frame is at (\d+\.\d)", part["text"])
            seconds = float(found.group(1) or found.group(2)) if found else seconds
        elif part["type"] == "video_url":
            pictures += watch(part["video_url"]["url"], seconds)
        else:
            data = base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
            pictures.append((seconds, np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32)))
    times = sorted({seconds for seconds, _ in pictures})
    step = min((b - a for a, b in zip(times, times[1:], strict=False)), default=1.0)
    shown: list[Shown] = []
    for sight in (sight for seconds, picture in pictures if (sight := see(seconds, picture))):
        if shown and shown[-1].colour == sight.colour and sight.seconds <= shown[-1].end + step / 2:
            last = shown.pop()
            shown.append(Shown(last.colour, last.start, sight.seconds + step, last.pattern or sight.pattern))
        else:
            shown.append(Shown(sight.colour, sight.seconds, sight.seconds + step, sight.pattern))
    return shown


def watch(url: str, first_seconds: float) -> list[tuple[float, np.ndarray]]:
    """Returns the frames of an MP4 with the times in the whole video."""
    with av.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) as film:
        return [
            (first_seconds + float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24").astype(np.float32))
            for frame in film.decode(video=0)
        ]


def see(seconds: float, picture: np.ndarray) -> Sight | None:
    """Returns the card in a picture, RGB float32 [H, W, 3], or None."""
    saturation = picture.max(axis=2) - picture.min(axis=2)
    coloured = saturation > 60
    if coloured.mean() < 0.05:
        return None
    mean = picture[coloured & (saturation >= np.quantile(saturation[coloured], 0.5))].mean(axis=0)
    directions = {name: np.array(rgb) / np.linalg.norm(rgb) for name, rgb in COLOURS.items()}
    colour = max(directions, key=lambda name: float(directions[name] @ mean))
    return Sight(seconds, colour, read_pattern(coloured) if picture.shape[0] >= LEGIBLE_PIXELS else None)


def read_pattern(coloured: np.ndarray) -> str:
    """Reads the pattern of a legible picture, bool [H, W], from the changes between colour and dark."""
    rows, columns = np.flatnonzero(coloured.any(axis=1)), np.flatnonzero(coloured.any(axis=0))
    card = coloured[rows[0] + 6 : rows[-1] - 6, columns[0] + 6 : columns[-1] - 6]
    down = (card[1:] != card[:-1]).mean()
    across = (card[:, 1:] != card[:, :-1]).mean()
    aslant = (card[1:, :-1] != card[:-1, 1:]).mean()
    if across < down / 3:
        return "rows"
    if down < across / 3:
        return "columns"
    return "slashes" if aslant < down / 2 else "checks"


def _caption(given: dict[str, Any], shown: list[Shown]) -> Any:
    start, end = given["stretch"]
    return {
        "captions": [
            {
                "start": max(card.start, start),
                "end": min(card.end, end),
                "text": f"a {card.colour} card with {card.pattern}",
            }
            for card in shown
        ]
    }


def _question(given: dict[str, Any], shown: list[Shown]) -> Any:
    """Returns a question of each quadrant: a pattern, two patterns, a colour, an order."""
    cards = []
    for line in given["captions"]:
        found = re.fullmatch(r"\[(\S+), (\S+)\] a (\w+) card with (\w+)", line)
        assert found is not None, line
        cards.append(Shown(found.group(3), float(found.group(1)), float(found.group(2)), found.group(4)))
    first, second = cards[0], cards[-1]
    absent = sorted(set(COLOURS) - {card.colour for card in cards})[:3]
    which = which_lined(first, second)
    made = [
        (f"What is on the {first.colour} card?", first.pattern, [p for p in PATTERNS if p != first.pattern], [first]),
        (
            f"Are the {first.colour} and {second.colour} cards lined?",
            which,
            [w for w in WHICH if w != which],
            [first, second],
        ),
        ("Which of these cards is shown?", second.colour, absent, [second]),
        (f"Which card comes last, after the {first.colour} card?", second.colour, absent, [first, second]),
    ]
    return {
        "questions": [
            {"question": q, "correct": c, "wrong": w, "evidence": [[card.start, card.end] for card in e]}
            for q, c, w, e in made
        ]
    }


def which_lined(first: Shown, second: Shown) -> str:
    lined = first.pattern in LINED, second.pattern in LINED
    return {(True, False): WHICH[0], (False, True): WHICH[1], (True, True): WHICH[2], (False, False): WHICH[3]}[lined]


def _needed(given: dict[str, Any], shown: list[Shown]) -> list[Shown]:
    """Returns the visible cards of a question."""
    named = [word for word in re.findall(r"\w+", given["question"]) if word in COLOURS]
    if "Which of these" in given["question"]:
        named = [card.colour for card in shown if any(option.endswith(card.colour) for option in given["options"])]
    cards = [next((card for card in shown if card.colour == colour), None) for colour in named]
    if "comes last" in given["question"] and shown:
        cards.append(shown[-1])
    return [card for card in cards if card is not None]


def _localise(given: dict[str, Any], shown: list[Shown]) -> Any:
    return {
        "clues": [
            {
                "start": card.start,
                "end": card.end,
                "cue": f"a {card.colour} card appears",
                "finding": f"the {card.colour} card bears its marks",
                "detail": "small",
            }
            for card in _needed(given, shown)
        ]
    }


def answer_word(given: dict[str, Any], shown: list[Shown]) -> str | None:
    """Returns the visible answer, or None."""
    cards = _needed(given, shown)
    if not cards:
        return None
    if given["question"].startswith("What is on"):
        return cards[0].pattern
    if given["question"].startswith("Are the"):
        if len(cards) < 2 or cards[0].pattern is None or cards[1].pattern is None:
            return None
        return which_lined(cards[0], cards[1])
    return cards[-1].colour


def _verify(given: dict[str, Any], shown: list[Shown]) -> Any:
    word = answer_word(given, shown)
    letter = next((option[0] for option in given["options"] if option[3:] == word), "A")
    seen = "; ".join(f"a {card.colour} card at {card.start:g} to {card.end:g}" for card in shown)
    return {"think": f"I see {seen or 'nothing'}.", "answer": letter, "certain": word is not None}


def _trajectory(given: dict[str, Any], shown: list[Shown]) -> Any:
    steps = [
        {"think": f"{window['cue'].capitalize()} there; I look closer.", "window": window["window"]}
        for window in given["windows"]
    ]
    return {"steps": steps, "final": {"think": given["seen"], "answer": given["answer"]}}


def _judge(given: dict[str, Any], shown: list[Shown]) -> Any:
    return {"analysis": "The times lie within the windows.", "faults": [], "is_valid": True}


_STAGES = {
    "caption": _caption,
    "question": _question,
    "localise": _localise,
    "verify": _verify,
    "trajectory": _trajectory,
    "judge": _judge,
}
