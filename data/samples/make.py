"""Makes the files of this folder anew: one video, one folder of frames, and the same questions in every format.

python data/samples/make.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import av
import pyarrow
from pyarrow import parquet

from videoseek.samples.clueworld import FPS, Card, World, write_video

FOLDER = Path(__file__).parent
VIDEO = "videos/cards.mp4"
FRAMES = "videos/frames"
CARDS = (Card(1, "red", "rows"), Card(4, "blue", "checks"), Card(6, "green", "columns"))

ASKED = "What is on the red card?"
OPTIONS = ["rows", "columns", "checks", "slashes"]
LETTERED = "A. rows\nB. columns\nC. checks\nD. slashes"
BOTH = "Are the red and blue cards lined?\nA. first only\nB. second only\nC. both\nD. neither"
TIME = "This video is uniformly sampled at 2.00 fps, contains 64.0 frames from 0.0 seconds to 32.0 seconds."
ANSWER = "<think>The card has rows.</think>\n<answer>A</answer>"


def grounding(think: str, window: list[float]) -> str:
    call = json.dumps({"temporal_segment": window, "sampling_strategy": "medium"})
    return f"<think>{think}</think>\n<grounding>{call}</grounding>"


def crop_call(start: float, end: float) -> dict[str, Any]:
    return {"name": "crop_video", "arguments": {"video_path": VIDEO, "start_time": start, "end_time": end}}


def say(role: str, text: str, role_tag: str = "role", content_tag: str = "content") -> dict[str, str]:
    return {role_tag: role, content_tag: text}


def media(*windows: list[float]) -> list[dict[str, Any]]:
    whole = {"url": VIDEO, "crop": [-1, -1], "sample": None}
    return [whole, *({"url": VIDEO, "crop": window, "sample": "medium"} for window in windows)]


def seeker_sft() -> list[dict[str, Any]]:
    first = [
        say("user", f"<video>{TIME}\n{ASKED}\n{LETTERED}"),
        say("assistant", grounding("Something red is shown at 4 to 8.", [4, 8]) + "\n"),
        say("user", "After the above Action 1, here is the refined video clip (Observation 1):\n<video>\nGo on."),
        say("assistant", ANSWER + "\n"),
    ]
    second = [
        say("user", f"<video>\n{BOTH}"),
        say("assistant", grounding("First the red one.", [4, 8])),
        say("user", "<video>"),
        say("assistant", grounding("Rows. Now the blue one.", [16, 20])),
        say("user", "<video>"),
        say("assistant", ANSWER),
    ]
    return [
        {"id": 1, "system": "Seek clues.", "messages": first, "videos": media([4, 8])},
        {"id": 2, "system": "Seek clues.", "messages": second, "videos": media([4, 8], [16, 20])},
    ]


def seeker_rl() -> list[dict[str, Any]]:
    clue = {"timestamp": [4, 8], "text": "a red card"}
    return [
        {
            "doc_id": "red",
            "video": VIDEO,
            "question": ASKED,
            "options": [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)],
            "solution": {"answer": "A", "clue": [clue]},
            "data_source": "clue_single_w_tool",
        },
        {
            "doc_id": "first",
            "video": FRAMES,
            "frame_fps": 4.0,
            "question": "Is a card shown at the start?",
            "options": ["A. yes", "B. no"],
            "solution": {"answer": "B", "clue": []},
            "data_source": "tool_free_form",
        },
        {
            "doc_id": "when",
            "video": VIDEO,
            "problem": "a red card is shown",
            "solution": {"clue": [clue]},
            "data_source": "temporal_grounding",
        },
    ]


def sharegpt() -> list[dict[str, Any]]:
    talk = [
        ("human", f"<video>{ASKED}\n{LETTERED}"),
        ("gpt", "<think>Something red is shown at 4 to 8.</think>"),
        ("function_call", json.dumps(crop_call(4, 8))),
        ("observation", "The clip: <video>"),
        ("gpt", ANSWER),
    ]
    messages = [say(*turn, role_tag="from", content_tag="value") for turn in talk]
    plain = [("human", "<video>What happens?"), ("gpt", "A red, a blue and a green card are shown.")]
    return [
        {"conversations": messages, "videos": [VIDEO, VIDEO]},
        {"conversations": [say(*turn, role_tag="from", content_tag="value") for turn in plain], "videos": [VIDEO]},
    ]


def swift() -> list[dict[str, Any]]:
    talk = [
        say("system", "Seek clues."),
        say("user", f"<video>{BOTH}"),
        say("assistant", "<think>Both at once.</think>"),
        say("tool_call", json.dumps(crop_call(4, 8))),
        say("tool_call", json.dumps(crop_call(16, 20))),
        say("tool_response", "<video>"),
        say("tool_response", "<video>"),
        say("assistant", ANSWER) | {"loss": True},
    ]
    return [{"messages": talk, "videos": [VIDEO] * 3}]


def trl() -> list[dict[str, Any]]:
    parts = [{"type": "video", "video": VIDEO}, {"type": "text", "text": f"{ASKED}\n{LETTERED}"}]
    call = {"type": "function", "function": crop_call(4, 8)}
    talk = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "<think>Look closer.</think>", "tool_calls": [call]},
        {"role": "tool", "content": "The clip was cut."},
        {"role": "assistant", "content": ANSWER},
    ]
    question = {"prompt": [say("user", f"{ASKED}\n{LETTERED}")], "videos": [VIDEO], "answer": "A"}
    return [{"messages": talk}, question | {"completion": [say("assistant", ANSWER)]}]


def verl() -> list[dict[str, Any]]:
    def row(index: int, question: str, truth: Any, segment: list[float] | None) -> dict[str, Any]:
        extra = {"index": index, "split": "train", "question": question, "video_segment": segment}
        return {
            "data_source": "longvt",
            "prompt": [say("system", "Think first."), say("user", f"<video>{question} Think first, then answer.")],
            "videos": [{"type": "video", "video": VIDEO, "fps": 1}],
            "ability": "video",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": extra | {"need_tools_kwargs": True},
        }

    return [row(0, ASKED, "rows", [4.0, 8.0]), row(1, "Which colour is shown last?", "green", None)]


def paravt() -> list[dict[str, Any]]:
    def row(question: str, **extra: str) -> dict[str, Any]:
        prompt = [say("user", f"<video>{question}")]
        videos = [{"video": f"__VIDEO_ROOT__/{VIDEO}"}]
        return {"prompt": prompt, "videos": videos, "extra_info": json.dumps(extra)}

    return [
        row(f"{ASKED}\n{LETTERED}", answer="A", question_type="mcq"),
        row("When is the red card shown?", answer="[4.0, 8.0]", question_type="tvg"),
        row("Which colour is shown last?", answer="green", question_type="oe"),
    ]


def paravt_sft() -> list[dict[str, Any]]:
    calls = "".join(f"<tool_call>{json.dumps(crop_call(*window))}</tool_call>" for window in ((4, 8), (16, 20)))
    talk = [
        say("user", f"<video>{BOTH}"),
        say("assistant", f"<think>Both at once.</think>{calls}"),
        say("user", "<tool_response>Rows.</tool_response>"),
        say("user", "<tool_response>Checks.</tool_response>"),
        say("assistant", ANSWER),
    ]
    return [{"messages": json.dumps(talk), "videos": [{"video": f"__VIDEO_ROOT__/{VIDEO}"}]}]


def video_r1() -> list[dict[str, Any]]:
    options = [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)]
    common = {"data_type": "video", "path": f"./{VIDEO}", "data_source": "clue world"}
    choice = {"problem_type": "multiple choice", "options": options, "solution": "<answer>A</answer>"}
    counted = {"problem_type": "numerical", "options": [], "solution": "<answer>3</answer>"}
    return [
        {"problem_id": 1, "problem": ASKED} | common | choice,
        {"problem_id": 2, "problem": "How many cards are shown?"} | common | counted,
    ]


def video_r1_sft() -> list[dict[str, Any]]:
    return [video_r1()[0] | {"process": "<think>The red card has rows.</think>"}]


def videoseek() -> list[dict[str, Any]]:
    common = {"version": 1, "video": VIDEO, "kind": "clue_single_w_tool", "question": ASKED, "options": OPTIONS}
    looked = {"id": "look", "turns": [grounding("Something red is shown at 4 to 8.", [4, 8]), ANSWER]}
    frames = {"id": "frames", "video": f"{FRAMES}#fps=4", "kind": "perception", "question": "What is shown?"}
    return [
        common | looked | {"answer": "A", "clues": [[4, 8]]},
        common | frames | {"options": [], "answer": "nothing", "turns": ["nothing"], "window": [0, 1]},
    ]


def write_small_video(path: Path, size: int = 112) -> None:
    """A video of clue world, reduced and compressed to a few kilobytes."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(f"{folder}/world.mp4", CARDS)
        write_video(world, seed=0)
        with av.open(world.video) as source, av.open(str(path), "w") as target:
            stream = target.add_stream("libx264", rate=FPS)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "40", "preset": "slow", "g": "8", "threads": "1"}
            for frame in source.decode(video=0):
                target.mux(stream.encode(frame.reformat(size, size)))
            target.mux(stream.encode())


def main() -> None:
    (FOLDER / FRAMES).mkdir(parents=True, exist_ok=True)
    write_small_video(FOLDER / VIDEO)
    with av.open(str(FOLDER / VIDEO)) as container:
        for number, frame in zip(range(1, 9), container.decode(video=0), strict=False):
            frame.to_image(width=56, height=56).save(FOLDER / FRAMES / f"{number:04d}.jpg", quality=70)
    lists = {"seeker_sft_single_w_tool.json": seeker_sft(), "seeker_rl.json": seeker_rl(), "sharegpt.json": sharegpt()}
    lists |= {"video_r1.json": video_r1(), "video_r1_sft.json": video_r1_sft()}
    for name, records in lists.items():
        (FOLDER / name).write_text(json.dumps(records, indent=1) + "\n")
    for name, records in {"swift": swift(), "trl": trl(), "videoseek": videoseek()}.items():
        (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, records in {"verl": verl(), "paravt": paravt(), "paravt_sft": paravt_sft()}.items():
        parquet.write_table(pyarrow.Table.from_pylist(records), FOLDER / f"{name}.parquet")
    columns = {"messages": "conversations", "videos": "videos"}
    entry = {"file_name": "sharegpt.json", "formatting": "sharegpt", "columns": columns}
    (FOLDER / "dataset_info.json").write_text(json.dumps({"cards": entry}, indent=2) + "\n")


if __name__ == "__main__":
    main()
