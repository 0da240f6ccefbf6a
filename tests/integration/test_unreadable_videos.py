"""Videos that open but fail to decode: data.bad_samples chooses between an end and a run without the videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import TWO_RANKS, curve, forked, run
from support.damaged_video import damaged_copy

from videoseek.samples import clueworld
from videoseek.samples.schema import write_samples
from videoseek.types import Sample

#: Number of damaged videos among six samples, two to a step: a step has two, one or zero good samples.
NUM_BAD, STEPS = 3, 9
NONE_GOOD = "one step at least must be without a good sample for the test to mean something"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a file of trajectories with some damaged videos."""
    folder = tmp_path_factory.mktemp("damaged")
    samples: list[Sample] = clueworld.load(folder, "train", 6, seed=0)
    broken = [
        replace(sample, video=damaged_copy(sample.video, folder / f"damaged-{index}.mp4"))
        for index, sample in enumerate(samples[:NUM_BAD])
    ]
    write_samples(folder / "some.jsonl", [*broken, *samples[NUM_BAD:]])
    return folder / "some.jsonl"


def arguments(tiny: list[str], data: Path, output_dir: Path) -> list[str]:
    own = [f"data.sft=[{data}]", "data.eval=[]", "stages=[sft]", f"sft.steps={STEPS}", "sft.samples_per_step=2"]
    return [*tiny, *own, f"output_dir={output_dir}"]


def test_sft_goes_on_without_unreadable_samples(tiny: list[str], data: Path, output_dir: Path) -> None:
    said = forked([*arguments(tiny, data, output_dir), "data.bad_samples=skip"], output_dir.parent)
    dropped, losses = (curve(output_dir, name, "sft") for name in ("data/unreadable_samples", "loss"))
    assert sum(dropped) == NUM_BAD * 2 * STEPS / 6 and set(dropped) == {0, 1, 2}, NONE_GOOD
    for count, loss, norm in zip(dropped, losses, curve(output_dir, "grad_norm", "sft"), strict=True):
        assert (loss > 0) == (norm > 0) == (count < 2)
    passed_over = [line for line in said.splitlines() if "passed over: " in line]
    assert len(passed_over) == NUM_BAD
    for index in range(NUM_BAD):
        assert sum(f"damaged-{index}.mp4" in line for line in passed_over) == 1


def test_sft_stops_at_an_unreadable_sample_by_default(tiny: list[str], data: Path, output_dir: Path) -> None:
    said = forked(arguments(tiny, data, output_dir), output_dir.parent, code=1)
    assert "damaged-" in said.splitlines()[-1] and "Traceback" not in said


def test_rl_passes_over_a_film_with_a_zeroed_middle_third(tiny: list[str], tmp_path: Path, output_dir: Path) -> None:
    samples: list[Sample] = clueworld.load(tmp_path, "train", 3, seed=0)
    third = damaged_copy(samples[0].video, tmp_path / "third.mp4", 1 / 3, 2 / 3)
    write_samples(tmp_path / "rl.jsonl", [replace(samples[0], video=third), *samples[1:]])
    own = [f"data.rl=[{tmp_path / 'rl.jsonl'}]", "data.eval=[]", "stages=[grpo]", "grpo.max_resample_rounds=0"]
    said = forked([*tiny, *own, f"output_dir={output_dir}"], tmp_path)
    assert (
        sum(curve(output_dir, "rollout/unreadable_prompts", "grpo")) == 2
    )  # three steps of two are two epochs of three
    assert min(curve(output_dir, "grad_norm", "grpo")) > 0
    assert sum("third.mp4" in line and "cannot be decoded" in line for line in said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_rank_without_a_sample_stays_in_step(stage: int, tiny: list[str], data: Path, output_dir: Path) -> None:
    own = ["data.bad_samples=skip", "save_every_steps=0", f"deepspeed.stage={stage}"]
    run([*arguments(tiny, data, output_dir), *own], launcher=TWO_RANKS)
    alone = Path(f"{output_dir}-alone")
    forked([*arguments(tiny, data, alone), "data.bad_samples=skip", "save_every_steps=0"], alone.parent)
    for name in ("loss", "grad_norm", "data/unreadable_samples"):
        assert curve(output_dir, name, "sft") == pytest.approx(curve(alone, name, "sft"), rel=1e-3)
