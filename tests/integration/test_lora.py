"""Both stages with LoRA: the trained weights, the saved files, and a killed run that goes on bit-equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.commands import TWO_RANKS, forked, numbers, reached, refused, run, start, stop, weights

from videoseek.files import shipped_folder

LORA = ["stages=[sft,grpo]", "lora.rank=2", "grpo.kl_coef=0.01"]


@pytest.mark.slow
def test_a_killed_run_with_adapters_is_bit_equal(tiny: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run([*tiny, *LORA, f"output_dir={whole}"])
    again = [*tiny, *LORA, f"output_dir={killed}", "resume=auto"]
    stop(start(again), reached(killed, "sft", 3))
    stop(start(again), reached(killed, "grpo", 2))
    run(again)
    assert numbers(killed) == numbers(whole)
    for folder in ("sft", "sft/adapter", "final", "final/adapter", "last/adapter"):
        mine, wanted = weights(killed / folder), weights(whole / folder)
        assert mine.keys() == wanted.keys() and wanted
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in mine.items()), folder

    base, final = weights(shipped_folder("tiny_base", "data/tiny_base")), weights(whole / "final")
    changed = {name for name, tensor in final.items() if not torch.equal(tensor, base[name])}
    assert final.keys() == base.keys()
    assert len(changed) == 7 * len({name.split(".layers.")[1].split(".")[0] for name in changed})
    assert all(".layers." in name and "visual" not in name and name.endswith("_proj.weight") for name in changed)


def test_two_ranks_with_adapters_equal_one_rank(tiny: list[str], tmp_path: Path) -> None:
    """ZeRO-3 partitions frozen weights too; two ranks give the curve of one rank up to the order of sums."""
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = [*tiny, "stages=[sft]", "lora.rank=2"]
    run([*arguments, f"output_dir={one}"])
    run([*arguments, f"output_dir={two}", "deepspeed.stage=3"], launcher=TWO_RANKS)
    for mine, wanted in zip(numbers(two), numbers(one), strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
    mine, wanted = weights(two / "final"), weights(one / "final")
    assert all((tensor - wanted[name]).abs().max() < 1e-4 for name, tensor in mine.items())


def test_adapters_of_another_rank_are_refused(tiny: list[str], tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    arguments = [*tiny, "stages=[sft]", f"output_dir={output_dir}"]
    forked([*arguments, "lora.rank=2"], tmp_path)
    sentence = refused([*arguments, "lora.rank=3", f"resume={output_dir / 'checkpoint-2'}"], tmp_path, 1)
    assert "checkpoint-2 cannot be continued from" in sentence and "another lora.rank" in sentence
