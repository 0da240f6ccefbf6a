"""An engine whose replies are given: the prompts, crops and episodes are real, and no model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from support.tiny_world import tiny_world

from videoseek.config import TrainConfig
from videoseek.evaluation.runner import Model
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampler import SamplingSettings
from videoseek.tools.crop import VideoCrop
from videoseek.trajectory.formats import FORMATS
from videoseek.types import Episode, Sample, StopReason
from videoseek.video.errors import VideoError

#: The replies of an episode, by the question and the number of the vote.
Policy = Callable[[Sample, int], Sequence[str]]


@dataclass
class ScriptedEngine:
    """Plays the replies of `policy`. `seen` holds every episode."""

    environment: Environment
    policy: Policy
    seen: list[Episode] = field(default_factory=list)
    settings: list[SamplingSettings] = field(default_factory=list)

    def rollout(
        self,
        samples: Sequence[Sample],
        samples_per_prompt: int,
        seed: int,
        settings: SamplingSettings,
        *,
        skip_unreadable: bool = False,
    ) -> list[list[Episode]]:
        assert skip_unreadable
        self.settings.append(settings)
        groups = []
        for sample in samples:
            try:
                groups.append([self._play(sample, index) for index in range(samples_per_prompt)])
            except VideoError:
                groups.append([])
        return groups

    def _play(self, sample: Sample, index: int) -> Episode:
        builder = self.environment.open(sample)
        reason = None
        for reply in self.policy(sample, index):
            assert reason is None, f"a reply after the end of {sample.id}: {reason}"
            reason = self.environment.respond(builder, builder.assistant_text(reply))
        episode = builder.finish(reason if reason is not None else StopReason.TOKEN_LIMIT)
        self.seen.append(episode)
        return episode


def scripted(config: TrainConfig, policy: Policy, engines: list[ScriptedEngine] | None = None) -> Model:
    """Returns a model with the environment of a configuration; `engines` collects its engines."""
    environment = Environment(
        tiny_world().vocabulary,
        FORMATS[config.prompt.format](config.prompt.style),
        VideoCrop(config.video),
        config.rollout.max_turns,
        config.rollout.max_context_tokens,
    )
    made = engines if engines is not None else []

    def engine(changed: Environment) -> ScriptedEngine:
        made.append(ScriptedEngine(changed, policy))
        return made[-1]

    return Model(environment, engine)
