"""Several processes under any ZeRO stage learn the same as one process, with the default dynamic sampling."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import TRAIN, curve, environment, numbers, reached, run, start, stop, summary, weights
from support.damaged_video import damaged_copy
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from videoseek.samples import clueworld
from videoseek.samples.schema import write_samples
from videoseek.types import Sample

#: One rank cuts a batch into more rows than each of several does. One of the RL films cannot be decoded.
COMMON = ["stages=[sft,grpo]", "save_every_steps=0", "sft.max_tokens_per_micro_batch=300"]
COMMON += ["grpo.max_tokens_per_micro_batch=200", "grpo.prompts_per_step=4", "data.max_unreadable_share=0.6"]

RANKS_AND_STAGES = [
    *[(2, 0), (2, 3), (3, 0)],
    *(
        pytest.param(ranks, stage, marks=pytest.mark.thorough)
        for ranks, stage in [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
    ),
]

#: Half of the prompts get equal rewards, so that dynamic sampling replaces them.
REWARD = """
def sometimes(completion_ids, id, **kwargs):
    equal = [sum(map(ord, name)) % 2 for name in id]
    return [0.5 if same else sum(ids) % 97 / 96 for ids, same in zip(completion_ids, equal)]
"""


UNEQUAL = Path(__file__).parents[1] / "support/unequal_ranks.py"


def unequal(case: str, stage: int, ranks: int, folder: Path) -> dict[str, list[float]]:
    """Returns the results of a case of `unequal_ranks.py` on `ranks` ranks."""
    file = folder / f"{case}_{stage}_{ranks}.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [*launcher, str(UNEQUAL), case, str(stage), str(file)],
        env=environment(DS_ACCELERATOR="cpu"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(file.read_text())
    return found


def ranks(number: int) -> list[str]:
    """Returns the launcher of a run on `number` processes; a single process needs no launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number), "-m"]
    return [*launcher, "videoseek.train"] if number > 1 else TRAIN


def two_processes(arguments: list[str]) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(arguments, RANK=rank, LOCAL_RANK=rank, **group) for rank in ("0", "1")]


@pytest.fixture(scope="session")
def common(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "reward.py").write_text(REWARD)
    samples: list[Sample] = clueworld.load(folder, "train", 12, seed=0)
    damaged = damaged_copy(samples[0].video, folder / "damaged.mp4")
    write_samples(folder / "rl.jsonl", [replace(samples[0], video=damaged), *samples[1:]])
    own = [f"data.rl=[{folder / 'rl.jsonl'}]", f"reward.functions=[{folder / 'reward.py'}:sometimes]"]
    return [*(key for key in tiny if not key.startswith("reward.functions")), *COMMON, *own]


@pytest.fixture(scope="session")
def one_rank(common: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("one_rank") / "out"
    run([*common, f"output_dir={output_dir}"])
    return output_dir


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("num_ranks", "stage"), RANKS_AND_STAGES)
def test_several_ranks_equal_one(
    num_ranks: int, stage: int, common: list[str], one_rank: Path, output_dir: Path
) -> None:
    assert sum(curve(one_rank, "rollout/unreadable_prompts", "grpo")) >= 1, "no step met the damaged film"
    assert max(curve(one_rank, "rollout/groups", "grpo")) > 4, "no group was replaced"
    run([*common, f"output_dir={output_dir}", f"deepspeed.stage={stage}"], launcher=ranks(num_ranks))
    for name, of_stage in (("loss", "sft"), ("loss", "grpo"), ("reward/mean", "grpo"), ("entropy", "grpo")):
        assert curve(output_dir, name, of_stage) == pytest.approx(curve(one_rank, name, of_stage), abs=1e-4)
    norms = curve(output_dir, "grad_norm", "sft") + curve(output_dir, "grad_norm", "grpo")
    assert norms == pytest.approx(curve(one_rank, "grad_norm", "sft") + curve(one_rank, "grad_norm", "grpo"), rel=1e-3)
    assert min(norms) > 1e-3
    assert summary(output_dir).keys() == summary(one_rank).keys()

    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(output_dir / "final", output_loading_info=True)
    assert (set(report["missing_keys"]), set(report["unexpected_keys"])) == (set(), set())
    wanted = weights(one_rank / "final")
    assert max(float((p - wanted[n]).abs().max()) for n, p in weights(output_dir / "final").items()) < 1e-3
    assert len(AutoTokenizer.from_pretrained(output_dir / "final")) <= model.config.text_config.vocab_size


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_equal_one_where_questions_about_a_film_train_together(common: list[str], tmp_path: Path) -> None:
    """Two films of six questions: each SFT step takes one film, and each RL step four questions and replacements."""
    arguments = [*common, "data.group_by_film=true", "sft.steps=2", "grpo.steps=2"]
    arguments += ["grpo.max_tokens_per_micro_batch=600"]
    one, two = tmp_path / "one", tmp_path / "two"
    for output_dir, num_ranks in ((one, 1), (two, 2)):
        run([*arguments, f"output_dir={output_dir}"], launcher=ranks(num_ranks))
        for stage, least_saving in (("sft", 1.25), ("grpo", 1.9)):
            tokens, apart = curve(output_dir, "plan/tokens", stage), curve(output_dir, "plan/tokens_apart", stage)
            ratios = [many / few for many, few in zip(apart, tokens, strict=True)]
            assert curve(output_dir, "plan/saving", stage) == pytest.approx(ratios) and min(ratios) > least_saving
    assert max(curve(one, "rollout/groups", "grpo")) > 4, "no group was replaced"
    for stage, names in {"sft": ("loss", "grad_norm"), "grpo": ("loss", "grad_norm", "reward/mean")}.items():
        assert curve(one, "plan/tokens_apart", stage) == curve(two, "plan/tokens_apart", stage)
        # Two ranks divide a film and both hold it. Trees of one question would take equally many tokens.
        assert sum(curve(one, "plan/tokens", stage)) < sum(curve(two, "plan/tokens", stage))
        for name in names:
            assert curve(two, name, stage) == pytest.approx(curve(one, name, stage), rel=1e-3, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.thorough), 3])
def test_two_ranks_resume_bit_equal(stage: int, tiny: list[str], tmp_path: Path) -> None:
    """The killed run evaluates within its stages and writes checkpoints in the background; the other one does not."""
    arguments = [*tiny, "stages=[sft,grpo]", "grpo.steps=2", f"deepspeed.stage={stage}"]
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    run([*arguments, "save_in_background=false", f"output_dir={uninterrupted}"], launcher=ranks(2))
    again = [*arguments, "evaluate.every_steps=2", f"output_dir={killed}", "resume=auto"]
    # Without torchrun, because torchrun's workers would outlive a killed torchrun.
    first, second = two_processes(again)
    stop(first, reached(killed, "sft", 3))
    second.kill()
    second.wait()
    run(again, launcher=ranks(2))
    evaluated = [(row["stage"], row["step"]) for row in numbers(killed) if "eval/accuracy" in row]
    assert evaluated == [("sft", 2), ("sft", 4), ("grpo", 2)]
    trained = [{name: row[name] for name in row if not name.startswith("eval/")} for row in numbers(killed)]
    assert trained == numbers(uninterrupted)
    wanted = weights(uninterrupted / "final")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(killed / "final").items())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "bfloat16")])
def test_checkpoint_resumes_on_another_number_of_ranks(stage: int, dtype: str, tiny: list[str], tmp_path: Path) -> None:
    """Three ranks save after two SFT steps; one, two and three ranks go on from the checkpoint to GRPO's checkpoint."""
    arguments = [*tiny, "stages=[sft]", "sft.steps=5", f"deepspeed.stage={stage}", f"dtype={dtype}"]
    saved = tmp_path / "saved"
    run([*arguments, f"output_dir={saved}"], launcher=ranks(3))
    wanted = curve(saved, "loss", "sft")
    for num_ranks in (1, 2):
        output_dir = tmp_path / f"by_{num_ranks}"
        shutil.copytree(saved, output_dir, symlinks=True)
        run(
            [*arguments, f"output_dir={output_dir}", f"resume={output_dir / 'checkpoint-2'}"], launcher=ranks(num_ranks)
        )
        assert len(curve(output_dir, "loss", "sft")) == 5
        tolerance = 1e-4 if dtype == "float32" else 2e-2
        assert curve(output_dir, "loss", "sft") == pytest.approx(wanted, abs=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param("labels", marks=pytest.mark.thorough),
        pytest.param("one_update", marks=pytest.mark.thorough),
        *["two_updates", "rewards", "unreadable", "failed_write"],
    ],
)
def test_ranks_that_differ_in_what_they_do_stay_in_step(case: str, tmp_path: Path) -> None:
    """ZeRO-3 really partitions the weights here: a rank with another number of module calls would hang or crash."""
    alone = unequal(case, 0, 1, tmp_path)
    together = unequal(case, 3, 2, tmp_path)
    assert together.keys() == alone.keys()
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
