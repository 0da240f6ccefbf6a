"""Tests the command's output before and instead of a run."""

from __future__ import annotations

from pathlib import Path

from support.commands import finish, forked, start

from videoseek.config_merge import config_keys, list_recipes, load_config


def test_banner_comes_before_any_heavy_import(tmp_path: Path, output_dir: Path) -> None:
    """With a broken torch, the banner still tells the plan, the length and the output folder."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    path = f"{tmp_path}:{Path(__file__).parents[2] / 'src'}"
    said = finish(start([f"output_dir={output_dir}"], PYTHONPATH=path), code=1)
    banner, _, rest = said.partition("Traceback")
    assert banner.splitlines()[0] == "videoseek: recipe sft_rl, model tiny"
    assert "3. grpo: 40 steps of 24 x 8 episodes" in banner
    assert "minutes on two CPU cores" in banner and f"output: {output_dir}" in banner
    assert rest.endswith("ImportError: no torch here\n")
    assert not output_dir.exists()


def test_flags_that_only_show_need_no_torch(tmp_path: Path) -> None:
    """The flags need no torch."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    path = f"{tmp_path}:{Path(__file__).parents[2] / 'src'}"
    texts = {
        flag: finish(start([*before, flag], PYTHONPATH=path))
        for flag, before in {"--help": [], "--list-recipes": [], "--print-config": ["recipe=sft_rl_7b"]}.items()
    }
    assert all(name in texts["--help"] for name in config_keys())
    assert all(f"{name} " in texts["--list-recipes"] for name in list_recipes())
    (tmp_path / "shown.yaml").write_text(texts["--print-config"])
    shown, wanted = load_config([f"recipe={tmp_path / 'shown.yaml'}"]), load_config(["recipe=sft_rl_7b"])
    assert (shown.grpo, shown.video, shown.dtype) == (wanted.grpo, wanted.video, "bfloat16")


def test_dry_run_trains_nothing(tiny: list[str], tmp_path: Path, output_dir: Path) -> None:
    said = forked([*tiny, f"output_dir={output_dir}", "--dry-run"], tmp_path)
    plan = said[said.index("dry run:") :].splitlines()
    assert plan[0].startswith("dry run: 12 samples, ")
    assert [line.split(":")[0].strip() for line in plan[1:]] == ["tokens", "one row", "memory", "time"]
    assert list(output_dir.iterdir()) == []


def test_dry_run_of_questions_without_trajectories(tiny: list[str], tmp_path: Path) -> None:
    said = forked([*tiny, "stages=[grpo]", f"output_dir={tmp_path / 'out'}", "--dry-run"], tmp_path)
    assert "dry run: 12 samples" in said
