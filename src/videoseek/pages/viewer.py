"""The trajectory viewer: chosen questions, each with what every model did about it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from videoseek.pages.charts import swatch
from videoseek.pages.markup import Markup, join, tag
from videoseek.pages.records import Question, RecordedTurn, Trajectory, model_label
from videoseek.pages.selection import Chosen
from videoseek.pages.thumbnails import picture_uris, thin_out
from videoseek.pages.timeline import CLUE_COLOUR, CROP_COLOUR, ROW_PIXELS, Lane, Span, timeline, window_text
from videoseek.trajectory.grammar import FORMATS
from videoseek.types import CallRecord, Clip, Sample
from videoseek.video.errors import VideoError

KIND_LABELS = {
    "clue_single_w_tool": "one clue, needs a crop",
    "clue_multi_w_tool": "several clues, need crops",
    "clue_single_wo_tool": "one clue, seen in the overview",
    "clue_multi_wo_tool": "several clues, seen in the overview",
    "temporal_grounding": "when does it happen",
}

_OVERVIEW_FRAMES, _OVERVIEW_SIDE = 16, 96
_CROP_FRAMES, _CROP_SIDE = 6, 128
_MAX_TEXT = 6000
_TAGS = re.compile(f"(</?(?:think|answer|{'|'.join(sorted({fmt.call_tag for fmt in FORMATS.values()}))})>)")


def viewer(chosen: Sequence[Chosen], models: Sequence[str], colours: Mapping[str, str]) -> Markup:
    """The list to choose from, and one article a question; without a script all articles are shown in order."""
    links = [_link(number, choice, models) for number, choice in enumerate(chosen, start=1)]
    articles = [_article(number, choice, models, colours) for number, choice in enumerate(chosen, start=1)]
    return join([tag("nav", *links, class_="chooser", aria_label="Questions"), *articles])


def record_article(trajectory: Trajectory, label: str, notices: Sequence[str]) -> Markup:
    """One recorded sample: question, time line and turns; `notices` are what is wrong with it."""
    sample = trajectory.sample
    return tag(
        "article",
        tag("h3", sample.question),
        tag("p", f"{KIND_LABELS.get(sample.kind, sample.kind)} · {sample.id} · {sample.video}", class_="quiet"),
        *(tag("p", notice, class_="notice") for notice in notices),
        _options(sample),
        _times(Question(sample, {label: [trajectory]}), [label]),
        tag("div", *_turns(trajectory), _rewards(trajectory), class_="episode"),
        class_="question",
    )


def _link(number: int, choice: Chosen, models: Sequence[str]) -> Markup:
    marks = []
    for model in models:
        episode = choice.question.first(model)
        if episode is not None:
            marks.append(tag("span", f"{model_label(model)} ", _mark(episode)))
    return tag(
        "a",
        tag("strong", f"{number}. {choice.question.sample.question}"),
        tag("span", choice.reason, class_="reason"),
        tag("span", *marks, class_="marks"),
        href=f"#question-{number}",
    )


def _article(number: int, choice: Chosen, models: Sequence[str], colours: Mapping[str, str]) -> Markup:
    question = choice.question
    sample = question.sample
    columns = [_column(question, model, colours[model]) for model in models if model in question.episodes]
    return tag(
        "article",
        tag("a", "all questions", href="#episodes", class_="back"),
        tag("h3", f"{number}. {sample.question}"),
        tag("p", f"{choice.reason} · {KIND_LABELS.get(sample.kind, sample.kind)} · {sample.id}", class_="quiet"),
        _options(sample),
        _times(question, models),
        tag("div", *columns, class_="columns"),
        class_="question",
        id=f"question-{number}",
    )


def _options(sample: Sample) -> Markup:
    """The options with their letters, which some data sets write into them, and the key among or after them."""
    items, keys = [], []
    for letter, option in sample.lettered_options:
        shown = option if option.startswith((f"{letter}.", f"{letter})")) else f"{letter}. {option}"
        is_key = letter == sample.answer.strip()
        items.append(tag("li", shown, tag("b", " (key)") if is_key else ""))
        keys += [letter] * is_key
    if not keys:
        items.append(tag("li", "Key: ", tag("b", sample.answer)))
    return tag("ul", *items, class_="options")


def _times(question: Question, models: Sequence[str]) -> Markup:
    """The overview's frames above the time line, on one axis."""
    firsts = {model: question.episodes[model][0] for model in models if model in question.episodes}
    clips = [clip for episode in firsts.values() for clip in _clips(episode)]
    if not clips:
        return tag("p", "No clip was recorded.", class_="notice")
    span = Span(min(clip.start_seconds for clip in clips), max(clip.end_seconds for clip in clips))
    lanes = [Lane(model_label(model), episode.calls) for model, episode in firsts.items()]
    labels = [tag("span", "Clues", style=f"height:{ROW_PIXELS}px")]
    labels += [tag("span", lane.label, style=f"height:{lane.num_rows * ROW_PIXELS}px") for lane in lanes]
    overview = next((episode.overview for episode in firsts.values() if episode.overview is not None), clips[0])
    return tag(
        "div",
        tag("span", "Overview", class_="label"),
        tag("div", _pictures(overview, _OVERVIEW_FRAMES, _OVERVIEW_SIDE), class_="strip"),
        tag("div", *labels, class_="labels"),
        timeline(span, question.sample.clues, lanes),
        tag(
            "p", swatch("clue window", CLUE_COLOUR), swatch("crop, by number of the call", CROP_COLOUR), class_="legend"
        ),
        class_="times",
    )


def _column(question: Question, model: str, colour: str) -> Markup:
    """What a model's first episode said and saw, turn by turn, and what it earned."""
    episodes = question.episodes[model]
    episode = episodes[0]
    count = f"right in {sum(other.is_right for other in episodes)} of {len(episodes)} samples; this is the first"
    return tag(
        "section",
        tag("h4", model_label(model), " ", _mark(episode), style=f"border-color:{colour}"),
        tag("p", "Answer: ", tag("b", _cut(episode.prediction or "none")), f" · {count}", class_="quiet"),
        *_turns(episode),
        _rewards(episode),
        class_="episode",
    )


def _turns(episode: Trajectory) -> Iterator[Markup]:
    """Every turn in order; a user turn after the n-th assistant turn shows the outcome of that turn's calls."""
    assistant = -1
    for turn in episode.turns:
        if turn.role == "assistant":
            assistant += 1
            yield tag("section", _turn_heading(turn), _text(turn), class_="turn assistant")
        elif assistant < 0:  # what every model is told, the same each time
            yield tag("details", tag("summary", _turn_heading(turn)), _text(turn), class_="turn prompt")
        else:
            records = [(i, call) for i, call in enumerate(episode.calls, start=1) if call.turn == assistant]
            outcomes = [_outcome(number, record) for number, record in records]
            yield tag("section", _turn_heading(turn), _text(turn), *outcomes, class_="turn user")


def _turn_heading(turn: RecordedTurn) -> Markup:
    return tag("span", tag("b", turn.role), f" · {_count(turn.num_tokens, 'token')}", class_="role")


def _text(turn: RecordedTurn) -> Markup:
    pieces = _TAGS.split(_cut(turn.text))
    return tag("div", *(tag("i", piece) if _TAGS.fullmatch(piece) else piece for piece in pieces), class_="text")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cut(text: str) -> str:
    rest = len(text) - _MAX_TEXT
    return text if rest <= 0 else f"{text[:_MAX_TEXT]} \N{HORIZONTAL ELLIPSIS} ({rest} more characters)"


def _outcome(number: int, record: CallRecord) -> Markup:
    if record.clip is None:
        code = record.fault.code if record.fault is not None else "no readable call"
        return tag("p", f"Call {number} failed: {code.replace('_', ' ')}", class_="notice")
    clip = record.clip
    strategy = f", {record.call.strategy}" if record.call is not None else ""
    caption = f"Crop {number}: {window_text(clip.start_seconds, clip.end_seconds)}{strategy}, "
    caption += (
        f"{len(clip.frame_seconds)} frames of {clip.width} × {clip.height} px, {_count(clip.num_tokens, 'token')}"
    )
    return tag("figure", _pictures(clip, _CROP_FRAMES, _CROP_SIDE), tag("figcaption", caption), class_="crop-frames")


def _pictures(clip: Clip, max_frames: int, max_side: int) -> Markup:
    """Frames decoded from the source file, or why they cannot be."""
    thin = thin_out(clip, max_frames)
    try:
        uris = picture_uris(thin, max_side)
    except VideoError as error:
        return tag("p", f"No picture: {error.message}", class_="notice")
    times = [f"{seconds:.1f} s" for seconds in thin.frame_seconds]
    return join(tag("img", src=uri, alt=time, title=time) for uri, time in zip(uris, times, strict=True))


def _rewards(episode: Trajectory) -> Markup:
    parts = [
        tag("div", tag("dt", name.replace("_", " ")), tag("dd", f"{value:.3g}"))
        for name, value in episode.rewards.items()
    ]
    ending = tag("div", tag("dt", "ended"), tag("dd", episode.stop_reason.replace("_", " ")))
    return tag("dl", *parts, ending, class_="rewards")


def _mark(episode: Trajectory) -> Markup:
    """Right or wrong, by shape and colour; a share where accuracy is one (the IoU of an answered window)."""
    if math.isnan(episode.accuracy):
        return tag("span", "not scored", class_="mark")
    if 0 < episode.accuracy < 1:
        return tag("span", f"{episode.accuracy:.2f}", class_="mark")
    return (
        tag("span", "\N{CHECK MARK} right", class_="mark right")
        if episode.is_right
        else tag("span", "\N{MULTIPLICATION X} wrong", class_="mark wrong")
    )


def _clips(episode: Trajectory) -> list[Clip]:
    crops = [record.clip for record in episode.calls if record.clip is not None]
    return [episode.overview, *crops] if episode.overview is not None else crops
