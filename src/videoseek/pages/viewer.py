"""The trajectory viewer: each chosen question with its time line, its frames and every model's turns."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from videoseek.pages.charts import Axis, swatch
from videoseek.pages.page import Markup, join, tag
from videoseek.pages.run_files import ChosenQuestion, Question, model_label
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory_record import RecordedTurn, TrajectoryRecord
from videoseek.types import Call, CallRecord, Clip, Interval, Sample, ToolCall
from videoseek.video import worker
from videoseek.video.errors import VideoError

KIND_LABELS = {
    "clue_single_w_tool": "one clue, needs a crop",
    "clue_multi_w_tool": "several clues, need crops",
    "clue_single_wo_tool": "one clue, seen in the overview",
    "clue_multi_wo_tool": "several clues, seen in the overview",
    "temporal_grounding": "when does it happen",
}

CLUE_COLOUR = "#009e73"
CROP_COLOUR = "#c04a00"
#: Height of a row of the time line.
ROW_PIXELS = 20
_AXIS_PIXELS = 22

#: The limit of frames in a strip, and the longer side of a picture in pixels.
_OVERVIEW_FRAMES, _OVERVIEW_SIDE = 16, 96
_CROP_FRAMES, _CROP_SIDE = 6, 128
_JPEG_QUALITY = 85
_MAX_TEXT_CHARACTERS = 6000
_TAGS = {tag for fmt in FORMATS.values() for tag in ("think", "answer", fmt.call_tag, *fmt.further) if tag}
_GRAMMAR_TAGS = re.compile(f"(</?(?:{'|'.join(sorted(_TAGS))})>)")


def viewer(chosen: Sequence[ChosenQuestion], models: Sequence[str], colours: Mapping[str, str]) -> Markup:
    """Returns the list of questions and one article per question. Without the script a browser shows all articles."""
    links = [_question_link(number, choice, models) for number, choice in enumerate(chosen, start=1)]
    articles = [_question_article(number, choice, models, colours) for number, choice in enumerate(chosen, start=1)]
    return join([tag("nav", *links, class_="chooser", aria_label="Questions"), *articles])


def record_article(trajectory: TrajectoryRecord, label: str, notices: Sequence[str]) -> Markup:
    """Shows one recorded episode: question, time line and turns. `notices` name the faults of the sample."""
    sample = trajectory.sample
    return tag(
        "article",
        tag("h3", sample.question),
        tag("p", f"{KIND_LABELS.get(sample.kind, sample.kind)} · {sample.id} · {sample.video}", class_="quiet"),
        *(tag("p", notice, class_="notice") for notice in notices),
        _option_list(sample),
        _frames_and_timeline(Question(sample, {label: [trajectory]}), [label]),
        tag("div", *_turn_sections(trajectory), _reward_list(trajectory), class_="episode"),
        class_="question",
    )


def _question_link(number: int, choice: ChosenQuestion, models: Sequence[str]) -> Markup:
    marks = []
    for model in models:
        episode = choice.question.first(model)
        if episode is not None:
            marks.append(tag("span", f"{model_label(model)} ", _answer_mark(episode)))
    return tag(
        "a",
        tag("strong", f"{number}. {choice.question.sample.question}"),
        tag("span", choice.reason, class_="reason"),
        tag("span", *marks, class_="marks"),
        href=f"#question-{number}",
    )


def _question_article(number: int, choice: ChosenQuestion, models: Sequence[str], colours: Mapping[str, str]) -> Markup:
    question = choice.question
    sample = question.sample
    columns = [_episode_column(question, model, colours[model]) for model in models if model in question.episodes]
    return tag(
        "article",
        tag("a", "all questions", href="#episodes", class_="back"),
        tag("h3", f"{number}. {sample.question}"),
        tag("p", f"{choice.reason} · {KIND_LABELS.get(sample.kind, sample.kind)} · {sample.id}", class_="quiet"),
        _option_list(sample),
        _frames_and_timeline(question, models),
        tag("div", *columns, class_="columns"),
        class_="question",
        id=f"question-{number}",
    )


def _option_list(sample: Sample) -> Markup:
    """Lists the options with their letters, and marks the key. Some data sets write the letters into the options."""
    items, keys = [], []
    for letter, option in sample.lettered_options:
        shown = option if option.startswith((f"{letter}.", f"{letter})")) else f"{letter}. {option}"
        is_key = letter == sample.answer.strip()
        items.append(tag("li", shown, tag("b", " (key)") if is_key else ""))
        keys += [letter] * is_key
    if not keys:
        items.append(tag("li", "Key: ", tag("b", sample.answer)))
    return tag("ul", *items, class_="options")


def _frames_and_timeline(question: Question, models: Sequence[str]) -> Markup:
    """Shows the overview's frames above the time line; both have the same time axis."""
    firsts = {model: question.episodes[model][0] for model in models if model in question.episodes}
    clips = [clip for episode in firsts.values() for clip in _clips_of(episode)]
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
        tag("div", _frame_strip(overview, _OVERVIEW_FRAMES, _OVERVIEW_SIDE), class_="strip"),
        tag("div", *labels, class_="labels"),
        timeline(span, question.sample.clues, lanes),
        tag(
            "p", swatch("clue window", CLUE_COLOUR), swatch("crop, by number of the call", CROP_COLOUR), class_="legend"
        ),
        class_="times",
    )


def _episode_column(question: Question, model: str, colour: str) -> Markup:
    """Shows a model's first episode turn by turn, and its rewards."""
    episodes = question.episodes[model]
    episode = episodes[0]
    count = f"right in {sum(other.is_right for other in episodes)} of {len(episodes)} samples; this is the first"
    return tag(
        "section",
        tag("h4", model_label(model), " ", _answer_mark(episode), style=f"border-color:{colour}"),
        tag("p", "Answer: ", tag("b", _shortened(episode.prediction or "none")), f" · {count}", class_="quiet"),
        *_turn_sections(episode),
        _reward_list(episode),
        class_="episode",
    )


def _turn_sections(episode: TrajectoryRecord) -> Iterator[Markup]:
    """Shows the turns in order. The user turn after the n-th assistant turn shows the outcome of the n-th calls."""
    assistant = -1
    for turn in episode.turns:
        if turn.role == "assistant":
            assistant += 1
            yield tag("section", _turn_heading(turn), _turn_text(turn), class_="turn assistant")
        elif assistant < 0:  # the prompt, equal for every model
            yield tag("details", tag("summary", _turn_heading(turn)), _turn_text(turn), class_="turn prompt")
        else:
            records = [(i, call) for i, call in enumerate(episode.calls, start=1) if call.turn == assistant]
            outcomes = [_call_outcome(number, record) for number, record in records]
            yield tag("section", _turn_heading(turn), _turn_text(turn), *outcomes, class_="turn user")


def _turn_heading(turn: RecordedTurn) -> Markup:
    return tag("span", tag("b", turn.role), f" · {_number_of(turn.num_tokens, 'token')}", class_="role")


def _turn_text(turn: RecordedTurn) -> Markup:
    pieces = _GRAMMAR_TAGS.split(_shortened(turn.text))
    return tag(
        "div", *(tag("i", piece) if _GRAMMAR_TAGS.fullmatch(piece) else piece for piece in pieces), class_="text"
    )


def _number_of(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shortened(text: str) -> str:
    """Cuts a text to _MAX_TEXT_CHARACTERS characters."""
    rest = len(text) - _MAX_TEXT_CHARACTERS
    return text if rest <= 0 else f"{text[:_MAX_TEXT_CHARACTERS]} \N{HORIZONTAL ELLIPSIS} ({rest} more characters)"


def _call_outcome(number: int, record: CallRecord) -> Markup:
    if record.text is not None and isinstance(record.call, ToolCall):
        arguments = json.dumps(dict(record.call.arguments), ensure_ascii=False)
        return tag(
            "p", f"Call {number}, {record.call.name} {_shortened(arguments)}: {_shortened(record.text)}", class_="text"
        )
    if record.clip is None:
        code = record.fault.code if record.fault is not None else "no readable call"
        return tag("p", f"Call {number} failed: {code.replace('_', ' ')}", class_="notice")
    clip = record.clip
    strategy = f", {record.call.strategy}" if isinstance(record.call, Call) else ""
    caption = f"Crop {number}: {window_text(clip.start_seconds, clip.end_seconds)}{strategy}, "
    caption += (
        f"{len(clip.frame_seconds)} frames of {clip.width} × {clip.height} px, {_number_of(clip.num_tokens, 'token')}"
    )
    return tag("figure", _frame_strip(clip, _CROP_FRAMES, _CROP_SIDE), tag("figcaption", caption), class_="crop-frames")


def _frame_strip(clip: Clip, max_frames: int, max_side: int) -> Markup:
    """Shows frames from the source file, or the reason for a decoding failure."""
    thin = thin_out(clip, max_frames)
    try:
        uris = picture_uris(thin, max_side)
    except VideoError as error:
        return tag("p", f"No picture: {error.message}", class_="notice")
    times = [f"{seconds:.1f} s" for seconds in thin.frame_seconds]
    return join(tag("img", src=uri, alt=time, title=time) for uri, time in zip(uris, times, strict=True))


def _reward_list(episode: TrajectoryRecord) -> Markup:
    parts = [
        tag("div", tag("dt", name.replace("_", " ")), tag("dd", f"{value:.3g}"))
        for name, value in episode.rewards.items()
    ]
    ending = tag("div", tag("dt", "ended"), tag("dd", episode.stop_reason.replace("_", " ")))
    return tag("dl", *parts, ending, class_="rewards")


def _answer_mark(episode: TrajectoryRecord) -> Markup:
    """Marks the answer as right or wrong by shape and colour. Shows the IoU of an answered window as a number."""
    if math.isnan(episode.accuracy):
        return tag("span", "not scored", class_="mark")
    if 0 < episode.accuracy < 1:
        return tag("span", f"{episode.accuracy:.2f}", class_="mark")
    return (
        tag("span", "\N{CHECK MARK} right", class_="mark right")
        if episode.is_right
        else tag("span", "\N{MULTIPLICATION X} wrong", class_="mark wrong")
    )


def _clips_of(episode: TrajectoryRecord) -> list[Clip]:
    crops = [record.clip for record in episode.calls if record.clip is not None]
    return [episode.overview, *crops] if episode.overview is not None else crops


@dataclass(frozen=True, slots=True)
class Lane:
    """One model's calls. Each call has its own row: equal windows stay visible."""

    label: str
    calls: tuple[CallRecord, ...]

    @property
    def num_rows(self) -> int:
        return max(1, len(self.calls))


@dataclass(frozen=True, slots=True)
class Span:
    """The time line's part of the video, in seconds."""

    start_seconds: float
    end_seconds: float

    def percent(self, seconds: float) -> float:
        """Returns the place of a time on the axis, in [0, 100]."""
        share = (seconds - self.start_seconds) / (self.end_seconds - self.start_seconds)
        return 100 * min(max(share, 0), 1)


def timeline(span: Span, clues: Sequence[Interval], lanes: Sequence[Lane]) -> Markup:
    """Draws the clues, then the lanes in order, then the axis, as an SVG of full width with rows of ROW_PIXELS.

    Clue windows are bands through all lanes; crop windows carry the number of their call. Horizontal places are in per
    cent of the width: text keeps its size on any screen.
    """
    rows_height = ROW_PIXELS * (1 + sum(lane.num_rows for lane in lanes))
    marks: list[Markup] = []
    for number, (start_seconds, end_seconds) in enumerate(clues, start=1):
        left, width = _left_and_width(span, start_seconds, end_seconds)
        title = tag("title", f"clue {number}: {window_text(start_seconds, end_seconds)}")
        marks.append(tag("rect", x=left, width=width, y=0, height=rows_height, fill=CLUE_COLOUR, opacity=0.15))
        marks.append(tag("rect", title, x=left, width=width, y=2, height=ROW_PIXELS - 4, rx=2, fill=CLUE_COLOUR))
    top = ROW_PIXELS
    for lane in lanes:
        marks.append(tag("line", x1="0", x2="100%", y1=top, y2=top, class_="grid"))
        if not lane.calls:
            marks.append(tag("text", "no call", x="4", y=top + 14))
        for index, record in enumerate(lane.calls):
            marks += _call_marks(span, record, index + 1, top + index * ROW_PIXELS)
        top += lane.num_rows * ROW_PIXELS
    marks += _axis_marks(span, rows_height)
    label = "; ".join(
        [f"clue {window_text(*clue)}" for clue in clues]
        + [
            f"{lane.label} crop {window_text(record.call.start_seconds, record.call.end_seconds)}"
            for lane in lanes
            for record in lane.calls
            if isinstance(record.call, Call)
        ]
    )
    height = rows_height + _AXIS_PIXELS
    return tag("svg", *marks, width="100%", height=height, role="img", aria_label=f"Time line: {label or 'no windows'}")


def window_text(start_seconds: float, end_seconds: float) -> str:
    """Returns `start–end s` to a tenth of a second, and in exponents beyond the length of any video."""
    start, end = (f"{value:.1f}" if abs(value) < 1e6 else f"{value:.3g}" for value in (start_seconds, end_seconds))
    return f"{start}\N{EN DASH}{end} s"


def _left_and_width(span: Span, start_seconds: float, end_seconds: float) -> tuple[str, str]:
    left, right = span.percent(start_seconds), span.percent(end_seconds)
    return f"{left:.2f}%", f"{max(right - left, 0.4):.2f}%"


def _call_marks(span: Span, record: CallRecord, number: int, top: float) -> Iterator[Markup]:
    """Draws a filled window for an executed call, a dashed one for a failed call, none for an unreadable call."""
    if not isinstance(record.call, Call):
        return
    start_seconds, end_seconds = record.call.start_seconds, record.call.end_seconds
    left, width = _left_and_width(span, start_seconds, end_seconds)
    failed = record.clip is None
    yield tag(
        "rect",
        tag("title", f"crop {number}: {window_text(start_seconds, end_seconds)}"),
        x=left,
        width=width,
        y=top + 3,
        height=ROW_PIXELS - 6,
        rx=2,
        class_="crop failed" if failed else "crop",
    )
    middle = (span.percent(start_seconds) + span.percent(end_seconds)) / 2
    # At the very edge the number of a narrow window would be cut.
    place = f"{min(max(middle, 1.5), 98.5):.2f}%"
    yield tag("text", str(number), x=place, y=top + 14, text_anchor="middle", class_="crop-number")


def _axis_marks(span: Span, top: float) -> Iterator[Markup]:
    yield tag("line", x1="0", x2="100%", y1=top, y2=top, class_="axis")
    for tick in Axis.fit([span.start_seconds, span.end_seconds]).ticks:
        if not span.start_seconds <= tick <= span.end_seconds:
            continue
        place = span.percent(tick)
        anchor = "start" if place < 3 else "end" if place > 97 else "middle"
        yield tag("line", x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=top, y2=top + 4, class_="axis")
        yield tag("text", f"{tick:g} s", x=f"{place:.2f}%", y=top + 17, text_anchor=anchor)


def thin_out(clip: Clip, max_frames: int) -> Clip:
    """Returns the clip with at most `max_frames` of its frames, evenly spread. `max_frames` is even."""
    total = len(clip.frame_seconds)
    if total <= max_frames:
        return clip
    kept = tuple(clip.frame_seconds[(2 * i + 1) * total // (2 * max_frames)] for i in range(max_frames))
    return replace(clip, frame_seconds=kept, sample_fps=max_frames / max(clip.end_seconds - clip.start_seconds, 1e-6))


def picture_uris(clip: Clip, max_side: int) -> list[str]:
    """Returns a `data:` URI for each frame in the model's view, shrunk to `max_side` px at most. Raises VideoError."""
    uris = []
    # `video.decode` would import torch, and a page needs only pixels.
    for pixels in worker.decoder().frames(clip.video, clip.frame_seconds, clip.height, clip.width):
        picture = Image.fromarray(pixels)
        picture.thumbnail((max_side, max_side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        uris.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return uris
