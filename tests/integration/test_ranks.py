"""Two processes under any ZeRO stage learn what one process learns."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.commands import TWO_RANKS, curve, environment, numbers, reached, run, start, stop, summary, weights
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

#: One rank cuts a batch into twice as many rows as each of two does.
COMMON = ["stages=[sft,grpo]", "save_every_steps=0", "sft.max_tokens_per_micro_batch=300"]
COMMON += ["grpo.max_tokens_per_micro_batch=200", "grpo.max_resample_rounds=0"]


UNEQUAL = Path(__file__).parents[1] / "support/unequal_ranks.py"


def unequal(case: str, stage: int, ranks: int, folder: Path) -> dict[str, list[float]]:
    """What a case of `unequal_ranks.py` gives on so many ranks."""
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


def two_processes(arguments: list[str]) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(arguments, RANK=rank, LOCAL_RANK=rank, **group) for rank in ("0", "1")]


@pytest.fixture(scope="session")
def one_rank(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("one_rank") / "out"
    run([*tiny, *COMMON, f"output_dir={output_dir}"])
    return output_dir


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_equal_one(stage: int, tiny: list[str], one_rank: Path, output_dir: Path) -> None:
    run([*tiny, *COMMON, f"output_dir={output_dir}", f"deepspeed.stage={stage}"], launcher=TWO_RANKS)
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
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_resume_bit_equal(stage: int, tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, "stages=[sft,grpo]", "grpo.steps=2", f"deepspeed.stage={stage}"]
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    run([*arguments, f"output_dir={uninterrupted}"], launcher=TWO_RANKS)
    again = [*arguments, f"output_dir={killed}", "resume=auto"]
    # Not by torchrun: its workers would outlive it.
    first, second = two_processes(again)
    stop(first, reached(killed, "sft", 3))
    second.kill()
    second.wait()
    assert "was saved by 2 ranks and cannot be continued by 1" in run(again, code=1)
    run(again, launcher=TWO_RANKS)
    assert numbers(killed) == numbers(uninterrupted)
    wanted = weights(uninterrupted / "final")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(killed / "final").items())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", ["labels", "one_update", "two_updates", "rewards", "unreadable"])
def test_ranks_that_differ_in_what_they_do_stay_in_step(case: str, tmp_path: Path) -> None:
    """With weights that ZeRO-3 really partitions: a rank with another number of module calls would hang or crash."""
    alone = unequal(case, 0, 1, tmp_path)
    together = unequal(case, 3, 2, tmp_path)
    assert together.keys() == alone.keys()
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
