"""The sentences of the protocol for the model, in two styles.

`full` explains the protocol to an instruction-tuned model. `brief` serves the demonstration model of a million
parameters: the small model learns the protocol from examples alone and pays for every token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from videoseek.types import Clip, Sample, letter_options

STYLES = ("full", "brief")

_FULL_SYSTEM = """You answer questions about a video. The whole video is shown first, sparsely and at low resolution, \
as Observation 0. Small or short-lived details may be lost in it, so you may request a closer look at any stretch of \
it before you commit to an answer.

In every turn write your reasoning between <think> and </think>, and after it do exactly one of two things.

Look closer, when evidence is missing. Give the stretch in seconds of the video, and how much detail it needs \
(coarse, medium or fine; a short stretch shows more for the same price):
{call_example}
The clip comes back as the next observation.

Answer, when the evidence is enough:
{answer_example}"""

_LETTER_HINT = "Answer with the letter of one option."
WINDOW_HINT = 'Answer with the stretch in seconds, as {"temporal_segment": [start, end]}.'
_TEXT_HINT = "Answer with a short phrase."


#: Ends the observation before a turn that must answer.
FINAL_ANSWER = "\nThis was the last clip. Answer now, with the evidence that you have."


def system_text(style: str, template: str | None, call_example: str, answer_example: str) -> str:
    """Returns the system prompt. The examples are whole turns in the call format of the run.

    `template` holds {call_example} and {answer_example}; None takes the project's own text.
    """
    if style == "brief":
        return "Seek clues, then answer."
    text = _FULL_SYSTEM if template is None else template
    return text.replace("{call_example}", call_example).replace("{answer_example}", answer_example)


def tool_list(tools: Mapping[str, str]) -> str:
    """Returns the end of the system prompt that lists the tools beside the crop tool, one JSON line each."""
    if not tools:
        return ""
    lines = [json.dumps({"name": name, "description": text}, ensure_ascii=False) for name, text in tools.items()]
    return "\n\nFurther tools, called by name:\n" + "\n".join(lines)


def lettered(options: Sequence[str]) -> list[str]:
    """Returns one line per option: "A. red". Options already lettered in the data set stay unchanged."""
    pairs = letter_options(options)
    if all(option.startswith((f"{letter}.", f"{letter})")) for letter, option in pairs):
        return list(options)
    return [f"{letter}. {option}" for letter, option in pairs]


def time_sentence(clip: Clip) -> str:
    """Returns the sentence after every clip: rate, number of frames and window.

    Times are seconds of the source file, also for a crop: the model can reuse the times in a call.
    """
    return (
        f"This video is uniformly sampled at {clip.sample_fps:.2f} fps, contains {len(clip.frame_seconds)} frames "
        f"from {clip.start_seconds:.1f} seconds to {clip.end_seconds:.1f} seconds."
    )


def question_text(style: str, sample: Sample, window_hint: str = WINDOW_HINT) -> str:
    """Returns the question with its options, and in the full style a hint about the form of the answer."""
    options = lettered(sample.options)
    if style == "brief":
        return f"Question: {sample.question}" + (f"\nOptions: {' '.join(options)}" if options else "")
    lines = [f"Question: {sample.question}"]
    if options:
        lines += ["Options:", *options]
    if sample.kind == "temporal_grounding":
        lines.append(window_hint)
    elif sample.kind != "perception":
        lines.append(_LETTER_HINT if options else _TEXT_HINT)
    return "\n".join(lines)


def observation_parts(style: str, index: int, clip_sentence: str) -> tuple[str, str]:
    """Returns the texts before and after the clip of an observation. `index` counts the episode's calls from 1."""
    if style == "brief":
        return f"Observation {index}: ", ""
    after = f"\n{clip_sentence}\nGo on: think, then look closer again or answer."
    return f"Observation {index}, the clip that you asked for:\n", after


def text_observation(style: str, index: int, text: str) -> str:
    """Returns the observation of a tool's text. `index` counts the episode's calls from 1."""
    if style == "brief":
        return f"Observation {index}: {text}"
    return f"Observation {index}, the text that you asked for:\n{text}\n"


def fault_sentence(style: str, codes: list[str], messages: list[str]) -> str:
    """Returns the observation of a turn without a clip. The brief style names the first fault only."""
    if style == "brief":
        return f"Fault: {codes[0].replace('_', ' ')}."
    return f"No clip was made. {' '.join(messages)} Try again, or answer."
