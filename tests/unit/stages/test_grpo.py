"""One step of `train_grpo`: rows within their limit, and as many optimizer steps as the recipe asks for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_world import TinyWorld, answer, assert_same_gradients, look, native_engine, tiny_world, tree_length

from videoseek.batches.micro_batch import ScoredGroup, plan_micro_batches
from videoseek.config import TrainConfig
from videoseek.config_merge import load_config
from videoseek.distributed import split_minibatches
from videoseek.engine import OptimizerSettings, TrainEngine
from videoseek.model.policy import Policy
from videoseek.stages import grpo
from videoseek.stages.rollouts import Rollouts
from videoseek.stages.stage_run import StageRun

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


class Trainer:
    """Runs single steps of `train_grpo` on given groups; keeps the rows it ran and the gradients it stepped on."""

    def __init__(self, world: TinyWorld, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.config, self.monkeypatch = world, config, monkeypatch
        self.policy = Policy(world.policy().model, freeze_vision="none").train()
        self.engine = TrainEngine(self.policy, OptimizerSettings(grad_clip=1e9), stage=0)
        self.row_lengths: list[int] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []
        self.written: list[dict[str, float]] = []
        step = self.engine.step

        def noted_step(rate: float) -> float:
            self.gradients.append({n: p.grad.clone() for n, p in self.policy.named_parameters() if p.grad is not None})
            self.rates.append(rate)
            return step(rate)

        monkeypatch.setattr(self.engine, "step", noted_step)
        self.policy.register_forward_pre_hook(lambda _, inputs: self.row_lengths.append(len(inputs[0])))

    def update(
        self, scored: list[ScoredGroup], *, minibatches: int, max_tokens: int, step: int = 0
    ) -> dict[str, float]:
        """The metrics of step `step` on groups whose advantages are given."""
        changed = replace(
            self.config.grpo,
            steps=step + 1,
            updates_per_batch=minibatches,
            max_tokens_per_micro_batch=max_tokens,
        )
        sampler = native_engine(self.policy, self.world.environment)
        rollouts = Rollouts(draws=list(range(len(scored))), all_groups=[group for group, _ in scored])
        run = SimpleNamespace(
            name="grpo",
            config=replace(self.config, grpo=changed),
            policy=self.policy,
            environment=self.world.environment,
            device=CPU,
            first_step=step,
            engine=lambda _: self.engine,
            rollout_engine=lambda: sampler,
            pack_settings=lambda masked: self.world.packing,
            record=lambda name, groups: None,
            end_step=lambda engine, step, values: self.written.append(values),
            check_finite=lambda step, sums, grad_norm: {},
        )
        self.monkeypatch.setattr(grpo, "prefetch_prompts", lambda *_: None)
        self.monkeypatch.setattr(grpo, "sample_groups", lambda *_: rollouts)
        self.monkeypatch.setattr(grpo, "with_advantages", lambda *_: scored)
        shown = {"reward/mean": 0.0, "rewards/accuracy/mean": 0.0}
        self.monkeypatch.setattr(grpo, "rollout_metrics", lambda *_: shown)
        grpo.train_grpo(cast(StageRun, run), [], [])
        return {
            name: value
            for name, value in self.written[-1].items()
            if name not in {*shown, "step_time"} and not name.startswith(("plan/", "time/", "video/"))
        }


@pytest.fixture
def trainers(world: TinyWorld, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, Trainer]:
    return Trainer(world, config, monkeypatch), Trainer(world, config, monkeypatch)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "gspo", "dr_grpo"])
def test_a_group_cut_to_the_limit_has_the_gradient_of_the_whole(
    loss: str, world: TinyWorld, config: TrainConfig, scored: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, grpo=replace(config.grpo, loss=loss))
    whole, cut = Trainer(world, config, monkeypatch), Trainer(world, config, monkeypatch)
    limit = max(tree_length([episode]) for group, _ in scored for episode in group)
    assert limit < min(tree_length(group) for group, _ in scored)
    wanted = whole.update(scored[:2], minibatches=1, max_tokens=WHOLE)
    values = cut.update(scored[:2], minibatches=1, max_tokens=limit)
    assert len(whole.row_lengths) == 1 and len(cut.row_lengths) > 2
    assert max(cut.row_lengths) <= limit
    assert values == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert_same_gradients(cut.gradients[0], whole.gradients[0], 1e-4)


@pytest.mark.parametrize("max_tokens", [WHOLE, 120])
def test_groups_about_one_film_have_the_gradient_of_separate_groups(
    world: TinyWorld,
    config: TrainConfig,
    scored: list[ScoredGroup],
    monkeypatch: pytest.MonkeyPatch,
    max_tokens: int,
) -> None:
    sharing = replace(world, packing=replace(world.packing, share_films=True))
    apart, together = Trainer(world, config, monkeypatch), Trainer(sharing, config, monkeypatch)
    wanted = apart.update(scored[4:8], minibatches=1, max_tokens=max_tokens)
    values = together.update(scored[4:8], minibatches=1, max_tokens=max_tokens)
    assert {episodes[0].sample.video for episodes, _ in scored[4:6]} != {scored[6][0][0].sample.video}
    assert max(together.row_lengths) <= max_tokens and sum(together.row_lengths) < sum(apart.row_lengths)
    assert values == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert_same_gradients(together.gradients[0], apart.gradients[0], 1e-4)


def test_an_episode_is_never_cut(world: TinyWorld, scored: list[ScoredGroup]) -> None:
    rows, account = plan_micro_batches(scored[:1], 1, world.packing, CPU)
    assert [row.batch.num_documents for row in rows] == [1, 1, 1]
    assert account.num_tokens == account.num_tokens_apart == sum(len(row.batch) for row in rows)


def test_groups_within_the_limit_stay_whole(world: TinyWorld, scored: list[ScoredGroup]) -> None:
    group, _ = scored[0]
    whole, saved = plan_micro_batches(scored[:1], tree_length(group), world.packing, CPU)
    assert [row.batch.num_documents for row in whole] == [3] and saved.num_tokens == tree_length(group)
    cut, _ = plan_micro_batches(scored[:1], tree_length(group) - 1, world.packing, CPU)
    assert sorted(row.batch.num_documents for row in cut) == [1, 2]


@pytest.mark.parametrize("max_tokens", [WHOLE, 200])
def test_as_many_optimizer_steps_as_asked_for(
    trainers: tuple[Trainer, Trainer], scored: list[ScoredGroup], max_tokens: int
) -> None:
    """The number of steps does not depend on the rows. Each step trains on the groups of its minibatch only."""
    together, apart = trainers
    values = together.update(scored, minibatches=4, max_tokens=max_tokens)
    assert len(together.gradients) == 4
    assert values["grad_norm"] > 0.1 and values["loss"] != 0
    # No ratio is off 1 in the first step, so it is that of a batch of its groups alone.
    alone = apart.update(scored[:2], minibatches=1, max_tokens=max_tokens)
    assert_same_gradients(together.gradients[0], apart.gradients[0], 1e-4)
    assert alone["clip_ratio/region_mean"] == 0 < values["clip_ratio/region_mean"]


def test_a_minibatch_without_groups_makes_no_step(trainers: tuple[Trainer, Trainer], scored: list[ScoredGroup]) -> None:
    trainer, _ = trainers
    values = trainer.update(scored[:1], minibatches=3, max_tokens=WHOLE)
    assert len(trainer.gradients) == 1 and values["grad_norm"] > 0.1
    assert trainer.update([], minibatches=2, max_tokens=WHOLE, step=1) == {"loss": 0.0, "grad_norm": 0.0}
    assert len(trainer.gradients) == 1


def test_warmup_counts_optimizer_steps(
    world: TinyWorld, config: TrainConfig, scored: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, grpo=replace(config.grpo, warmup_steps=5, learning_rate=1.0))
    trainer = Trainer(world, config, monkeypatch)
    for step in range(3):
        monkeypatch.setattr(trainer.engine, "step", lambda rate: trainer.rates.append(rate) or 0.0)
        trainer.update(scored[:2], minibatches=2, max_tokens=WHOLE, step=step)
    assert trainer.rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_metrics_of_several_steps_are_joined_by_their_names() -> None:
    updates = [{"loss": 1.0, "ratio_min": 0.5, "ratio_max": 2.0}, {"loss": 3.0, "ratio_min": 0.25, "ratio_max": 1.5}]
    assert grpo.join_updates(updates) == {"loss": 2.0, "ratio_min": 0.25, "ratio_max": 2.0}


@settings(deadline=None)
@given(count=st.integers(0, 20), num_minibatches=st.integers(1, 6))
def test_minibatches_are_even_and_complete(count: int, num_minibatches: int) -> None:
    draws = [7 * i % 23 for i in range(count)]
    minibatches = split_minibatches(draws, draws, num_minibatches)
    assert [item for part in minibatches for item in part] == sorted(draws)
    assert len(minibatches) == num_minibatches
    assert max(map(len, minibatches)) - min(map(len, minibatches)) <= 1
