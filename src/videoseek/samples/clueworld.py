"""Clue world: generated videos. The overview shows the time of a card, and only a crop shows the pattern on the card.

A video is a dull, drifting grey with a few coloured cards, each shown for a slot of four seconds. A card's pattern has
a period of 6 px: the pattern blurs into the card's colour at 28 px (overview) and is readable at 56 px (crop). Every
pattern covers half of the card, so the mean colour is the same for all patterns. The phase of a pattern starts at the
frame's corner instead of the card's, so every 14-px patch of a crop shows the same part of the pattern.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoseek.files import remove_abandoned, whole_folder
from videoseek.samples.schema import read_samples, write_samples
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.grammar import FAULTS
from videoseek.types import STRATEGIES, Call, Sample, letter_options

COLOURS = {
    "red": (210, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (225, 205, 50),
    "purple": (150, 50, 180),
    "cyan": (60, 200, 210),
}
PATTERNS = ("rows", "columns", "checks", "slashes")
NOTHING = "nothing"
#: Half of the patterns are lined, so the four answers about two cards are equally likely.
_LINED = ("rows", "columns")
_WHICH = ("first only", "second only", "both", "neither")
_YES_NO = ("yes", "no")
_OPTIONS = (PATTERNS, _WHICH, _YES_NO)

SIZE = 144
FPS = 2
SLOT_SECONDS = 4
NUM_SLOTS = 8
NUM_CARDS = 3
DURATION_SECONDS = NUM_SLOTS * SLOT_SECONDS
_CARD_SIZE = 92
_HALF_PERIOD = 3
_WORLD_VERSION = 6

#: Split -> number of questions about one video.
SPLITS = {"base": 6, "base_heldout": 6, "train": 6, "heldout": 4}

#: Name of the file of a generated split; the videos lie in a folder beside it.
SAMPLES = "samples.jsonl"
_CACHED = "clueworld-"
_FORMAT = FORMATS["grounding"]("brief")

#: Shares of the kinds of question, and shares of the faults in generated trajectories.
_KIND_SHARES = {"single": 0.5, "multi": 0.3, "direct": 0.2}
_NO_CALL_SHARE = 0.2
_WRONG_WINDOW_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Card:
    slot: int
    colour: str
    pattern: str

    @property
    def window(self) -> tuple[int, int]:
        return self.slot * SLOT_SECONDS, (self.slot + 1) * SLOT_SECONDS

    @property
    def place(self) -> str:
        return f"{self.colour} at {self.window[0]} to {self.window[1]}"


@dataclass(frozen=True, slots=True)
class World:
    """One video: its file and its cards in order of time."""

    video: str
    cards: tuple[Card, ...]

    def card(self, colour: str) -> Card | None:
        return next((card for card in self.cards if card.colour == colour), None)


def phrases() -> list[str]:
    """Returns the pieces of clue world's conversations, for a tokenizer with a token for each piece."""
    options = [" ".join(f"{letter}. {word}" for letter, word in letter_options(words)) for words in _OPTIONS]
    protocol = ["<think>", "</think>\n", "<grounding>", "</grounding>", "<answer>", "</answer>", "system\n", "user\n"]
    protocol += ['{"temporal_segment": [', '], "sampling_strategy": "', '"}', *STRATEGIES, "assistant\n"]
    protocol += [_FORMAT.system_prompt(), "\nQuestion: ", "Question: ", "\nOptions: ", "Observation ", "Fault: "]
    protocol += [": ", "This video is uniformly sampled at ", " fps, contains ", " frames from ", " seconds to "]
    protocol += [" seconds.", "0.50", *(code.replace("_", " ") for code in FAULTS)]
    words = [*COLOURS, *PATTERNS, NOTHING, " at ", " to ", " and ", ", ", "; ", "no "]
    words += ["What is on the ", " card?", "Name the cards.", "Are the ", " cards lined?"]
    words += ["Is a ", " card shown?", "What is shown?"]
    seconds = range(DURATION_SECONDS + 1)
    return [*protocol, *options, *words, *(f"{second}.0" for second in seconds), *map(str, seconds)]


def prepare(
    cache_dir: Path, split: str, num_samples: int, seed: int, on_video: Callable[[int, int], None] | None = None
) -> Path:
    """Writes the videos and the JSONL of a split (see `SPLITS`) unless the cache has them; returns the JSONL's path.

    Each split has its own random state, so two splits share no video. `on_video(done, total)` reports progress.
    """
    key = hashlib.sha256(f"{_WORLD_VERSION}/{split}/{num_samples}/{seed}".encode()).hexdigest()[:12]
    folder = cache_dir.resolve() / f"{_CACHED}{split}-{key}"
    if not (folder / SAMPLES).is_file():
        remove_abandoned(folder.parent, _CACHED)
        generate(folder, split, num_samples, seed, on_video)
    return folder / SAMPLES


def generate(
    folder: Path, split: str, num_samples: int, seed: int, on_video: Callable[[int, int], None] | None = None
) -> None:
    """Writes SAMPLES and the videos to a new folder, whole or not at all."""
    with whole_folder(folder) as partial:
        (partial / "videos").mkdir()
        _generate(partial, split, num_samples, seed, on_video)


def _generate(
    folder: Path, split: str, num_samples: int, seed: int, on_video: Callable[[int, int], None] | None
) -> None:
    num_videos = -(-num_samples // SPLITS[split])
    chance = random.Random(f"{split}/{seed}")
    samples: list[Sample] = []
    make = _perception_samples if split.startswith("base") else _task_samples
    for index in range(num_videos):
        video = folder / "videos" / f"{split}-{index:05d}.mp4"
        world = World(str(video), _draw_cards(chance))
        write_video(world, chance.getrandbits(32))
        samples += make(world, f"{split}-{index:05d}", chance, SPLITS[split])
        if on_video is not None:
            on_video(index + 1, num_videos)
    write_samples(folder / SAMPLES, samples[:num_samples])


def load(cache_dir: Path, split: str, num_samples: int, seed: int) -> list[Sample]:
    """Returns the samples of a split (see `prepare`)."""
    return read_samples(prepare(cache_dir, split, num_samples, seed))


def _draw_cards(chance: random.Random) -> tuple[Card, ...]:
    slots = sorted(chance.sample(range(NUM_SLOTS), NUM_CARDS))
    colours = chance.sample(list(COLOURS), NUM_CARDS)
    patterns = [chance.choice(PATTERNS) for _ in slots]
    return tuple(Card(*card) for card in zip(slots, colours, patterns, strict=True))


def write_video(world: World, seed: int) -> None:
    """Encodes a world as H.264."""
    with av.open(world.video, "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "ultrafast", "g": str(2 * FPS), "threads": "1"}
        for pixels in _frames(world, seed):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            # An encoder that converts the format itself sets up a threaded scaler for each frame.
            container.mux(stream.encode(VideoReformatter().reformat(frame, format="yuv420p", threads=1)))
        container.mux(stream.encode())


def _frames(world: World, seed: int) -> Iterator[np.ndarray]:
    """Yields the frames, uint8 [SIZE, SIZE, 3]."""
    noise = np.random.default_rng(seed)
    texture = noise.normal(0, 6, (SIZE // 8, SIZE // 8, 1)).repeat(8, 0).repeat(8, 1).astype(np.float32)
    grain = noise.normal(0, 2, (4, SIZE, SIZE, 1)).astype(np.float32)
    level, drift = noise.uniform(90, 140), noise.uniform(-0.8, 0.8)
    margin = SIZE - _CARD_SIZE
    places = {card.slot: noise.integers(margin // 4, margin - margin // 4, 2) for card in world.cards}
    painted = {card.slot: _paint(card) for card in world.cards}
    for index in range(DURATION_SECONDS * FPS):
        pixels = np.broadcast_to(level + drift * index + texture + grain[index % 4], (SIZE, SIZE, 3))
        pixels = pixels.clip(0, 255).astype(np.uint8)
        slot = index // (FPS * SLOT_SECONDS)
        if slot in painted:
            top, left = places[slot]
            area = slice(top, top + _CARD_SIZE), slice(left, left + _CARD_SIZE)
            pixels[area] = painted[slot][area]
        yield pixels


def _paint(card: Card) -> np.ndarray:
    """Returns a whole frame, uint8 [SIZE, SIZE, 3], in the card's colour and pattern."""
    y, x = np.mgrid[:SIZE, :SIZE]
    rows, columns, diagonals = y // _HALF_PERIOD, x // _HALF_PERIOD, (x + y) // _HALF_PERIOD
    cells = {"rows": rows, "columns": columns, "checks": rows + columns, "slashes": diagonals}[card.pattern]
    return np.where((cells % 2 == 0)[..., None], COLOURS[card.colour], (20, 20, 20)).astype(np.uint8)


def _task_samples(world: World, name: str, chance: random.Random, count: int) -> list[Sample]:
    """Returns questions about one video with trajectories. Some trajectories are faulty."""
    makers = {"single": _single, "multi": _multi, "direct": _direct}
    kinds = chance.choices(list(_KIND_SHARES), list(_KIND_SHARES.values()), k=count)
    return [makers[kind](world, f"{name}-{index}", chance) for index, kind in enumerate(kinds)]


def _look(think: str, window: tuple[int, int]) -> str:
    return _FORMAT.render_turn(think, Call(float(window[0]), float(window[1]), "medium"), None)


def _conclude(think: str, answer: str) -> str:
    return _FORMAT.render_turn(think, None, answer)


def _wrong_look(card: Card, chance: random.Random, seen: str) -> list[str]:
    """Returns a call of a window too wide to read, or a call of a wrong or reversed window and then the right call."""
    right = _look(seen + card.place, card.window)
    fault = chance.choice(("wide", "elsewhere", "reversed"))
    if fault == "wide":
        start = card.window[0] if card.slot + 1 < NUM_SLOTS else card.window[0] - SLOT_SECONDS
        return [_look(seen + card.place, (start, start + 2 * SLOT_SECONDS))]
    if fault == "reversed":
        start, end = card.window  # the grammar refuses to render a reversed call, so the text is changed
        return [right.replace(f"[{start}, {end}]", f"[{end}, {start}]"), right]
    other = chance.choice([slot for slot in range(NUM_SLOTS) if slot != card.slot]) * SLOT_SECONDS
    window = other, other + SLOT_SECONDS
    return [_look(f"{seen}{card.colour} at {window[0]} to {window[1]}", window), right]


def _looks(card: Card, chance: random.Random, seen: str = "") -> list[str]:
    """Returns the calls for a card, sometimes faulty. Each call repeats the text `seen`, the earlier observations."""
    if chance.random() < _WRONG_WINDOW_SHARE:
        return _wrong_look(card, chance, seen)
    return [_look(seen + card.place, card.window)]


def _faults(name: str) -> random.Random:
    """Returns a random state for the faults of one trajectory: a change of the faults leaves the questions alone."""
    return random.Random(f"faults/{name}")


def _single(world: World, name: str, chance: random.Random) -> Sample:
    faults = _faults(name)
    card = chance.choice(world.cards)
    answer = next(letter for letter, pattern in letter_options(PATTERNS) if pattern == card.pattern)
    looks = [] if faults.random() < _NO_CALL_SHARE else _looks(card, faults)
    return Sample(
        id=name,
        video=world.video,
        question=f"What is on the {card.colour} card?",
        options=PATTERNS,
        answer=answer,
        kind="clue_single_w_tool",
        clues=(card.window,),
        turns=(*looks, _conclude(card.pattern if looks else card.place, answer)),
    )


def _multi(world: World, name: str, chance: random.Random) -> Sample:
    faults = _faults(name)
    first, second = chance.sample(world.cards, 2)
    lined = first.pattern in _LINED, second.pattern in _LINED
    answer = {(True, False): "A", (False, True): "B", (True, True): "C", (False, False): "D"}[lined]
    turns: tuple[str, ...] = (_conclude(first.place, answer),)
    if faults.random() >= _NO_CALL_SHARE:
        looks = [_look(first.place, first.window), *_looks(second, faults, seen=f"{first.pattern}; ")]
        turns = (*looks, _conclude(f"{first.pattern} and {second.pattern}", answer))
    return Sample(
        id=name,
        video=world.video,
        question=f"Are the {first.colour} and {second.colour} cards lined?",
        options=_WHICH,
        answer=answer,
        kind="clue_multi_w_tool",
        clues=tuple(sorted((first.window, second.window))),
        turns=turns,
    )


def _direct(world: World, name: str, chance: random.Random) -> Sample:
    shown = {card.colour for card in world.cards}
    present = chance.random() < 0.5
    colour = chance.choice(sorted(shown if present else set(COLOURS) - shown))
    card = world.card(colour)
    answer = "A" if card else "B"
    place = card.place if card else f"no {colour}"
    needless = [_look(place, card.window)] if card and _faults(name).random() < _NO_CALL_SHARE else []
    return Sample(
        id=name,
        video=world.video,
        question=f"Is a {colour} card shown?",
        options=_YES_NO,
        answer=answer,
        kind="clue_single_wo_tool",
        clues=(card.window,) if card else (),
        turns=(*needless, _conclude(place, answer)),
    )


def _perception_samples(world: World, name: str, chance: random.Random, count: int) -> list[Sample]:
    """Returns samples of perception outside the protocol: time lines, when-questions and crops, a third each.

    A time line names cards in any order, some more than once. In order of time, the count of earlier cards would reveal
    the seconds. In lists of equal length, the model would learn to look up times at a few positions of the text only.
    """
    samples = []
    for index in range(count):
        if index % 3 == 0:
            again = chance.choices(world.cards, k=chance.randint(0, 3))
            places = [card.place for card in (*chance.sample(world.cards, NUM_CARDS), *again)]
            samples.append(_perception(world, f"{name}-name-{index}", "Name the cards.", ", ".join(places)))
        elif index % 3 == 1:
            task = chance.choice((_single, _multi, _direct))(world, f"{name}-when-{index}", chance)
            colours = [word for word in task.question.split() if word in COLOURS]
            cards = [world.card(colour) for colour in colours]
            places = [card.place if card else f"no {colour}" for card, colour in zip(cards, colours, strict=True)]
            samples.append(_perception(world, task.id, task.question, ", ".join(places), options=task.options))
        else:
            slot = chance.choice(range(NUM_SLOTS)) if chance.random() < 0.25 else chance.choice(world.cards).slot
            pattern = next((card.pattern for card in world.cards if card.slot == slot), NOTHING)
            window = (float(slot * SLOT_SECONDS), float((slot + 1) * SLOT_SECONDS))
            samples.append(_perception(world, f"{name}-crop-{index}", "What is shown?", pattern, window=window))
    return samples


def _perception(
    world: World,
    name: str,
    question: str,
    answer: str,
    *,
    options: tuple[str, ...] = (),
    window: tuple[float, float] | None = None,
) -> Sample:
    return Sample(
        id=name,
        video=world.video,
        question=question,
        options=options,
        answer=answer,
        kind="perception",
        turns=(f"<think>{answer}</think>",),
        window=window,
    )
