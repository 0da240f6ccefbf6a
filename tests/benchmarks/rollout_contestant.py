"""One contestant of `test_rollout_benchmark`, in a process of its own: a line on stdin is one run, a line of JSON out.

`engine TREE` samples with the engine of a source tree, ours or an older one. `generate TREE` calls transformers'
`generate` once a turn on all unfinished episodes, left-padded, and makes it choose the tokens of our episodes.
"""

from __future__ import annotations

import json
import math
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

KIND, TREE = sys.argv[1], Path(sys.argv[2])
sys.path[:0] = [str(TREE / "tests"), str(TREE / "src"), str(TREE / "kernels")]

import torch  # noqa: E402

IS_OLD = (TREE / "tests/tiny_world.py").exists()
if IS_OLD:
    from tiny_world import TOKENS_PER_SECOND, tiny_world

    from videoseek.rollout.native import NativeEngine, SamplingSettings
else:
    from support.tiny_world import native_engine, tiny_world

    from videoseek.rollout.sampler import SamplingSettings

from videoseek.model.tiny import build_model  # noqa: E402
from videoseek.rollout.environment import Environment  # noqa: E402
from videoseek.types import Call, ParsedTurn, StopReason  # noqa: E402
from videoseek.video.decode import read_frames  # noqa: E402
from videoseek.video.patches import patchify  # noqa: E402

SAMPLES, GROUP_SIZE, MEAN_TURN, MAX_TURN = 8, 8, 64, 512


class Scripted(Environment):
    """Ends an episode after a turn with a chance of one in three, and shows a crop otherwise, by the turn's ids."""

    def respond(self, builder: Any, parsed: ParsedTurn) -> StopReason | None:
        number = zlib.crc32(bytes(str(builder.token_ids[builder.turns[-1].start :]), "ascii"))
        if number % 3 == 0:
            return StopReason.ANSWERED
        start = 4.0 * (number // 3 % 6)
        return Environment.respond(self, builder, ParsedTurn(None, (Call(start, start + 4.0, "medium"),), None, ()))


def biased(model: Any, end_id: int) -> Any:
    """Random weights whose turns end after `MEAN_TURN` tokens on average, some after a few and some after hundreds."""
    weight = model.lm_head.weight
    model.lm_head = torch.nn.Linear(weight.shape[1], weight.shape[0])
    model.lm_head.weight = weight
    with torch.no_grad():
        model.lm_head.bias.zero_()
        model.lm_head.bias[end_id] = math.log(weight.shape[0] / MEAN_TURN)
    return model


world = tiny_world()
vocabulary, rules = world.vocabulary, world.environment
environment = Scripted(vocabulary, rules.fmt, rules.tool, 6, 2048)
policy = world.policy()
biased(policy.model, vocabulary.im_end)
samples = world.samples[:SAMPLES]
settings = SamplingSettings(max_new_tokens_per_turn=MAX_TURN)
if IS_OLD:
    engine: Any = NativeEngine(policy, environment, TOKENS_PER_SECOND)
    settings = replace(settings, deadline_seconds=1e9, episodes_per_batch=SAMPLES * GROUP_SIZE)
else:
    engine = native_engine(policy, environment)


def sampled() -> list[Any]:
    return [episode for group in engine.rollout(samples, GROUP_SIZE, 0, settings) for episode in group]


class Forced:
    """A logits processor: in step n of a call, row i gets its n-th token."""

    def __init__(self, turns: list[list[int]], width: int) -> None:
        longest = max(map(len, turns))
        self.table = torch.tensor([turn + [vocabulary.im_end] * (longest - len(turn)) for turn in turns])
        self.width = width

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = self.table[:, ids.shape[1] - self.width, None]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, scores.gather(1, chosen))


@torch.no_grad()
def generate(model: Any, episodes: list[Any]) -> None:
    for number in range(6):
        batch = []
        for episode in episodes:
            turns = [turn for turn in episode.turns if turn.role == "assistant"]
            if number < len(turns):
                start, end = turns[number].start, turns[number].end
                clips = episode.clips[: episode.token_ids[:start].count(vocabulary.vision_start)]
                batch.append((episode.token_ids[:start], episode.token_ids[start:end], clips))
        if not batch:
            return
        width = max(len(ids) for ids, *_ in batch)
        rows = torch.tensor([[vocabulary.im_end] * (width - len(ids)) + ids for ids, *_ in batch])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, *_ in batch])
        clips = [clip for *_, clips in batch for clip in clips]
        model.generate(
            input_ids=rows,
            attention_mask=mask,
            mm_token_type_ids=2 * (rows == vocabulary.video_pad).int(),
            pixel_values_videos=torch.cat([patchify(read_frames(clip)) for clip in clips]),
            video_grid_thw=torch.tensor([clip.grid_thw for clip in clips]),
            second_per_grid_ts=torch.tensor([clip.second_per_grid for clip in clips]),
            max_new_tokens=max(len(turn) for _, turn, _ in batch),
            do_sample=True,
            eos_token_id=vocabulary.im_end,
            pad_token_id=vocabulary.im_end,
            logits_processor=[Forced([turn for _, turn, _ in batch], width)],
        )


episodes = sampled()
plain = biased(build_model(world.config, 0), vocabulary.im_end).eval() if KIND == "generate" else None
if plain is not None:
    generate(plain, episodes[:8])
lengths = [sum(episode.loss_mask) for episode in episodes]
print(json.dumps({"ids": [episode.token_ids for episode in episodes], "sampled": lengths}), flush=True)
for _ in sys.stdin:
    started, started_cpu = time.perf_counter(), time.process_time()
    if plain is not None:
        generate(plain, episodes)
    else:
        sampled()
    seconds = {"wall": time.perf_counter() - started, "cpu": time.process_time() - started_cpu}
    print(json.dumps(seconds), flush=True)
