"""Builds a data folder with a different fault in every second record, and the expected codes of each fault."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from support.video_samples import steady, write_video, x264

from videoseek.trajectory.formats import FORMATS
from videoseek.types import Call

FORMAT = FORMATS["grounding"]()
SECONDS, FPS = 10, 8
LOOK = FORMAT.render_turn("The card is too small.", Call(2.0, 6.0, "medium"), None)
ANSWER = FORMAT.render_turn("It is red.", None, "A")
GOOD = {
    "version": 1,
    "video": "videos/good.mp4",
    "kind": "clue_single_w_tool",
    "options": ["red", "green", "blue"],
    "answer": "A",
    "clues": [[2, 6]],
    "turns": [LOOK, ANSWER],
}


def look_at(start: float, end: float) -> str:
    return LOOK.replace("[2, 6]", f"[{start}, {end}]")


#: The change of a good record (None: without the field) -> the exact set of expected codes.
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "unknown_field"),
    ({"question": None}, "missing_field"),
    ({"answer": None}, "missing_field"),
    ({"question": 7}, "wrong_type"),
    ({"version": 2}, "wrong_type"),
    ({"options": "red, green"}, "wrong_type"),
    ({"options": ["red", 3]}, "wrong_type"),
    ({"turns": ANSWER}, "wrong_type"),
    ({"clues": [[1, 2, 3]]}, "wrong_type"),
    ({"clues": [["0:01", "0:02"]]}, "wrong_type"),
    ({"video": "videos/\0.mp4"}, "wrong_type"),
    ({"kind": "riddle"}, "bad_kind"),
    ({"answer": " "}, "no_answer"),
    ({"clues": [[6, 2]]}, "bad_interval"),
    ({"clues": [[2, 2]]}, "bad_interval"),
    ({"clues": [[-1, 2]]}, "bad_interval"),
    ({"clues": [[float("nan"), 2]]}, "bad_interval"),
    ({"clues": [[0, 10**400]]}, "bad_interval"),
    ({"window": [5, 1]}, "bad_interval"),
    ({"video": "../outside.mp4"}, "outside_root"),
    ({"video": "/etc/hostname"}, "outside_root"),
    ({"video": "videos/link.mp4"}, "outside_root"),
    ({"video": "https://example.org/v.mp4"}, "outside_root"),
    ({"video": "videos/gone.mp4"}, "missing_file"),
    ({"video": "videos/folder"}, "no_frames"),
    ({"video": "videos/text.mp4"}, "not_video"),
    ({"video": "videos/audio.mp4"}, "not_video"),
    ({"video": "videos/empty.mp4"}, "not_video"),
    ({"video": "videos/headless.mp4"}, "not_video"),
    ({"video": "videos/frameless.avi"}, "no_frames"),
    ({"video": "videos/truncated.mp4"}, "truncated"),
    ({"video": "videos/truncated.mkv"}, "truncated"),
    ({"video": "videos/hole.mkv"}, "frames_missing"),
    ({"video": "videos/slides.mkv"}, ""),
    ({"video": "videos/corrupt.mp4"}, "decode_failed"),
    ({"video": "videos/thin.mp4"}, "size_unsupported"),
    ({"video": "videos/mixed"}, "mixed_frames"),
    ({"video": "videos/leaked.mp4"}, "leakage"),
    ({"clues": [[8, 12]]}, "clue_outside"),
    ({"clues": [[0, float("inf")]]}, "clue_outside"),
    ({"window": [4, 11]}, "window_outside"),
    ({"answer": "D"}, "bad_option answer_differs"),
    ({"answer": "crimson"}, "bad_option answer_differs"),
    ({"answer": "red"}, "answer_not_letter answer_differs"),
    ({"options": [f"colour {i}" for i in range(27)]}, "too_many_options"),
    ({"options": ["red", "green", "Red"]}, "repeated_option"),
    ({"question": "What is on the card of record 0?"}, "duplicate_question"),
    ({"kind": "temporal_grounding", "options": [], "clues": []}, "nothing_to_ground"),
    ({"question": "\ud83d?"}, "bad_text"),
    ({"turns": []}, "no_turns"),
    ({"turns": [LOOK.replace('"}', '"'), ANSWER]}, "bad_call"),
    ({"turns": [LOOK.replace("medium", "finest"), ANSWER]}, "bad_call"),
    ({"turns": [look_at(6, 2), ANSWER]}, "call_reversed"),
    ({"turns": [look_at(8, 14), ANSWER]}, "call_outside"),
    ({"turns": [look_at(2, 2.5), ANSWER]}, "call_too_short"),
    ({"turns": [LOOK.split("\n")[1], ANSWER]}, "bad_turn"),
    ({"turns": [LOOK, "<think>It is red.</think>"]}, "bad_turn"),
    ({"turns": [ANSWER, ANSWER]}, "turn_after_answer"),
    ({"turns": [LOOK]}, "no_final_answer"),
    ({"turns": [LOOK, ANSWER.replace("A<", "B<")]}, "answer_differs"),
    ({"turns": [LOOK] * 6 + [ANSWER]}, "too_many_turns"),
    ({"kind": "perception", "turns": ["<think>red</think>"] * 2}, "too_many_turns"),
    ({"turns": [LOOK.replace("small", "small " * 6000), ANSWER]}, "too_many_tokens"),
]
LINES: list[tuple[bytes, str]] = [
    (b'{"id": "cut off', "bad_json"),
    (b'{"id": "\xff\xfe"}', "bad_json"),
    (b"[" * 100_000, "bad_json"),
    (b'["a", "list"]', "not_object"),
    (b"null", "not_object"),
]


def build(folder: Path) -> tuple[list[Path], Path, dict[str, set[str]]]:
    """Fills the folder. Returns the data files, the held-out file, and the expected codes by place."""
    write_videos(folder)
    expected: dict[str, set[str]] = {}
    mixed, number = folder / "mixed.jsonl", 0
    with mixed.open("wb") as out:
        for line, codes in broken_lines():
            for text, wanted in ((json.dumps(record(number)).encode(), ""), (line, codes)):
                out.write(text + b"\n")
                number += 1
                expected[f"{mixed}, line {number}"] = set(wanted.split())
        out.write(json.dumps(record(0)).encode() + b"\n")
        expected[f"{mixed}, line {number + 1}"] = {"duplicate_id"}
    held_out = folder / "held_out.jsonl"
    held_out.write_text(json.dumps(record(0) | {"video": "held_out/h.mp4"}) + "\n")
    others = {"empty.jsonl": b"", "blank.jsonl": b"\n \n", "noise.parquet": b"PAR1 and noise"}
    for name, content in others.items():
        (folder / name).write_bytes(content)
        expected[str(folder / name)] = {"unreadable_file"}
    seeker = folder / "seeker_sft.json"
    seeker.write_text(json.dumps([seeker_record(i, marks, window) for i, (marks, window, _) in enumerate(SEEKER)]))
    expected |= {f"{seeker}, record {i}": set(codes.split()) for i, (_, _, codes) in enumerate(SEEKER, 1)}
    return [mixed, *(folder / name for name in others), seeker], held_out, expected


def record(number: int) -> dict[str, Any]:
    return GOOD | {"id": f"r{number}", "question": f"What is on the card of record {number}?"}


def broken_lines() -> Iterator[tuple[bytes, str]]:
    yield from LINES
    for index, (change, codes) in enumerate(FIELDS):
        broken = record(0) | {"id": f"broken{index}", "question": f"Broken {index}?"} | change
        yield json.dumps({k: v for k, v in broken.items() if v is not None}).encode(), codes


#: Marks in the texts, window of the crop, codes.
SEEKER = [(1, [2, 6], ""), (2, [2, 6], "marks_mismatch"), (1, [3, 9], "window_mismatch"), (1, [2, 6], "")]


def seeker_record(number: int, marks: int, window: list[float]) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"<video>\nWhat colour is card {number}? Options: A. red\nB. green"},
        {"role": "assistant", "content": LOOK},
        {"role": "user", "content": "<video>" * marks},
        {"role": "assistant", "content": ANSWER},
    ]
    videos = [{"url": "videos/good.mp4", "crop": [-1, -1]}, {"url": "videos/good.mp4", "crop": window}]
    return {"id": f"s{number}", "messages": messages, "videos": videos}


def write_videos(folder: Path) -> None:
    videos = folder / "videos"
    videos.mkdir()
    (folder / "held_out").mkdir()
    times = steady(SECONDS * FPS, FPS)
    good = write_video(videos / "good.mp4", times, options=x264(FPS))
    write_video(folder / "held_out" / "h.mp4", times, options=x264(FPS), size=(48, 64))
    (videos / "leaked.mp4").write_bytes((folder / "held_out" / "h.mp4").read_bytes())
    (videos / "link.mp4").symlink_to("/etc/hostname")
    (videos / "folder").mkdir()
    (videos / "text.mp4").write_text("not a video at all\n" * 50)
    (videos / "empty.mp4").touch()
    data = good.read_bytes()
    (videos / "headless.mp4").write_bytes(data[: len(data) * 2 // 3])  # the index stands at the end
    start, end = data.index(b"mdat") + 4, data.index(b"moov")
    broken = bytearray(data)
    third = (end - start) // 3
    broken[start + third : start + 2 * third] = np.random.default_rng(0).bytes(third)
    (videos / "corrupt.mp4").write_bytes(broken)
    write_truncated(videos / "truncated.mp4", good)
    write_video(videos / "hole.mkv", [t for t in times if not 3 <= t < 5], options=x264(FPS))
    write_video(videos / "slides.mkv", [t for t in times if t < 1 or t % 2 < 0.2], options=x264(FPS))
    spoken = write_video(videos / "truncated.mkv", times, options=x264(FPS), sound=True)
    spoken.write_bytes(spoken.read_bytes()[: spoken.stat().st_size * 4 // 5])
    write_video(videos / "thin.mp4", steady(SECONDS, 1), size=(4096, 16))
    write_audio(videos / "audio.mp4")
    with av.open(str(videos / "frameless.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    (videos / "mixed").mkdir()
    write_frames(videos / "mixed", [(64, 48), (64, 48), (48, 64)])


def write_truncated(path: Path, source: Path) -> None:
    """Cuts off the last third of the pictures, and keeps the index of all pictures at the beginning."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"movflags": "+faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    data = path.read_bytes()
    start = data.index(b"mdat")
    path.write_bytes(data[: start + (len(data) - start) * 2 // 3])


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_frames(folder: Path, sizes: Sequence[tuple[int, int]]) -> None:
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{number:03d}.png")
