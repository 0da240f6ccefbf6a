"""A tiny policy and its environment, small enough for unit tests: a real tokenizer, model, H.264 videos and tool."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig

from videoseek.batches.packing import PackSettings, pack_documents
from videoseek.batches.token_batch import TokenBatch
from videoseek.config import VideoConfig
from videoseek.model.attention import PackedAttention, install_attention
from videoseek.model.policy import Policy
from videoseek.model.tiny import build_model, build_tokenizer, tiny_config
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import NativeSampler
from videoseek.samples import clueworld
from videoseek.tools.crop import VideoCrop
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Call, Episode, Sample

LIMITS = VideoConfig(
    overview_fps=0.5,
    crop_fps=0.5,
    overview_tokens=8,
    coarse_tokens=2,
    medium_tokens=4,
    fine_tokens=8,
    min_frames=2,
    max_frames=16,
    frame_policy="uniform",
)
TOKENS_PER_SECOND = 2.0
FORMAT: CallFormat = FORMATS["grounding"]("brief")
MALFORMED = "<think>red</think>\n<grounding>soon</grounding>"


@dataclass(frozen=True)
class TinyWorld:
    """Holds clue world's own `samples`, and a `packing` without TDAM."""

    config: Qwen2_5_VLConfig
    vocabulary: Vocabulary
    environment: Environment
    samples: list[Sample]
    packing: PackSettings

    def policy(self, seed: int = 0) -> Policy:
        """Returns a policy of random weights on our attention."""
        return Policy(install_attention(build_model(self.config, seed))).eval()

    def replay(self, index: int, *turns: str) -> Episode:
        """Returns the episode of a sample under other turns than the recorded turns."""
        return self.environment.replay(replace(self.samples[index], turns=turns))

    def episodes(self) -> list[Episode]:
        """Returns episodes of mixed lengths: zero to three crops of unequal size, failed calls and malformed calls."""
        return [
            self.replay(0, answer("A")),
            self.replay(1, look(4, 8), answer("B")),
            self.replay(2, look(500, 504), look(0, 12, "fine"), answer("C")),
            self.replay(3, look(8, 12), MALFORMED, look(16, 20, "coarse"), answer("D")),
            self.replay(4, look(0, 4), look(4, 8, "fine"), look(20, 32), answer("none of them")),
        ]


@cache
def tiny_world() -> TinyWorld:
    """Returns the world for all tests of a process. The end of the process removes the world's folder."""
    folder = tempfile.TemporaryDirectory(prefix="tiny-world-")
    tokenizer = build_tokenizer(clueworld.phrases())
    config = tiny_config(tokenizer)
    vocabulary = Vocabulary(tokenizer, config.text_config.vocab_size)
    world = TinyWorld(
        config=config,
        vocabulary=vocabulary,
        environment=Environment(vocabulary, FORMAT, VideoCrop(LIMITS), max_turns=4, max_context_tokens=512),
        samples=clueworld.load(Path(folder.name), "train", 12, seed=0),
        packing=PackSettings(vocabulary.video_pad, TOKENS_PER_SECOND),
    )
    _FOLDERS.append(folder)
    return world


def native_engine(policy: Policy, environment: Environment, **options: int | bool) -> RolloutEngine:
    """Returns the rollout engine on a policy of the tiny world's scale. `options` go to the native sampler."""
    sampler = NativeSampler(policy, environment.vocabulary, TOKENS_PER_SECOND, **options)  # type: ignore[arg-type]
    return RolloutEngine(environment, sampler, sampler.features)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@cache
def memorised() -> tuple[Policy, list[Sample]]:
    """Returns a policy with four almost memorised trajectories, and the samples of the trajectories.

    The sampled turns crop, call beyond the video's end, break the grammar and answer.
    """
    world = tiny_world()
    turns = [
        (look(4, 8), answer("A")),
        (look(500, 504), look(8, 12), answer("B")),
        (MALFORMED, look(0, 4), look(20, 24), answer("C")),
        (answer("D"),),
    ]
    samples = [replace(sample, turns=t) for sample, t in zip(world.samples[3:7], turns, strict=True)]
    policy = Policy(install_attention(build_model(world.config, 0)))
    batch = pack_documents([world.environment.replay(sample) for sample in samples], world.packing)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(100):
        loss = -policy(batch)[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            return policy.eval(), samples
    raise AssertionError(f"four trajectories are not remembered after 100 steps, loss {loss:.2f}")


def look(start_seconds: float, end_seconds: float, strategy: str = "medium") -> str:
    return FORMAT.render_turn("red", Call(start_seconds, end_seconds, strategy), None)


def answer(text: str) -> str:
    return FORMAT.render_turn("rows", None, text)


def film_episodes(world: TinyWorld) -> list[Episode]:
    """Returns four episodes of unequal crops for each of three questions about one film, question by question."""
    indices = sorted({sample.question: i for i, sample in enumerate(world.samples[:6])}.values())[:3]
    turns = [(answer("A"),), (look(4, 8), answer("B")), (look(0, 12, "fine"), look(4, 8), answer("C"))]
    turns.append((look(8, 20, "coarse"), answer("D")))
    return [world.replay(index, *texts) for index in indices for texts in turns]


@torch.no_grad()
def row_logits(policy: Policy, batch: TokenBatch) -> torch.Tensor:
    """Returns the logits [T, vocabulary] of every row of a batch."""
    embeddings = policy.embed(batch.token_ids, batch.vision_rows, policy.encode(batch.clips)[batch.feature_rows])
    attention = PackedAttention.build(batch.end, batch.key_class, batch.visible, policy.device)
    return policy.model.lm_head(policy.decode(embeddings[None], batch.positions[:, None], attention)[0])


def gradients(policy: Policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the gradients by name of every parameter behind the loss, and clears the policy's gradients."""
    policy.zero_grad()
    loss.backward()
    by_name = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return by_name


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Asserts equality up to `tolerance` times the largest entry of each parameter's gradient."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        gap = (actual[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)
        assert gap < tolerance, f"{name}: {gap:.2e}"


def lengths(episodes: Sequence[Episode]) -> list[int]:
    return [len(episode.token_ids) for episode in episodes]


def tree_length(group: Sequence[Episode]) -> int:
    """Returns the number of tokens of a group in `pack_groups`."""
    trunk = group[0].prompt_length - 1
    return trunk + sum(len(episode.token_ids) - trunk for episode in group)
