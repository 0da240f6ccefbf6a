from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.grammar import FAULTS, STRUCTURE_FAULTS, CallFormat, fault, seconds_number
from videoseek.types import Call, ParsedTurn, Role, Sample

GROUNDING = FORMATS["grounding"]()
HERMES = FORMATS["hermes"]()
BRIEF = FORMATS["grounding"]("brief")
#: The project's own formats; test_formats.py tests all.
OWN = ("grounding", "hermes")
OPTIONS = ("red", "blue")


def call(payload: str) -> str:
    return f"<think>look</think>\n<grounding>{payload}</grounding>"


def segment(numbers: str, strategy: str = '"fine"') -> str:
    return call(f'{{"temporal_segment": {numbers}, "sampling_strategy": {strategy}}}')


def codes(turn: ParsedTurn) -> list[str]:
    return [item.code for item in turn.faults]


@pytest.mark.parametrize("name", OWN)
def test_a_rendered_call_is_read_back(name: str) -> None:
    fmt = FORMATS[name]()
    text = fmt.render_turn("At 3 s a card.", Call(3.0, 7.25, "medium"), None)
    turn = fmt.parse(text)
    assert turn == ParsedTurn("At 3 s a card.", (Call(3.0, 7.2, "medium"),), None, ())


def test_the_grounding_format_is_written_as_the_paper_writes_it() -> None:
    assert GROUNDING.render_turn("t", Call(3.0, 7.5, "medium"), None) == (
        '<think>t</think>\n<grounding>{"temporal_segment": [3, 7.5], "sampling_strategy": "medium"}</grounding>'
    )
    assert GROUNDING.render_turn("t", None, "B") == "<think>t</think>\n<answer>B</answer>"


def test_the_hermes_format_names_the_tool() -> None:
    assert HERMES.render_turn("t", Call(0, 2, "coarse"), None) == (
        '<think>t</think>\n<tool_call>{"name": "crop_video", "arguments": '
        '{"temporal_segment": [0, 2], "sampling_strategy": "coarse"}}</tool_call>'
    )


@pytest.mark.parametrize("name", OWN)
def test_a_rendered_answer_is_read_back(name: str) -> None:
    fmt = FORMATS[name]()
    assert fmt.parse(fmt.render_turn("Seen.", None, "B")) == ParsedTurn("Seen.", (), "B", ())


@given(
    start=st.integers(0, 10**6),
    tenths=st.integers(1, 10**6),
    strategy=st.sampled_from(["coarse", "medium", "fine"]),
    name=st.sampled_from(OWN),
)
def test_parsing_restores_calls_on_tenths_of_a_second(start: int, tenths: int, strategy: str, name: str) -> None:
    fmt = FORMATS[name]()
    written = Call(start / 10, (start + tenths) / 10, strategy)
    assert fmt.parse(fmt.render_turn("x", written, None)).calls == (written,)


@pytest.mark.parametrize(
    ("value", "text"), [(3.0, "3"), (0.04, "0"), (-0.01, "0"), (2.55, "2.5"), (2.56, "2.6"), (1e6, "1000000")]
)
def test_times_are_written_short(value: float, text: str) -> None:
    assert str(seconds_number(value)) == text


@pytest.mark.parametrize(
    ("think", "action", "answer", "complaint"),
    [
        ("x", None, None, "either"),
        ("x", Call(0, 1, "fine"), "A", "either"),
        ("a </think> b", None, "A", "</think>"),
        ("x", None, "<answer>", "<answer>"),
        ("x", Call(3.01, 3.04, "fine"), None, "empty"),
    ],
)
def test_render_refuses_what_parse_could_not_read(
    think: str, action: Call | None, answer: str | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        GROUNDING.render_turn(think, action, answer)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="'long' is not one of full, brief"):
        FORMATS["grounding"]("long")


FAULTY = {
    "no think": ("<answer>A</answer>", ["no_think"]),
    "think left open": ("<think>hm <answer>A</answer>", ["unclosed_think"]),
    "think after the answer": ("<answer>A</answer><think>so</think>", ["misplaced_text"]),
    "two thinks": ("<think>a</think><think>b</think><answer>A</answer>", ["misplaced_text"]),
    "text between": ("<think>a</think> so <answer>A</answer>", ["misplaced_text"]),
    "text after": ("<think>a</think>\n<answer>A</answer> done", ["misplaced_text"]),
    "nothing": ("", ["no_think", "no_action"]),
    "prose": ("The answer is A.", ["no_think", "misplaced_text", "no_action"]),
    "think alone": ("<think>a</think>", ["no_action"]),
    "answer left open": ("<think>a</think><answer>A", ["unclosed_action"]),
    "answer cut in its tag": ("<think>a</think><answer>A</ans", ["unclosed_action"]),
    "blank answer": ("<think>a</think><answer> \n</answer>", ["empty_answer"]),
    "two answers": ("<think>a</think><answer>A</answer><answer>B</answer>", ["several_actions"]),
    "call and answer": (segment("[1, 2]") + "<answer>A</answer>", ["both_actions"]),
    "two calls": (segment("[1, 2]") + segment("[3, 4]").split("\n")[1], ["several_actions"]),
    "not JSON": (call("10 to 20"), ["bad_json"]),
    "empty call": (call(""), ["bad_json"]),
    "single quotes": (call("{'temporal_segment': [1, 2], 'sampling_strategy': 'fine'}"), ["bad_json"]),
    "a list": (call("[1, 2]"), ["bad_json"]),
    "text around the object": (call('ok {"temporal_segment": [1, 2], "sampling_strategy": "fine"}'), ["bad_json"]),
    "NaN": (segment("[NaN, 2]"), ["bad_json"]),
    "Infinity": (segment("[1, Infinity]"), ["bad_json"]),
    "a number beyond floats": (segment("[1, 1e999]"), ["not_finite"]),
    "an integer beyond floats": (segment(f"[1, 1{'0' * 400}]"), ["not_finite"]),
    "an integer beyond Python's parser": (segment(f"[1, 1{'0' * 5000}]"), ["bad_json"]),
    "nested without end": (call('{"a": ' * 100_000), ["bad_json"]),
    "brackets without end": (call("[" * 100_000), ["bad_json"]),
    "no strategy": (call('{"temporal_segment": [1, 2]}'), ["missing_field"]),
    "no segment": (call('{"sampling_strategy": "fine"}'), ["missing_field"]),
    "one time": (segment("[1]"), ["bad_segment"]),
    "three times": (segment("[1, 2, 3]"), ["bad_segment"]),
    "segment is null": (segment("null"), ["bad_segment"]),
    "times as texts": (segment('["1", "2"]'), ["not_numbers"]),
    "times as truth values": (segment("[false, true]"), ["not_numbers"]),
    "times nested": (segment("[[1], [2]]"), ["not_numbers"]),
    "before the video": (segment("[-1, 2]"), ["negative_segment"]),
    "reversed": (segment("[20, 10]"), ["reversed_segment"]),
    "no length": (segment("[10, 10]"), ["reversed_segment"]),
    "unknown strategy": (segment("[1, 2]", '"low"'), ["bad_strategy"]),
    "strategy in capitals": (segment("[1, 2]", '"Fine"'), ["bad_strategy"]),
    "strategy is a list": (segment("[1, 2]", '["fine"]'), ["bad_strategy"]),
}


@pytest.mark.parametrize(("text", "expected"), FAULTY.values(), ids=FAULTY.keys())
def test_each_fault_has_its_code(text: str, expected: list[str]) -> None:
    turn = GROUNDING.parse(text)
    assert codes(turn) == expected
    assert all(item.message == FAULTS[item.code] for item in turn.faults)
    if expected[0] not in STRUCTURE_FAULTS:
        assert turn.calls == ()


def test_every_fault_can_happen() -> None:
    seen = {code for _, expected in FAULTY.values() for code in expected}
    assert seen | {"unknown_tool"} == FAULTS.keys()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>A</answer>", "A"),
        ("<think>x <answer>B</answer> y</think><answer> A </answer>", "A"),
        ("<think>x</think><answer>A</answer><answer>B</answer>", "B"),
        ("<think>x</think><answer>A</answer><answer></answer>", "A"),
        ("<think>x</think><answer>A", None),
    ],
)
def test_parsing_finds_the_answer_that_counts(text: str, answer: str | None) -> None:
    assert GROUNDING.parse(text).answer == answer


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ('{"name": "zoom", "arguments": {"temporal_segment": [1, 2], "sampling_strategy": "fine"}}', "unknown_tool"),
        ('{"arguments": {"temporal_segment": [1, 2], "sampling_strategy": "fine"}}', "missing_field"),
        ('{"name": "crop_video", "arguments": [1, 2]}', "missing_field"),
        ('{"name": ["crop_video"], "arguments": {}}', "unknown_tool"),
    ],
)
def test_faulty_hermes_calls_have_a_code(payload: str, expected: str) -> None:
    assert codes(HERMES.parse(f"<think>x</think>\n<tool_call>{payload}</tool_call>")) == [expected]


def test_hermes_takes_several_calls_and_keeps_their_order() -> None:
    first, second = Call(1, 2, "fine"), Call(3, 4, "coarse")
    text = HERMES.render_turn("x", first, None) + "\n" + HERMES.render_turn("x", second, None).split("\n")[1]
    assert HERMES.parse(text) == ParsedTurn("x", (first, second), None, ())


def test_unicode_and_nul_pass_through() -> None:
    turn = GROUNDING.parse("<think>čtvrtá 第四 \x00 \ud800 🙂</think>\n<answer>Ω\x00</answer>")
    assert turn == ParsedTurn("čtvrtá 第四 \x00 \ud800 🙂", (), "Ω\x00", ())


def _mutate(text: str, generator: random.Random) -> str:
    """A turn with stretches dropped, doubled, or replaced by tags, brackets and odd characters."""
    debris = ["<think>", "</think>", "<grounding>", "</grounding>", "<tool_call>", "</tool_call>", "<answer>"]
    debris += ["</answer>", "{", "}", "[", "]", '"', "'", ",", ":", "NaN", "-", "1e999", "\\u", "\x00", "\ud800", "🙂"]
    for _ in range(generator.randint(1, 6)):
        start = generator.randint(0, len(text))
        end = min(len(text), start + generator.randint(0, 12))
        middle = generator.choice(["", text[start:end] * 2, generator.choice(debris)])
        text = text[:start] + middle + text[end:]
    return text


def _strings(count: int) -> list[str]:
    generator = random.Random(0)
    seeds = [text for text, _ in FAULTY.values() if len(text) < 500]
    seeds += [fmt.render_turn("look", Call(1, 2, "fine"), None) for fmt in (GROUNDING, HERMES)]
    noise = ["".join(chr(generator.randrange(0x11000)) for _ in range(generator.randint(0, 40))) for _ in range(500)]
    return [_mutate(generator.choice(seeds + noise), generator) for _ in range(count)]


def test_20_000_mutated_strings_never_raise() -> None:
    formats: list[CallFormat] = [GROUNDING, HERMES]
    for index, text in enumerate(_strings(20_000)):
        turn = formats[index % 2].parse(text)
        assert turn.calls or turn.answer is not None or turn.faults, text
        assert all(item.code in FAULTS for item in turn.faults)
        assert all(0 <= item.start_seconds < item.end_seconds < float("inf") for item in turn.calls)
        assert turn.answer is None or turn.answer.strip()


@given(data=st.binary(max_size=80), name=st.sampled_from(OWN))
def test_spans_of_any_bytes_are_in_order_and_inside(data: bytes, name: str) -> None:
    fmt = FORMATS[name]()
    sandwich = b"<think>" + data[:40] + b"</think><answer>" + data[40:]
    for candidate in (data, sandwich):
        edges = [edge for start, end, _ in fmt.content_spans(candidate) for edge in (start, end)]
        assert edges == sorted(edges)
        assert all(0 <= edge <= len(candidate) for edge in edges)


def test_spans_are_contents_without_tags() -> None:
    data = GROUNDING.render_turn("look ž", Call(1, 2, "fine"), None).encode() + b"<answer></answer>"
    spans = [(data[start:end].decode(), role) for start, end, role in GROUNDING.content_spans(data)]
    payload = '{"temporal_segment": [1, 2], "sampling_strategy": "fine"}'
    assert spans == [("look ž", Role.THINK), (payload, Role.CALL), ("", Role.ANSWER)]


@pytest.mark.parametrize(
    "tag", ["<think>", "<grounding>", "<answer>", "</think>", "<think></think>", "<think><answer>"]
)
def test_a_flood_of_tags_takes_linear_time(tag: str) -> None:
    started = time.perf_counter()
    GROUNDING.parse(tag * 50_000)
    assert time.perf_counter() - started < 5


def sample(kind: str = "clue_single_w_tool", options: tuple[str, ...] = OPTIONS) -> Sample:
    return Sample(id="s", video="v.mp4", question="Which?", answer="A", kind=kind, options=options)


def test_the_full_system_prompt_shows_a_valid_example_of_each_output() -> None:
    for fmt in (GROUNDING, HERMES):
        prompt = fmt.system_prompt()
        examples = ["<think>" + part for part in prompt.split("<think>")[1:]]
        closing = f"</{fmt.call_tag}>"
        # The first mention is of the tags themselves, then come the two examples.
        looked, answered = examples[-2].split(closing)[0] + closing, examples[-1]
        assert codes(fmt.parse(looked)) == [] and fmt.parse(looked).calls
        assert codes(fmt.parse(answered)) == [] and fmt.parse(answered).answer == "B"


def test_the_brief_wording_is_brief() -> None:
    assert BRIEF.system_prompt() == "Seek clues, then answer."
    assert BRIEF.prompt_text(sample()) == "Question: Which?\nOptions: A. red B. blue"
    assert BRIEF.observation_text(2, "From 1 to 2 seconds.") == ("Observation 2: ", "")
    assert BRIEF.fault_text([fault("bad_json")]) == "Fault: bad json."


def test_options_that_carry_letters_keep_them() -> None:
    lettered = sample(options=("A. red", "B. blue"))
    assert GROUNDING.prompt_text(lettered) == GROUNDING.prompt_text(sample())
    assert "\nA. red\nB. blue\n" in GROUNDING.prompt_text(lettered)


def test_the_full_prompt_asks_for_what_the_kind_wants() -> None:
    assert "letter" in GROUNDING.prompt_text(sample())
    assert "phrase" in GROUNDING.prompt_text(sample(options=()))
    assert "temporal_segment" in GROUNDING.prompt_text(sample("temporal_grounding", ()))
    assert GROUNDING.prompt_text(sample("perception", ())) == "Question: Which?"


def test_the_full_observation_carries_the_time_sentence() -> None:
    before, after = GROUNDING.observation_text(3, "From 1 to 2 seconds.")
    assert "Observation 3" in before and "From 1 to 2 seconds." in after


def test_fault_text_repeats_every_sentence() -> None:
    text = GROUNDING.fault_text([fault("no_think"), fault("bad_json")])
    assert FAULTS["no_think"] in text and FAULTS["bad_json"] in text
    with pytest.raises(ValueError, match="at least one fault"):
        GROUNDING.fault_text([])
