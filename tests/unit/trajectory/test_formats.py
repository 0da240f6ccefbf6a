"""Every format of the table: render and parse, faults, and roles to the byte in Qwen's own vocabulary."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from support.qwen_bpe import qwen_tokenizer

from videoseek.config import FORMAT_NAMES, UsageError
from videoseek.config_merge import load_config
from videoseek.trajectory.formats import FORMATS, load_format
from videoseek.trajectory.grammar import STRUCTURE_FAULTS, CallFormat
from videoseek.trajectory.roles import assistant_roles, token_bytes
from videoseek.types import Call, ParsedTurn, Role, Sample, ToolCall, TurnKind

ROOT = Path(__file__).parents[3]
TOOLS = {"subtitle_search": "Finds lines.", "note": "Keeps a line."}
ALL = {name: load_format(name, tools=TOOLS if cls.names_tools else None) for name, cls in FORMATS.items()}
CALLING = [name for name, fmt in ALL.items() if fmt.call_tag or name == "boxed"]
WORDS = [
    "red",
    "Größe",
    "第四",
    "🙂",
    "at 3 s",
    "<b>",
    "a=b",
    '"',
    "\\n",
    "[1, 2]",
    "{}",
    "A.",
    "0:01",
    "\n",
    "é\u0301",
]


def words(rng: random.Random, most: int = 6) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most))).strip() or "so"


def some_call(name: str, rng: random.Random) -> Call | ToolCall:
    if ALL[name].names_tools and rng.random() < 0.3:
        arguments = {"query": words(rng).replace("<b>", "b"), "limit": rng.randint(1, 9)}
        return ToolCall("subtitle_search", arguments)
    if name == "retrieve":
        first = rng.randint(0, 63)
        return Call(float(first), float(rng.randint(first, 63) + 1), num_parts=64)
    start = rng.randint(0, 9000) / 10
    strategy = rng.choice(["coarse", "medium", "fine"])
    size = {"fps": rng.choice([None, 0.25]), "num_frames": rng.choice([None, 7]), "scale": rng.choice([None, 0.5])}
    return Call(start, start + rng.randint(1, 600) / 10, strategy, **size)  # type: ignore[arg-type]


def some_extra(name: str, rng: random.Random, num_calls: int) -> dict[str, str]:
    if name == "conan" and rng.random() < 0.8:
        return {"score": ", ".join(str(rng.randint(1, 5)) for _ in range(rng.randint(1, 4)))}
    if name == "glue" and rng.random() < 0.8:
        return {"glue": rng.choice(["[]", "[(1.0, 2.5)]", "[(1.0, 2.5), (3, 40.25)]"])}
    if name == "sage":
        extra = {f"rationale {number}": words(rng) for number in range(num_calls)}
        return extra | ({"video_context": words(rng)} if rng.random() < 0.5 else {})
    return {}


def some_turn(name: str, rng: random.Random) -> str:
    fmt = ALL[name]
    think = words(rng, 12)
    if name == "timestep" and rng.random() < 0.5:
        think += f" <timestep>{rng.randint(0, 5)} to {rng.randint(6, 9)}.5</timestep>"
    if name == "time_caption" and rng.random() < 0.5:
        think += f"<time>{rng.randint(0, 5)}-{rng.randint(6, 9)}</time> <caption>{words(rng)}</caption> so"
    if name in CALLING and rng.random() < 0.6:
        calls = tuple(some_call(name, rng) for _ in range(rng.randint(1, 4) if fmt.several_calls else 1))
        return fmt.render(ParsedTurn(think, calls, None, (), some_extra(name, rng, len(calls))))
    answer = words(rng).strip() if name != "boxed" else rng.choice(["A", "第四", "12.5", "{A}"])
    if name == "timestep" and rng.random() < 0.8:
        answer = f'{{"temporal_segment": [{rng.randint(0, 900) / 10}, {rng.randint(901, 999) / 10}]}}'
    return fmt.render(ParsedTurn(think, (), answer, (), some_extra(name, rng, 0)))


@pytest.mark.parametrize("name", FORMATS)
def test_1_000_rendered_turns_are_read_back_to_the_byte(name: str) -> None:
    rng, fmt = random.Random(0), ALL[name]
    for _ in range(1000):
        text = some_turn(name, rng)
        turn = fmt.parse(text)
        assert turn.faults == (), text
        assert bool(turn.calls) != (turn.answer is not None)
        assert fmt.render(turn) == text


THINK = "<think>x</think>\n"
#: Faulty texts that any tagged format must report; {open} and {close} are its call's tags.
COMMON = ["", " ", "prose", "<think>", "<think>a", "<think>a</think>", "</think>", "<answer>", "<answer>A"]
COMMON += [
    "<answer>A</answer>",
    "A</answer>",
    "<think>a</think><answer></answer>",
    "<think>a</think> b <answer>A</answer>",
]
COMMON += ["<think>a</think><think>b</think><answer>A</answer>", "<think>a</think><answer>A</answer><answer>B</answer>"]
COMMON += ["<answer>A</answer><think>a</think>", "<think>a</think><answer>A</answer> end", "<think>a<answer>A</answer>"]
COMMON += [THINK + "{open}" + inner for inner in ("", "{{")]
COMMON += [
    THINK + "{open}" + inner + "{close}"
    for inner in (
        *(
            "",
            "soon",
            "{{",
            "[1, 2]",
            "null",
            "{{}}",
            "NaN",
            "crop_video",
            "crop_video(",
            "crop_video()",
            "5",
            "5,",
            "70,2",
            "9,2",
        ),
        *("00:00:05", "00:00:09-00:00:05", "0:5-0:6", "<function=", "<function=crop_video>", "<function=x></function>"),
        '{{"name": "zoom", "arguments": {{"a": 1}}}}',
        '{{"tool": "zoom", "arguments": {{"start_time": 1}}}}',
    )
]
#: Text, and the codes of its faults.
OWN_FAULTS = {
    "crop_video": {
        '<tool_call>{"name": "crop_video", "arguments": {"start": 9, "end": 3}}</tool_call>': "reversed_segment",
        '<tool_call>{"name": "crop_video", "arguments": {"start": "1", "end": 3}}</tool_call>': "not_numbers",
        '<tool_call>{"name": "x", "arguments": {}}</tool_call>': "unknown_tool",
    },
    "qwen_xml": {
        "<tool_call><function=crop_video><parameter=start_time>1</parameter></function></tool_call>": "missing_field",
        "<tool_call><function=crop_video>1, 2</function></tool_call>": "bad_xml",
        "<tool_call><function=x></function></tool_call>": "unknown_tool",
    },
    "tool_code": {
        "<tool_code>crop_video(start_time=1)</tool_code>": "missing_field",
        "<tool_code>crop_video(1, 2, 3)</tool_code>": "bad_python",
        "<tool_code>crop_video(start_time=__import__('os'))</tool_code>": "bad_python",
        "<tool_code>crop_video(-1, 2)</tool_code>": "negative_segment",
    },
    "video_zoom": {
        '<video_zoom>{"segment": [0, 10], "fps": 2}</video_zoom>': "too_many_frames",
        '<video_zoom>{"segment": [0, 10], "fps": 0}</video_zoom>': "bad_fps",
        '<video_zoom>{"segment": [0], "fps": 1}</video_zoom>': "bad_segment",
        '<video_zoom>{"segment": [0, 4]}</video_zoom>': "missing_field",
    },
    "conan": {
        "<clip>00:00:09-00:00:05</clip><answer></answer>": "reversed_segment",
        "<clip>5-9</clip><answer></answer>": "bad_clock",
        "<clip></clip><answer></answer>": "no_action",
        "<clip>00:00:05-00:00:09</clip><answer>A</answer>": "both_actions",
        "<score>6</score><clip>00:00:05-00:00:09</clip><answer></answer>": "bad_mark",
    },
    "retrieve": {
        "<retrieve>5</retrieve>": "bad_indices",
        "<retrive>60,64</retrive>": "bad_indices",
        "<retrieve>9,5</retrieve>": "reversed_segment",
    },
    "frame_select": {
        '<tool_call>{"tool": "frame_select", "arguments": {"start_time": 1}}</tool_call>': "missing_field",
        '<tool_call>{"tool": "crop", "arguments": {}}</tool_call>': "unknown_tool",
        '<tool_call>{"tool": "frame_select", "arguments": {"start_time": 1, "end_time": 2, "nframes": 0, "resize": 1}}'
        "</tool_call>": "bad_frames",
        '<tool_call>{"tool": "frame_select", "arguments": {"start_time": 1, "end_time": 2, "nframes": 2, "resize": 2}}'
        "</tool_call>": "bad_resize",
    },
    "glue": {"<answer>A</answer><glue>[(3, 2)]</glue>": "bad_mark", "<answer>A</answer><glue>soon</glue>": "bad_mark"},
    "timestep": {
        "<timestep>1 to 2</timestep><answer>1 to 2</answer>": "misplaced_text",
        "<answer></answer>": "empty_answer",
    },
    "time_caption": {"<answer></answer>": "empty_answer"},
}
#: Formats without tags for reasoning and answer have a corpus of their own.
BOXED = [
    "",
    " ",
    "x",
    "\\boxed{A",
    "x \\boxed{",
    "\\boxed{A}",
    "x \\boxed{}",
    "x \\boxed{ }",
    "x \\boxed{A} more",
    "x {A}",
]
BOXED += [
    "x \\boxed{A}\\boxed{B}",
    "x \\boxed{[1]}",
    "x \\boxed{[2, 1]}",
    "x \\boxed{[1, 1]}",
    "x \\boxed{[1.5, 2]}",
    "boxed{A}",
]
BOXED += [
    f"x \\boxed{{[{inner}]}}"
    for inner in ("", "a", "1,", ",2", "1 2", "-1, 2", "1, 2, 3", "NaN, 2", "1e3, 2", "0x1, 2")
]
BOXED += [f"x \\boxed {{{inner}}}" for inner in ("A", "B", "[1, 2]", "")] + [
    "x [1, 2]",
    "<answer>A</answer>",
    "\\boxed{[1, 2]}",
]
SAGE = ["", "x", "<json>", "<json>{}", "<json></json>", "<json>{}</json>", "<json>[]</json>", "<json>null</json>", "{}"]
SAGE += [
    '<json>{"final_answer": "A"}</json>',
    '<json>{"query_intent": "x"}</json>',
    '<json>{"query_intent": ""}</json>',
]
SAGE += [
    f'<json>{{"query_intent": "x", "final_answer": {value}}}</json>' for value in ("null", '""', "3", "[]", "{}", "NaN")
]
SAGE += [
    f'<json>{{"query_intent": "x", "recommended_tools": {value}}}</json>'
    for value in (
        "null",
        "[]",
        '{"tool_calls": 1}',
        '{"tool_calls": [1]}',
        '{"tool_calls": [{"name": "x", "arguments": {}}]}',
    )
]
SAGE += [
    f'<json>{{"query_intent": "x", "recommended_tools": {{"tool_calls": [{{"name": "extract_parts_from_timestamp", '
    f'"arguments": {value}}}]}}}}</json>'
    for value in (
        "1",
        "{}",
        '{"start": 1}',
        '{"start": 2, "end": 1}',
        '{"start": -2, "end": 1}',
        '{"start": 1, "end": 400}',
    )
]
SAGE += [
    'x <json>{"query_intent": "x", "final_answer": "A"}</json>',
    '<json>{"final_answer": "A"}</json> x',
    "<json>" * 3,
]


def corpus(name: str) -> list[str]:
    if name in ("boxed", "sage"):
        return BOXED if name == "boxed" else SAGE
    tag = FORMATS[name].call_tag or "none"
    return [text.format(open=f"<{tag}>", close=f"</{tag}>") if "{open}" in text else text for text in COMMON]


@pytest.mark.parametrize("name", FORMATS)
def test_every_faulty_text_has_faults_with_known_codes(name: str) -> None:
    fmt, texts = ALL[name], corpus(name)
    passing = [text for text in texts if not fmt.parse(text).faults]
    assert len(set(texts)) >= 30 and passing == []
    for text in texts:
        assert all(item == fmt.fault(item.code) or item.code == "unknown_tool" for item in fmt.parse(text).faults), text


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [(name, text, code) for name, texts in OWN_FAULTS.items() for text, code in texts.items()],
)
def test_each_fault_of_a_format_has_its_code(name: str, text: str, code: str) -> None:
    assert [item.code for item in ALL[name].parse(THINK + text).faults] == [code]


@pytest.mark.parametrize("mark", ["<timestep>1", "<timestep>2 to 1</timestep>", "<timestep>a to b</timestep>"])
def test_a_mark_in_the_reasoning_is_checked(mark: str) -> None:
    assert [f.code for f in ALL["timestep"].parse(f"<think>{mark}</think><answer>1 to 2</answer>").faults] == [
        "bad_mark"
    ]


@pytest.mark.parametrize("marks", ["<time>1-2</time>", "<time>2-1</time><caption>x</caption>", "<caption>x</caption>"])
def test_a_time_needs_its_caption(marks: str) -> None:
    assert [f.code for f in ALL["time_caption"].parse(f"<think>{marks}</think><answer>A</answer>").faults] == [
        "bad_mark"
    ]


def mutated(name: str, count: int) -> list[str]:
    rng = random.Random(1)
    seeds = [some_turn(name, rng) for _ in range(50)] + [text for text in corpus(name) if text]
    debris = [
        "<",
        ">",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        '"',
        "'",
        ",",
        "\\",
        "NaN",
        "1e999",
        "\x00",
        "\ud800",
        "🙂",
        "9" * 400,
    ]
    debris += [f"<{tag}>" for tag in ("think", "/think", "answer", "/answer", "json", "/json", "time", "/caption")]
    texts = []
    for _ in range(count):
        text = rng.choice(seeds)
        for _ in range(rng.randint(1, 6)):
            start = rng.randint(0, len(text))
            end = min(len(text), start + rng.randint(0, 12))
            text = text[:start] + rng.choice(["", text[start:end] * 2, rng.choice(debris)]) + text[end:]
        texts.append(text)
    return texts


def check_totality(fmt: CallFormat, texts: list[str]) -> None:
    for text in texts:
        turn = fmt.parse(text)
        assert turn.calls or turn.answer is not None or turn.faults, text
        assert all(0 <= call.start_seconds < call.end_seconds < float("inf") for call in turn.crops), text
        data = text.encode("utf-8", "surrogatepass")
        edges = [edge for start, end, _ in fmt.content_spans(data[: len(data) - 1]) for edge in (start, end)]
        assert edges == sorted(edges) and all(0 <= edge <= len(data) for edge in edges), text


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_strings_never_raise(name: str) -> None:
    check_totality(ALL[name], mutated(name, 1500))


@pytest.mark.thorough
@pytest.mark.parametrize("name", FORMATS)
def test_20_000_mutated_strings_never_raise(name: str) -> None:
    check_totality(ALL[name], mutated(name, 20_000))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "flood", ["<think>", "<answer>", "\\boxed{", '{"a":', "<json>{", "<parameter=a>", "crop_video(1,"]
)
def test_a_flood_of_openings_takes_linear_time(name: str, flood: str) -> None:
    started = time.perf_counter()
    tag = FORMATS[name].call_tag or "answer"
    ALL[name].parse(f"<{tag}>{flood * 20_000}</{tag}>")
    ALL[name].content_spans((flood * 20_000).encode())
    assert time.perf_counter() - started < 5


def pieces_of(name: str, text: str) -> tuple[dict[Role, str], TurnKind]:
    tokenizer = qwen_tokenizer()
    pieces = token_bytes(tokenizer, tokenizer(text)["input_ids"])
    assert b"".join(pieces) == text.encode()
    roles, kind = assistant_roles(pieces, ALL[name])
    found: dict[Role, bytes] = {}
    for piece, role in zip(pieces, roles, strict=True):
        found[Role(role)] = found.get(Role(role), b"") + piece
    return {role: data.decode("utf-8", "replace") for role, data in found.items()}, kind


@pytest.mark.parametrize("name", FORMATS)
def test_roles_hold_to_the_byte_in_qwens_vocabulary(name: str) -> None:
    """A token that overlaps a content by one byte has its role: so each content lies in its role's tokens, in order."""
    rng, fmt = random.Random(2), ALL[name]
    for _ in range(60):
        text = some_turn(name, rng)
        text = tokenizer_form(text)
        data, turn = text.encode(), fmt.parse(text)
        found, kind = pieces_of(name, text)
        spans = fmt.content_spans(data)
        for role in (Role.THINK, Role.CALL, Role.ANSWER):
            contents = [data[start:end].decode() for start, end, owner in spans if owner == role and end > start]
            place = 0
            for content in contents:
                inner = content[1:-1] if role == Role.THINK else content  # an end may be shared with a stronger role
                assert inner in found[role][place:], (text, role)
                place = found[role].index(inner, place) + len(inner)
        assert kind == (TurnKind.SEEK if turn.calls else TurnKind.ANSWER)
        if turn.answer is not None and name not in ("timestep", "sage"):
            assert turn.answer in found[Role.ANSWER]


def tokenizer_form(text: str) -> str:
    """Qwen's tokenizer composes accents (NFC)."""
    import unicodedata

    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("name", FORMATS)
def test_the_system_prompt_shows_a_valid_call_and_answer(name: str) -> None:
    fmt = ALL[name]
    prompt = fmt.system_prompt()
    looked, answered = fmt.examples()
    assert fmt.parse(answered).answer == "B" and fmt.parse(answered).faults == () and answered in prompt
    assert (fmt.parse(looked).crops != ()) == (name in CALLING) and looked in prompt
    assert "{" + "call_example}" not in prompt and "{" + "answer_example}" not in prompt
    assert ('"name": "note"' in prompt) == fmt.names_tools
    assert FORMATS[name]("brief").system_prompt() == "Seek clues, then answer."


def test_prompts_are_all_different() -> None:
    assert len({fmt.system_prompt() for fmt in ALL.values()}) == len(ALL)


def test_choices_follow_the_table() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES
    assert all(name == cls.name for name, cls in FORMATS.items())
    for name in FORMATS:
        assert load_config([f"prompt.format={name}", "recipe=sft_rl"]).prompt.format == name
    with pytest.raises(UsageError, match="prompt.format must be one of grounding, .* or FILE.py:NAME, got 'xml'"):
        load_config(["prompt.format=xml", "recipe=sft_rl"])


def test_docs_list_every_format_with_its_quota() -> None:
    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    for name, fmt in ALL.items():
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{name}` ")]
        assert fmt.quota in row


@pytest.mark.parametrize(
    ("name", "text", "call"),
    [
        ("hermes", '{"name": "crop_video", "arguments": {"start_time": 1, "end_time": 2.5}}', Call(1, 2.5)),
        ("hermes", '{"name": "crop_video", "arguments": {"start": 1, "end": 2}}', Call(1, 2)),
        ("tool_code", "print(crop_video('/v.mp4', 1, end_time=2.5))", Call(1, 2.5)),
        ("tool_code", "print(crop_video('/v.mp4', 1, 2.5))", Call(1, 2.5)),
        ("tool_code", " crop_video( start=1 , end=2 ) ", Call(1, 2)),
        ("conan", "0:01:05 - 00:02:00.5", Call(65, 120.5, num_frames=8)),
        ("retrieve", " 5 , 10 ", Call(5, 11, num_frames=8, num_parts=64)),
    ],
)
def test_other_spellings_are_read(name: str, text: str, call: Call) -> None:
    tag = FORMATS[name].call_tag
    turn = ALL[name].parse(f"{THINK}<{tag}>{text}</{tag}>")
    assert turn.calls == (call,) and turn.faults == ()


def test_a_bad_block_is_one_fault_among_good_ones() -> None:
    good = ALL["hermes"].render(ParsedTurn("x", (Call(1, 2), Call(3, 4)), None, ()))
    first, second = good.split("\n")[1:]
    turn = ALL["hermes"].parse(f"{THINK}{first}\n<tool_call>soon</tool_call>\n{second}")
    assert turn.calls == (Call(1, 2), Call(3, 4)) and [item.code for item in turn.faults] == ["bad_json"]
    assert turn.outcomes() == [Call(1, 2), turn.faults[0], Call(3, 4)]
    assert not {item.code for item in turn.faults} & STRUCTURE_FAULTS


def test_a_window_answer_reads_as_the_projects() -> None:
    sample = Sample("s", "v.mp4", "When?", "A", "temporal_grounding", clues=((1, 2),))
    fmt = ALL["timestep"]
    assert "START to END" in fmt.prompt_text(sample)
    assert fmt.parse(f"{THINK}<answer>12.54 to 17.83</answer>").answer == '{"temporal_segment": [12.54, 17.83]}'


def test_tools_need_a_format_that_names_them() -> None:
    with pytest.raises(UsageError, match="prompt.format=grounding cannot name the tools note; hermes"):
        load_format("grounding", tools={"note": "Keeps a line."})
