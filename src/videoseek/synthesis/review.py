"""`review.html` of a synthesis run: a random draw of samples for human review, and the rejections with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from videoseek.config import VideoConfig
from videoseek.files import write_text
from videoseek.pages.charts import swatch
from videoseek.pages.page import Markup, join, tag
from videoseek.pages.viewer import (
    CLUE_COLOUR,
    CROP_COLOUR,
    KIND_LABELS,
    ROW_PIXELS,
    Lane,
    Span,
    picture_uris,
    thin_out,
    timeline,
    window_text,
)
from videoseek.synthesis.items import Clue, Item, hash_number
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.wording import lettered
from videoseek.types import Call, CallRecord, Clip, letter_options
from videoseek.video.decode import probe
from videoseek.video.errors import VideoError
from videoseek.video.quotas import crop_clip, overview_clip

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_OVERVIEW_FRAMES, _OVERVIEW_SIDE = 16, 128
_CROP_FRAMES, _CROP_SIDE = 6, 224
_MAX_REJECTED = 40


def write_review(items: Sequence[Item], settings: SynthesisSettings) -> Path:
    """Writes `review.html` into the run's folder atomically. The draw depends on the seed and the ids alone."""
    path = settings.folder / "review.html"
    write_text(path, page(items, settings))
    return path


def page(items: Sequence[Item], settings: SynthesisSettings) -> str:
    """Returns the page as HTML without outside references. Decodes the clips on the page."""
    accepted = [item for item in items if item.rejection is None]
    shown = _draw(accepted, settings.review, settings.seed)
    rejected = _draw([item for item in items if item.rejection is not None], _MAX_REJECTED, settings.seed)
    title = "videoseek: synthesised samples for review"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup((files("videoseek.pages") / "page.css").read_text(encoding="utf-8"))),
    )
    lead = (
        f"{len(accepted)} of {len(items)} items passed every stage; {len(shown)} of them, drawn at random, are below."
    )
    advice = "Look for windows that miss the evidence, thoughts that know too much, and answers that are not in the "
    advice += "pictures. Pictures are cut from the source files, with the quotas that training will pay."
    body = tag(
        "main",
        tag("h1", title),
        tag("p", lead, class_="lead"),
        tag("p", advice, class_="quiet"),
        *(_article(number, item, settings.video, settings.format) for number, item in enumerate(shown, 1)),
        *_rejections(items, rejected),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _draw(items: Sequence[Item], number: int, seed: int) -> list[Item]:
    return sorted(items, key=lambda item: hash_number(seed, "review", item.id))[:number]


def _article(number: int, item: Item, limits: VideoConfig, format_name: str) -> Markup:
    question = item.require_question()
    options = [
        tag("li", line, tag("b", " (key)") if question.answer[0] == letter else "")
        for (letter, _), line in zip(letter_options(question.options), lettered(question.options), strict=True)
    ]
    if not options:
        options = [tag("li", "Key: ", tag("b", question.answer))]
    try:
        pictures = _episode(item, limits, format_name)
    except VideoError as error:
        pictures = tag("p", f"No picture: {error.message}", class_="notice")
    return tag(
        "article",
        tag("h3", f"{number}. {question.text}"),
        tag("p", f"{KIND_LABELS[item.kind]} \N{MIDDLE DOT} {item.id}", class_="quiet"),
        tag("ul", *options, class_="options"),
        pictures,
        tag("details", tag("summary", "What the clips told, and what the judge said"), _notes(item)),
        class_="question",
    )


def _episode(item: Item, limits: VideoConfig, format_name: str) -> Markup:
    """Returns the overview and the time line on one axis, then every turn with the clips of its calls."""
    info = probe(item.video)
    overview = overview_clip(info, limits)
    fmt = FORMATS[format_name]()
    calls = [
        (turn, call, crop_clip(info, call.start_seconds, call.end_seconds, call.strategy, limits))
        for turn, text in enumerate(item.turns)
        for call in fmt.parse(text).crops
    ]
    lane = Lane("Calls", tuple(CallRecord(turn, call, None, clip) for turn, call, clip in calls))
    labels = [tag("span", "Clues", style=f"height:{ROW_PIXELS}px")]
    labels.append(tag("span", lane.label, style=f"height:{lane.num_rows * ROW_PIXELS}px"))
    times = tag(
        "div",
        tag("span", "Overview", class_="label"),
        tag("div", _pictures(overview, _OVERVIEW_FRAMES, _OVERVIEW_SIDE), class_="strip"),
        tag("div", *labels, class_="labels"),
        timeline(Span(0.0, info.duration_seconds), [clue.window for clue in item.clues], [lane]),
        tag("p", swatch("clue window", CLUE_COLOUR), swatch("call, by number", CROP_COLOUR), class_="legend"),
        class_="times",
    )
    return join([times, *_turns(item, calls)])


def _turns(item: Item, calls: Sequence[tuple[int, Call, Clip]]) -> Iterator[Markup]:
    for index, text in enumerate(item.turns):
        crops = [_crop(call, clip) for turn, call, clip in calls if turn == index]
        yield tag("section", tag("div", text, class_="text"), *crops, class_="turn assistant")


def _crop(call: Call, clip: Clip) -> Markup:
    caption = f"{window_text(clip.start_seconds, clip.end_seconds)}, {call.strategy}, {len(clip.frame_seconds)} frames "
    caption += f"of {clip.width} \N{MULTIPLICATION SIGN} {clip.height} px, {clip.num_tokens} tokens"
    pictures = _pictures(clip, _CROP_FRAMES, _CROP_SIDE)
    return tag("figure", pictures, tag("figcaption", caption), class_="crop-frames")


def _pictures(clip: Clip, max_frames: int, max_side: int) -> Markup:
    thin = thin_out(clip, max_frames)
    times = [f"{seconds:.1f} s" for seconds in thin.frame_seconds]
    uris = picture_uris(thin, max_side)
    return join(tag("img", src=uri, alt=time, title=time) for uri, time in zip(uris, times, strict=True))


def _notes(item: Item) -> Markup:
    rows = [("seen", item.rationale), ("judge", item.analysis)]
    rows += [(f"clue {number}", _clue_text(clue)) for number, clue in enumerate(item.clues, 1)]
    return tag(
        "table", tag("tbody", *(tag("tr", tag("th", name), tag("td", text)) for name, text in rows)), class_="facts"
    )


def _clue_text(clue: Clue) -> str:
    return f"{window_text(*clue.window)}, {clue.detail}: {clue.cue} / {clue.finding}"


def _rejections(items: Sequence[Item], shown: Sequence[Item]) -> Iterator[Markup]:
    """Yields the counts of rejections by stage and code, then the reasons of the items in `shown`."""
    counts = Counter((item.rejection.stage, item.rejection.code) for item in items if item.rejection is not None)
    if not counts:
        return
    yield tag("h2", "Rejected")
    rows = [tag("tr", tag("td", f"{stage}: {code}"), tag("td", str(n))) for (stage, code), n in counts.most_common()]
    yield tag("table", tag("tbody", *rows))
    lines = [
        tag(
            "tr",
            tag("th", f"{item.rejection.stage}: {item.rejection.code}", scope="row"),
            tag("td", item.question.text if item.question is not None else "", " ", item.rejection.reason),
            tag("td", item.id),
        )
        for item in shown
        if item.rejection is not None
    ]
    yield tag("details", tag("summary", f"{len(lines)} of them"), tag("table", tag("tbody", *lines), class_="facts"))
