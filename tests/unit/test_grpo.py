"""The training half of a GRPO step: rows within their limit, optimizer steps as asked for, nothing else changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import TinyWorld, answer, assert_same_gradients, look, tiny_world

from videoseek.batches.packing import tree_length
from videoseek.config import TrainConfig
from videoseek.config_merge import load_config
from videoseek.distributed import split_over_ranks
from videoseek.engine import OptimizerSettings, TrainEngine
from videoseek.model.policy import Policy
from videoseek.rollout.native import NativeEngine
from videoseek.stages import grpo
from videoseek.stages.rollouts import ScoredGroup

CPU = torch.device("cpu")
WHOLE = 10**9


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return load_config(["recipe=sft_rl", "grpo.learning_rate=1e-3", "grpo.warmup_steps=0", "grpo.importance_cap=null"])


@pytest.fixture(scope="module")
def scored(world: TinyWorld) -> list[ScoredGroup]:
    """Eight groups of three episodes of unequal length: no crop, one, two."""
    turns = [(answer("A"),), (look(4, 8), answer("B")), (look(0, 12, "fine"), look(4, 8), answer("C"))]
    return [([world.replay(index, *said) for said in turns], [1.0, -0.25, -0.5 - index]) for index in range(8)]


class Spy:
    """A learner on a fresh policy, the rows it ran and the gradients it stepped on."""

    def __init__(self, world: TinyWorld, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.policy = world, Policy(world.policy().model, freeze_vision="none").train()
        engine = TrainEngine(self.policy, OptimizerSettings(grad_clip=1e9), stage=0)
        self.row_lengths: list[int] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []
        step = engine.step

        def noted_step(rate: float) -> float:
            self.gradients.append({n: p.grad.clone() for n, p in self.policy.named_parameters() if p.grad is not None})
            self.rates.append(rate)
            return step(rate)

        monkeypatch.setattr(engine, "step", noted_step)
        self.policy.register_forward_pre_hook(lambda _, inputs: self.row_lengths.append(len(inputs[0])))
        self.learner = grpo._Learner(config, engine, NativeEngine(self.policy, world.environment, 2.0), None)

    def update(self, scored: list[ScoredGroup], *, shares: int, max_tokens: int, step: int = 0) -> dict[str, float]:
        packing = self.world.packing
        spare = [grpo._Part.of([(scored[0][0][:1], [0.0])], packing, CPU)]
        parts = [grpo._rows(share, max_tokens, packing, CPU) for share in split_over_ranks(scored, shares)]
        return self.learner.update(parts, spare, step)


@pytest.fixture
def spies(world: TinyWorld, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Spy, Spy]:
    return Spy(world, config, monkeypatch), Spy(world, config, monkeypatch)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "gspo", "dr_grpo"])
def test_a_group_cut_to_the_limit_has_the_gradient_of_the_whole(
    loss: str, world: TinyWorld, config: TrainConfig, scored: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, grpo=replace(config.grpo, loss=loss))
    whole, cut = Spy(world, config, monkeypatch), Spy(world, config, monkeypatch)
    limit = max(tree_length([episode]) for group, _ in scored for episode in group)
    assert limit < min(tree_length(group) for group, _ in scored)
    wanted = whole.update(scored[:2], shares=1, max_tokens=WHOLE)
    values = cut.update(scored[:2], shares=1, max_tokens=limit)
    assert len(whole.row_lengths) == 1 and len(cut.row_lengths) > 2
    assert max(cut.row_lengths) <= limit
    assert values == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert_same_gradients(cut.gradients[0], whole.gradients[0], 1e-4)


def test_an_episode_is_never_cut(scored: list[ScoredGroup]) -> None:
    group, advantages = scored[0]
    trees = grpo._trees(group, advantages, 1)
    assert trees == [([episode], [advantage]) for episode, advantage in zip(group, advantages, strict=True)]


def test_groups_within_the_limit_stay_whole(world: TinyWorld, scored: list[ScoredGroup]) -> None:
    group, advantages = scored[0]
    assert grpo._trees(group, advantages, tree_length(group)) == [scored[0]]
    assert len(grpo._trees(group, advantages, tree_length(group) - 1)) == 2


@pytest.mark.parametrize("max_tokens", [WHOLE, 200])
def test_as_many_optimizer_steps_as_asked_for(
    spies: tuple[Spy, Spy], scored: list[ScoredGroup], max_tokens: int
) -> None:
    """However the batch falls into rows; the shares are those that single updates would be made on."""
    together, apart = spies
    values = together.update(scored, shares=4, max_tokens=max_tokens)
    assert len(together.gradients) == 4
    assert values["grad_norm"] > 0.1 and values["loss"] != 0
    # No ratio is off 1 in the first step, so it is that of a batch of its groups alone.
    alone = apart.update(scored[:2], shares=1, max_tokens=max_tokens)
    assert_same_gradients(together.gradients[0], apart.gradients[0], 1e-4)
    assert alone["clip_ratio/region_mean"] == 0 < values["clip_ratio/region_mean"]


def test_a_share_without_groups_is_no_step(spies: tuple[Spy, Spy], scored: list[ScoredGroup]) -> None:
    spy, _ = spies
    values = spy.update(scored[:1], shares=3, max_tokens=WHOLE)
    assert len(spy.gradients) == 1 and values["grad_norm"] > 0.1
    assert spy.learner.update([[], []], [], 1) == {"loss": 0.0, "grad_norm": 0.0}
    assert len(spy.gradients) == 1


def test_warmup_counts_optimizer_steps(
    world: TinyWorld, config: TrainConfig, scored: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, grpo=replace(config.grpo, warmup_steps=5, learning_rate=1.0))
    spy = Spy(world, config, monkeypatch)
    for step in range(3):
        monkeypatch.setattr(spy.learner.engine, "step", lambda rate: spy.rates.append(rate) or 0.0)
        spy.update(scored[:2], shares=2, max_tokens=WHOLE, step=step)
    assert spy.rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_metrics_of_several_steps_are_joined_by_their_names() -> None:
    updates = [{"loss": 1.0, "ratio_min": 0.5, "ratio_max": 2.0}, {"loss": 3.0, "ratio_min": 0.25, "ratio_max": 1.5}]
    assert grpo._joined(updates) == {"loss": 2.0, "ratio_min": 0.25, "ratio_max": 2.0}


@settings(deadline=None)
@given(count=st.integers(0, 20), num_shares=st.integers(1, 6))
def test_shares_are_even_and_lose_nothing(count: int, num_shares: int) -> None:
    shares = split_over_ranks(range(count), num_shares)
    assert [item for share in shares for item in share] == list(range(count))
    assert len(shares) == num_shares and max(map(len, shares)) - min(map(len, shares)) <= 1
