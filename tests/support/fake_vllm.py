"""An interpreter for `rollout.vllm_python` with a stand-in for vLLM: worker, socket and token are the real ones.

Options: `turn_seconds` for every round of turns, and `pid_dir`, a folder that gets a file named after each process.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class FakeEngine:
    """Implements `serving.server.Engine`: a turn is three tokens drawn by its seed, and the end-of-turn token."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.config = json.loads((Path(model) / "config.json").read_text())
        self.turn_seconds = options.get("turn_seconds", 0.0)
        self.version = -1
        self.turns: dict[str, list[np.ndarray]] = {}
        if "pid_dir" in options:
            (Path(options["pid_dir"]) / str(os.getpid())).touch()

    @property
    def is_busy(self) -> bool:
        return bool(self.turns)

    def start(self, turn_id: str, ids: np.ndarray, clips: Sequence[Any], settings: dict[str, Any]) -> None:
        pixels_per_token = 2 * (2 * self.config["vision_config"]["patch_size"]) ** 2  # of two frames
        pads = iter([int(np.prod(frames.shape[:3])) // pixels_per_token for _, frames, _ in clips])
        pad = self.config["video_token_id"]
        prompt = [token for each in ids.tolist() for token in ([pad] * next(pads) if each == pad else [each])]
        banned, draw = {*settings["banned_ids"], *settings["stop_ids"]}, random.Random(settings["seed"])
        allowed = [token for token in range(100) if token not in banned]
        sampled = draw.choices(allowed, k=3) + settings["stop_ids"]
        self.turns[turn_id] = [np.array(prompt, np.int32), np.array(sampled, np.int32), np.full(4, -2.0, np.float32)]

    def step(self) -> list[tuple[str, dict[str, Any], list[np.ndarray]]]:
        time.sleep(self.turn_seconds)
        turns, self.turns = self.turns, {}
        facts = {"stop": "stop", "version": self.version, "seconds": self.turn_seconds}
        return [(name, facts, arrays) for name, arrays in turns.items()]

    def cancel(self, turn_id: str) -> None:
        self.turns.pop(turn_id, None)

    def load(self, folder: str | None, tensors: Sequence[Any], version: int) -> None:
        self.version = version


def interpreter(folder: Path) -> Path:
    """Returns a program in `folder` that takes the arguments of an interpreter and runs them with `FakeEngine`."""
    program = folder / "python-with-fake-vllm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    program.chmod(0o755)
    return program


if __name__ == "__main__":
    stand_in = types.ModuleType("videoseek.serving.vllm_engine")
    stand_in.VllmEngine = FakeEngine  # type: ignore[attr-defined]
    sys.modules[stand_in.__name__] = stand_in
    _, _, _, boot, *arguments = sys.argv  # -P -c BOOT ARGUMENTS
    sys.argv = ["-c", *arguments]
    exec(boot, {"__name__": "__main__"})
