"""The model card of a finished stage: README.md beside the weights, for readers who get the folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2

from videoseek.config import TrainConfig, stage_steps
from videoseek.files import write_text
from videoseek.trajectory.formats import load_format
from videoseek.trajectory.wording import time_sentence
from videoseek.types import Clip


def write_model_card(folder: Path, config: TrainConfig, stage: str, scores: Path) -> None:
    """Writes README.md for the weights of `stage` in `folder`, with the held-out scores of the file `scores` if any."""
    before = config.stages[: config.stages.index(stage)] if stage == "grpo" else []
    stages = [name for name in before if name == "sft"] + [stage]
    sources = {source for name in stages for source in (config.data.rl if name == "grpo" else config.data.sft)}
    template = jinja2.Template(
        Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined
    )
    text = template.render(
        config=config,
        stage=stage,
        training=", then ".join(f"{name} ({stage_steps(config, name)} steps)" for name in stages)
        + f" on {', '.join(sorted(sources))}",
        rule=json.loads((folder / "config.json").read_text(encoding="utf-8")).get("position_rule", "max_all"),
        scores=json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else None,
        generated=all(source.startswith("clueworld") for source in sources),
        call_tag=load_format(config.prompt.format).call_tag,
        sentence=time_sentence(Clip("", 8.0, 16.0, (8.0, 10.0, 12.0, 14.0), 28, 28, 0.5)),
    )
    write_text(folder / "README.md", text + "\n")
