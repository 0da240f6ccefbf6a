"""The command refuses an impossible run with a sentence and an exit code, and leaves the output folder unchanged."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import forked, refused, rows, run, weights

from videoseek.config import UsageError
from videoseek.config_merge import load_config
from videoseek.files import hold_folder
from videoseek.model.load import load_model, load_tokenizer, model_folder, save_pretrained
from videoseek.samples.clueworld import prepare
from videoseek.stages.pipeline import check_batches, check_evaluation, check_masters

Record = dict[str, Any]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("grpo.groupsize=8", "unknown key 'grpo.groupsize' .*; the closest are grpo.group_size, "),
        ("sft.steps=many", "sft.steps must be a whole number, got 'many'"),
        ("recipe=sft_lr", "recipe 'sft_lr' is neither a file nor one of .*sft_rl"),
        ("grpo.group_size=1", "grpo.group_size must be at least 2, got 1"),
        ("resume=nowhere", "resume must be no, auto or an existing checkpoint folder, got 'nowhere'"),
        ("stages=[sft,sft]", "none twice"),
    ],
)
def test_usage_errors_are_one_sentence(argument: str, sentence: str, tmp_path: Path) -> None:
    assert re.search(sentence, refused([argument], tmp_path, code=2))


def test_usage_by_the_real_command(output_dir: Path) -> None:
    said = run(["recipe=sft_rl", "grpo.group_size=1", f"output_dir={output_dir}"], code=2)
    assert said == "videoseek: grpo.group_size must be at least 2, got 1\n"
    assert not output_dir.exists()


@pytest.fixture
def world(tiny: list[str], tmp_path: Path) -> tuple[list[Record], list[str]]:
    """Returns the records of a good data file in `tmp_path`, and arguments for training on `mine.jsonl` there."""
    good = prepare(tmp_path / "cache", "train", 6, seed=0)
    shutil.copytree(good.parent / "videos", tmp_path / "videos")
    records = [json.loads(line) for line in good.read_text().splitlines()]
    return records, [*tiny, "stages=[sft]", f"data.sft=[{tmp_path / 'mine.jsonl'}]", f"output_dir={tmp_path / 'out'}"]


def assert_untouched(output_dir: Path) -> None:
    assert list(output_dir.iterdir()) == []


def without_turns(record: Record) -> None:
    del record["turns"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda record: record.update(video="videos/nowhere.mp4"), "sample 'train-00000-3'.*nowhere.mp4"),
        (lambda record: record.update(video="videos/noise.mp4"), "noise.mp4 is not a video file"),
        (lambda record: record.update(video="videos/half.mp4"), "half.mp4 is not a video file"),
        (
            lambda record: record.update(video="../secret.mp4"),
            "line 4: video '../secret.mp4' lies outside video_root",
        ),
        (lambda record: record.update(video="/etc/passwd"), "line 4: video '/etc/passwd' lies outside"),
        (lambda record: record.update(answer=" "), "line 4: sample 'train-00000-3' has no answer"),
        (
            lambda record: record.update(clues=[[28, 90]]),
            r"clue \[28, 90\] lies beyond the end of .*mp4 \(32.0 seconds\)",
        ),
        (lambda record: record.update(clues=[[4, 4]]), r"line 4: clue .* \[4.0, 4.0\] must satisfy 0 <= start < end"),
        (lambda record: record.update(clues=[[8, 4]]), r"line 4: clue .* must satisfy"),
        (lambda record: record.update(clues=[["4", 8]]), "line 4: field 'clues' wants"),
        (lambda record: record.update(kind="riddle"), "line 4: kind 'riddle' .* is not one of clue_single_w_tool"),
        (lambda record: record.update(id="train-00000-0"), "line 4: id 'train-00000-0' is used twice"),
        (lambda record: record.update(anwser="A"), "line 4: unknown field 'anwser'"),
        (without_turns, "sample 'train-00000-3': the record has no turns"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_bad_records_are_refused(
    change: Callable[[Record], None], sentence: str, world: tuple[list[Record], list[str]], tmp_path: Path
) -> None:
    records, arguments = world
    (tmp_path / "videos" / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    whole = (tmp_path / records[3]["video"]).read_bytes()
    (tmp_path / "videos" / "half.mp4").write_bytes(whole[: len(whole) // 2])
    change(records[3])
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert re.search(sentence, refused(arguments, tmp_path, code=1))
    assert_untouched(tmp_path / "out")


def test_rl_refuses_a_sample_without_a_reward(world: tuple[list[Record], list[str]], tmp_path: Path) -> None:
    records, arguments = world
    records[3]["kind"] = "perception"
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for_rl = [*arguments, "stages=[grpo]", f"data.rl=[{tmp_path / 'mine.jsonl'}]"]
    assert "sample 'train-00000-3': kind 'perception' has no reward" in refused(for_rl, tmp_path, code=1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "mine.jsonl' does not exist"),
        ("", "mine.jsonl' holds no samples"),
        ('\n{"id": "a",\n', "mine.jsonl, line 2: no valid JSON: Expecting property name"),
        ("[1]\n", "mine.jsonl, line 1: a record must be a JSON object, got list"),
        (b"\x00\xff\n", "mine.jsonl, line 1: no text in UTF-8: byte 2 is 0xff"),
    ],
    ids=["missing", "empty", "syntax", "no_object", "binary"],
)
def test_bad_data_files_are_refused(
    content: str | bytes | None, sentence: str, world: tuple[list[Record], list[str]], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "mine.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    assert re.search(sentence, refused(world[1], tmp_path, code=1))
    assert_untouched(tmp_path / "out")


def written(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


_CONFIG = '{"model_type": "qwen2_5_vl"}'


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (None, "no config.json in"),
        ({"config__json": _CONFIG}, r"no \*.safetensors weights in"),
        ({"config__json": _CONFIG, "pytorch_model__bin": "pickle"}, "pickled weights are not loaded"),
        ({"config__json": '{"model_type": "llava"}', "m__safetensors": ""}, "is of type 'llava'; only 'qwen2_5_vl'"),
        ({"config__json": "{", "m__safetensors": ""}, "is not a model's configuration"),
        ({"config__json": _CONFIG, "model__safetensors": "no weights"}, "weights in .* are damaged"),
    ],
    ids=["missing", "no_weights", "pickled", "other_type", "broken_config", "broken_weights"],
)
def test_bad_models_are_refused(files: dict[str, str] | None, sentence: str, tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model" if files is None else written(tmp_path / "model", **files)
    said = refused([*tiny, "stages=[sft]", f"model={folder}", f"output_dir={tmp_path / 'out'}"], tmp_path, code=1)
    assert re.search(sentence, said)


def test_reference_rule_needs_the_real_vocabulary(tiny: list[str], tmp_path: Path) -> None:
    said = refused([*tiny, "tdam.rule=reference", f"output_dir={tmp_path / 'out'}"], tmp_path, code=2)
    assert "tdam.rule=reference" in said and "needs Qwen's vocabulary" in said


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_output_folder_that_is_a_file_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    said = refused([f"output_dir={tmp_path}/taken{below}"], tmp_path, code=2)
    assert re.search(f"output_dir .*taken{below} cannot be written to: ", said)
    assert (tmp_path / "taken").read_text() == "mine"


def test_resume_folder_without_a_checkpoint_is_refused(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [*tiny, f"output_dir={tmp_path / 'out'}", f"resume={tmp_path / 'empty'}"]
    assert "empty is not a complete checkpoint" in refused(arguments, tmp_path, code=1)
    assert_untouched(tmp_path / "out")


def test_batch_smaller_than_the_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    check_batches(load_config(["grpo.prompts_per_step=3", "sft.samples_per_step=3"]))
    with pytest.raises(UsageError, match="grpo.prompts_per_step 2 is less than the run's 3 ranks"):
        check_batches(load_config(["grpo.prompts_per_step=2"]))
    with pytest.raises(UsageError, match="sft.samples_per_step 2 is less than the run's 3 ranks"):
        check_batches(load_config(["recipe=sft", "sft.samples_per_step=2", "grpo.prompts_per_step=2"]))


def test_low_precision_without_masters_is_refused() -> None:
    check_masters(load_config(["dtype=bfloat16", "deepspeed.stage=1"]))
    with pytest.raises(UsageError, match="dtype=bfloat16 needs a deepspeed.stage of 1 or more"):
        check_masters(load_config(["dtype=bfloat16", "deepspeed.stage=0"]))


def test_a_folder_at_work_is_refused_and_left_as_it_is(tiny: list[str], tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "config.yaml").write_text("# of the run at work\n")
    held = hold_folder(output_dir)
    sentence = refused([*tiny, f"output_dir={output_dir}"], tmp_path, code=2)
    os.close(held)
    assert f"output_dir {output_dir} is in use by process {os.getpid()} on " in sentence
    assert {path.name for path in output_dir.iterdir()} == {"config.yaml", "lock"}


def test_evaluation_inside_without_questions_is_refused() -> None:
    check_evaluation(load_config(["data.eval=[]"]))
    with pytest.raises(UsageError, match="evaluate.every_steps=5 needs held-out questions; data.eval names none"):
        check_evaluation(load_config(["data.eval=[]", "evaluate.every_steps=5"]))


def test_keys_of_workers_are_checked_before_any_stage(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, "rollout.engine=vllm", "rollout.vllm_python=/no/python", f"output_dir={tmp_path / 'out'}"]
    assert "vllm_python=/no/python is not a program" in refused(arguments, tmp_path, code=2)
    assert_untouched(tmp_path / "out")


def test_reward_functions_are_loaded_before_any_stage(tiny: list[str], tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("def accuracy(**kwargs):\n    return []\n")
    arguments = [*tiny, f"reward.functions=[{reward}:accuracy]", f"output_dir={tmp_path / 'out'}"]
    assert "mine.py:accuracy' has the name of another one or of a part" in refused(arguments, tmp_path, code=1)
    assert_untouched(tmp_path / "out")


def test_full_disk_leaves_the_last_checkpoint(tiny: list[str], tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk: the write fails in the same place, midway through the weights."""
    output_dir = tmp_path / "out"
    arguments = [*tiny, "stages=[sft]", "evaluate.num_questions=1", f"output_dir={output_dir}", "resume=auto"]
    forked([*arguments, "sft.steps=2"], tmp_path)
    shutil.rmtree(output_dir / "sft")
    kept = weights(output_dir / "checkpoint-2").keys()
    said = forked(arguments, tmp_path, code=1, file_size_limit=2**20)
    sentence = said.splitlines()[-1]
    assert "Traceback" not in said
    assert re.fullmatch(r"videoseek: .*checkpoint-4 could not be saved: .*; earlier ones are intact", sentence)
    assert {path.name for path in output_dir.glob("*checkpoint*")} == {"checkpoint-2"}
    assert (output_dir / "last").resolve() == output_dir / "checkpoint-2"
    assert weights(output_dir / "checkpoint-2").keys() == kept
    forked(arguments, tmp_path)
    assert [row["step"] for row in rows(output_dir)] == [1, 2, 3, 4]


def test_full_disk_at_the_tokenizer_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("tiny")
    model, tokenizer = load_model(folder, torch.float32, torch.device("cpu")), load_tokenizer(folder)

    def full(path: Path) -> None:
        raise Exception("No space left on device (os error 28)")  # as the tokenizers library does

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_pretrained(model, tokenizer, tmp_path / "model")


def test_earlier_run_is_moved_aside(tiny: list[str], tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    arguments = [*tiny, "stages=[sft]", "sft.steps=1", "evaluate.num_questions=1", f"output_dir={output_dir}"]
    forked(arguments, tmp_path)
    (output_dir / "notes.txt").write_text("mine")
    first = weights(output_dir / "sft")
    said = forked([*arguments, "seed=1"], tmp_path)
    assert f"an earlier run was moved to {output_dir}.old-1" in said
    assert (tmp_path / "out.old-1" / "notes.txt").read_text() == "mine"
    assert weights(tmp_path / "out.old-1" / "sft").keys() == first.keys()
    assert [row["step"] for row in rows(output_dir)] == [1]
