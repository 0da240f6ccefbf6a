"""A fresh interpreter, without the optional libraries: everything imports, the light parts stay light."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from videoseek.trajectory_record import RecordedTurn, TrajectoryRecord
from videoseek.types import Clip, Sample

ROOT = Path(__file__).parents[1]

WITHOUT = """
import importlib.machinery
import importlib.util
import sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""


def run_without(absent: set[str], code: str, *arguments: object) -> str:
    """Runs code in a fresh interpreter that finds none of the `absent` libraries, and returns its output."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=sorted(absent)) + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


#: The programs that these files belong to import them, and nothing else does.
PLUGS = {"videoseek.evaluation.lmms_plug", "videoseek.evaluation.vlmevalkit_plug"}


def module_names() -> list[str]:
    folder = ROOT / "src"
    paths = [path for path in folder.rglob("*.py") if path.name != "__main__.py"]
    names = {".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return sorted(names - PLUGS)


def test_everything_imports_without_the_optional_libraries() -> None:
    names = module_names()
    assert "videoseek.train" in names
    names.remove("videoseek.serving.vllm_engine")  # vLLM's own interpreter runs it
    code = f"""
for name in {[*names, "videoseek_kernels"]!r}:
    importlib.import_module(name)
print(importlib.util.find_spec("videoseek_kernels").origin)
"""
    assert str(ROOT) in run_without({"triton", "flash_attn", "vllm", "peft"}, code)


def test_masked_attention_runs_without_triton() -> None:
    """Two packed documents, equal scores: each row is the mean of its own document's values so far."""
    code = """
import torch
from videoseek_kernels import TokenMask, tdam_attention

end = torch.tensor([2, 2, 5, 5, 5], dtype=torch.int32)
mask = TokenMask(end=end, key_class=torch.ones_like(end), visible=-torch.ones_like(end))
zeros, values = torch.zeros(5, 1, 16), torch.arange(1.0, 6.0)[:, None, None].expand(5, 1, 16)
print(tdam_attention(zeros, zeros, values, mask)[:, 0, 0].tolist())
"""
    assert run_without({"triton"}, code) == "[1.0, 1.5, 3.0, 3.5, 4.0]\n"


#: Runs `python -m videoseek.COMMAND ARGUMENT ...` in the interpreter that lacks libraries.
COMMAND = """
import runpy
sys.argv = sys.argv[1:]
runpy.run_module("videoseek." + sys.argv[0], run_name="__main__", alter_sys=True)
"""
COMMANDS = ("ask", "score", "report", "compare", "data", "evaluate", "serve", "train")
HEAVY = {"torch", "transformers", "deepspeed", "av", "numpy", "PIL", "rich", "triton"}
#: Seconds of CPU that --help may take. It takes 0.2; the bound has room for a slow machine, not for torch.
HELP_SECONDS = 1.5


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_library(command: str) -> None:
    assert run_without(HEAVY, COMMAND, command, "--help").startswith(f"usage: python -m videoseek.{command} ")


def test_a_worker_needs_nothing_of_the_trainers_libraries_beside_numpy() -> None:
    code = "import videoseek.serving.worker; print('imported')"
    assert run_without({*HEAVY, "yaml", "safetensors", "tokenizers", "omegaconf"} - {"numpy"}, code) == "imported\n"


def test_help_is_fast() -> None:
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_without(set(), COMMAND, "train", "--help")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime < HELP_SECONDS


def test_the_package_itself_imports_nothing() -> None:
    code = "before = set(sys.modules); import videoseek; print(sorted(set(sys.modules) - before))"
    assert run_without(HEAVY, code) == "['videoseek']\n"


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """The files of a run that the light commands read; its one episode's video is gone."""
    folder = tmp_path / "run=1"
    (folder / "trajectories").mkdir(parents=True)
    columns = ("accuracy_tool", "accuracy_greedy_tool", "clue_iou", "calls_per_episode", "format", "accuracy")
    (folder / "summary.json").write_text(json.dumps({f"{column}/sft": 0.5 for column in columns}))
    (folder / "config.yaml").write_text("seed: 3\nsft: {steps: 7}\n")
    sample = Sample("a", "/gone/a.mp4", "What?", "A", "clue_single_w_tool", ("x", "y"), ((0.0, 4.0),))
    clip = Clip(sample.video, 0.0, 4.0, (1.0, 3.0), 56, 56, 0.5)
    turns = (RecordedTurn("user", "What?", 3), RecordedTurn("assistant", "<answer>A</answer>", 4))
    rewards = {"accuracy": 1.0}
    record = TrajectoryRecord(sample, "A", turns, (), (clip,), rewards, (), "answered", 1, (1, 2))
    (folder / "trajectories/eval_sft.jsonl").write_text(json.dumps(record.to_json()) + "\n")
    return folder


def test_compare_reads_a_run_without_heavy_libraries(finished_run: Path) -> None:
    table = run_without(HEAVY, COMMAND, "compare", finished_run)
    assert "| sft | 1 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 |" in table


def test_report_draws_a_run_without_torch(finished_run: Path) -> None:
    run_without({"torch", "transformers", "deepspeed", "rich"}, COMMAND, "report", finished_run)
    page = (finished_run / "report.html").read_text()
    assert "What?" in page and "does not exist" in page


def test_score_reads_a_file_without_heavy_libraries(tmp_path: Path) -> None:
    line = {
        "kind": "clue_single_wo_tool",
        "answer": "A",
        "clues": [],
        "turns": ["<think>y</think>\n<answer>A</answer>"],
    }
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    assert json.loads(run_without(HEAVY, COMMAND, "score", tmp_path / "runs.jsonl"))["accuracy"] == 1


def test_ask_rolls_out_without_deepspeed() -> None:
    code = """
import videoseek.ask, videoseek.rollout.native, videoseek.rollout.setup, videoseek.model.load, videoseek.pages.viewer
print("fine")
"""
    assert run_without({"deepspeed", "tensorboard", "peft"}, code) == "fine\n"


def test_samples_and_their_grammar_need_no_heavy_library() -> None:
    """Commands that only read records start without torch."""
    code = """
import videoseek.types
import videoseek.trajectory.grammar
import videoseek.trajectory.wording
print("light")
"""
    assert run_without(HEAVY, code) == "light\n"
