"""lmms-eval's own command asks a model of ours and scores it as `evaluate prompt_style=lmms` does."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.benchmarks import Films, videomme
from support.commands import environment
from support.tiny_world import FORMAT, TinyWorld, answer, look, tiny_world

from videoseek.batches.packing import pack_documents
from videoseek.config import TrainConfig
from videoseek.config_merge import load_config
from videoseek.evaluation.benchmarks import evaluate_tasks
from videoseek.evaluation.extract import scope
from videoseek.evaluation.prompts import make_prompt, with_prompts
from videoseek.evaluation.runner import open_model
from videoseek.evaluation.tasks.videomme import TASK
from videoseek.model.attention import install_attention
from videoseek.model.load import save_pretrained
from videoseek.model.policy import Policy
from videoseek.model.tiny import build_model
from videoseek.tools.crop import VideoCrop

pytestmark = pytest.mark.lmms

KEYS = ["recipe=sft_rl", "device=cpu", "rollout.max_new_tokens_per_turn=48", "evaluate.prompt_style=lmms"]
#: The model's direct answers. lmms-eval reads A in the third and nothing in the fifth.
DIRECT = ["B", "(B)", "The answer is B because A is wrong", "C", "no idea", "B."]
#: The model's answers after a crop.
TOOL = ["B", "D", "B", "B", "A", "E"]
YAML = """task: films
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.results
metric_list:
  - metric: videomme_perception_score
    aggregation: !function utils.mean
    higher_is_better: true
"""
#: The words and the reading of answers are the harness's own.
UTILS = """
from lmms_eval.tasks.videomme import utils as videomme

def visual(doc):
    return ["{films}/" + doc["videoID"] + ".mp4"]

def text(doc):
    return videomme.videomme_doc_to_text(doc, {{}})

def results(doc, replies):
    return videomme.videomme_process_results(doc, replies)

def mean(scored):
    return sum(row["score"] for row in scored) / len(scored)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Video-MME with six different questions, the last one with five options, and the harness's task about them."""
    root = tmp_path_factory.mktemp("root")
    videomme(root, Films(root), file="test.jsonl")
    rows = [json.loads(line) for line in (root / "Video-MME/test.jsonl").read_text().splitlines()][:6]
    for number, row in enumerate(rows, 1):
        row["question"] = f"Which colour is card {number}?"
    (root / "Video-MME/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "task").mkdir()
    (root / "task/films.yaml").write_text(YAML.format(rows=root / "Video-MME/test.jsonl"))
    (root / "task/utils.py").write_text(UTILS.format(films=root / "Video-MME/data"))
    return root


def config_of(root: Path, mode: str, *keys: str) -> TrainConfig:
    given = [f"evaluate.data_root={root}", "evaluate.tasks=[videomme]", f"evaluate.mode={mode}"]
    return load_config([*KEYS, *given, *keys])


@pytest.fixture(scope="module")
def model(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that remembers an answer to each question, in both modes."""
    world, folder, episodes = tiny_world(), tmp_path_factory.mktemp("model"), []
    for mode, replies in (("direct", DIRECT), ("tool", TOOL)):
        config = config_of(root, mode)
        for question, text in zip(TASK.load(config).questions, replies, strict=True):
            prompt = make_prompt(question, TASK, config)
            fmt = with_prompts(FORMAT, prompt.system, {question.sample.id: prompt.text})
            turns = (text,) if mode == "direct" else (look(4, 8), answer(text))
            rules = replace(world.environment, fmt=fmt, tool=VideoCrop(config.video), max_context_tokens=4096)
            episodes.append(rules.replay(replace(question.sample, turns=turns)))
    policy = remember(world, episodes)
    save_pretrained(policy.model, world.vocabulary.tokenizer, folder)
    return folder


def remember(world: TinyWorld, episodes: list[Any]) -> Policy:
    policy = Policy(install_attention(build_model(world.config, 0)))
    batch = pack_documents(episodes, world.packing)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(300):
        loss = -policy(batch)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            return policy.eval()
    raise AssertionError(f"twelve trajectories are not remembered after 300 steps, loss {loss:.2f}")


@pytest.mark.parametrize(("mode", "correct"), [("direct", 2), ("tool", 3)])
def test_equal_accuracy_question_by_question(mode: str, correct: int, root: Path, model: Path, tmp_path: Path) -> None:
    """The keys are B, of the last question E: direct answers 1 and 2 are read as B, after a crop 1, 3 and 4."""
    keys = [f"model={model}", f"evaluate.mode={mode}", *KEYS]
    config = config_of(root, mode, f"model={model}")
    (ours,) = evaluate_tasks(config, model, partial(open_model, config, model, torch.device("cpu")), tmp_path / "a")
    (file,) = tmp_path.glob("a/*/*/videomme/answers.jsonl")
    lines = {line["id"]: line for line in map(json.loads, file.read_text().splitlines())}

    command = [os.environ["VIDEOSEEK_LMMS_PYTHON"], "-m", "lmms_eval", "--model", "videoseek", "--model_args"]
    command += [",".join(keys), "--tasks", "films", "--include_path", str(root / "task"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [*command, "--output_path", str(tmp_path / "b")], env=environment(**offline), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (samples,) = tmp_path.glob("b/**/*_samples_films.jsonl")
    theirs = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(theirs) == len(lines) == 6
    for sample in theirs:
        scored = sample["videomme_perception_score"]
        line = lines[scored["question_id"]]
        assert sample["filtered_resps"] == scope(line["text"]).strip()
        assert scored["score"] == line["right_parity"], line["text"]
    (results,) = tmp_path.glob("b/**/*_results.json")
    accuracy = json.loads(results.read_text())["results"]["films"]["videomme_perception_score,none"]
    assert accuracy == ours["values"]["mean/right_parity"] == pytest.approx(correct / 6)
    # The words: ours behind the sentence on the clip's times, the harness's by its own function.
    asked = {question.sample.id: make_prompt(question, TASK, config).text for question in TASK.load(config).questions}
    assert {s["videomme_perception_score"]["question_id"]: s["input"] for s in theirs} == asked
