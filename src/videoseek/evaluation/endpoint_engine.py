"""EndpointEngine: asks a model behind an OpenAI-compatible endpoint by the protocol of local models.

System turn, call format, frames, tool, limits and votes are ours. Crops come back as further pictures. The cache of
replies lies on disk: a killed run and a second run send no answered request again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from videoseek.config import TrainConfig, UsageError
from videoseek.endpoint import CallFailed, CallRefused, Client, EndpointSettings, check_endpoint
from videoseek.evaluation.chat_episode import ChatBuilder, ChatEpisode
from videoseek.evaluation.runner import Model
from videoseek.rollout.crop_tool import VideoCrop
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampler import SamplingSettings
from videoseek.trajectory.grammar import FORMATS
from videoseek.trajectory.media import clip_identity, frame_parts
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Clip, Episode, Sample, StopReason
from videoseek.video.errors import VideoError, warn_once

#: `model=openai:NAME` names a model behind `evaluate.endpoint`.
PREFIX = "openai:"


def endpoint_settings(config: TrainConfig) -> EndpointSettings | None:
    """Returns the endpoint of `model=openai:NAME`, or None for a local model. Raises UsageError."""
    name = config.model.removeprefix(PREFIX)
    if name == config.model:
        return None
    if not name or not config.evaluate.tasks:
        raise UsageError(f"model={config.model}: give model={PREFIX}NAME with tasks=[NAME, ...]")
    if config.rollout.deadline_seconds is not None:
        raise UsageError(
            f"rollout.deadline_seconds={config.rollout.deadline_seconds:g} measures the model's own time, which an "
            f"endpoint does not tell; model={config.model} needs null"
        )
    evaluate = config.evaluate
    settings = EndpointSettings(endpoint=evaluate.endpoint, model=name, api_key_env=evaluate.api_key_env)
    check_endpoint(settings)
    return settings


def endpoint_model(config: TrainConfig, settings: EndpointSettings, cache_dir: Path) -> Model:
    """Returns the model behind an endpoint; `cache_dir` keeps the replies."""
    environment = Environment(
        vocabulary=cast(Vocabulary, None),  # a chat has messages, and nobody here knows the model's tokens
        fmt=FORMATS[config.prompt.format](config.prompt.style),
        tool=VideoCrop(config.video),
        max_turns=config.rollout.max_turns,
        max_context_tokens=sys.maxsize,  # the endpoint itself refuses what is too long
    )
    return Model(environment, lambda changed: EndpointEngine(changed, config, settings, cache_dir))


class EndpointEngine:
    """Asks all questions of a batch side by side, with `settings.concurrency` requests in flight."""

    def __init__(
        self, environment: Environment, config: TrainConfig, settings: EndpointSettings, cache_dir: Path
    ) -> None:
        self.environment = environment
        self._evaluate = config.evaluate
        self._settings = settings
        self._cache_dir = cache_dir

    def rollout(
        self,
        samples: Sequence[Sample],
        samples_per_prompt: int,
        seed: int,
        settings: SamplingSettings,
        *,
        skip_unreadable: bool = False,
    ) -> list[list[Episode]]:
        """Returns a group of episodes for each sample. A failed request fails its own episode only.

        A question with an unreadable film has an empty group if `skip_unreadable`, else raises VideoError. Raises
        EndpointError for an unusable endpoint, CacheError, and UsageError for a missing key.
        """
        # Greedy answers are one draw for all seeds; equal votes are different draws.
        draws = [None if settings.temperature == 0 else f"{seed}/{index}" for index in range(samples_per_prompt)]

        async def group(client: Client[EndpointSettings], sample: Sample) -> list[Episode]:
            try:
                return list(await asyncio.gather(*(self._episode(client, sample, draw, settings) for draw in draws)))
            except VideoError as error:
                if not skip_unreadable:
                    raise
                warn_once(f"passed over: {error}")
                return []

        async def groups() -> list[list[Episode]]:
            async with Client(self._settings, self._cache_dir) as client:
                return list(await asyncio.gather(*(group(client, sample) for sample in samples)))

        return asyncio.run(groups())

    async def _episode(
        self, client: Client[EndpointSettings], sample: Sample, draw: str | None, settings: SamplingSettings
    ) -> ChatEpisode:
        environment, usage = self.environment, list[tuple[int, int]]()
        builder = ChatBuilder(sample, environment.vocabulary, environment.fmt)
        builder.prompt(await asyncio.to_thread(environment.prompt_clip, sample))
        options = self._options(settings)
        while True:
            digest = await asyncio.to_thread(self._digest, builder, options, draw)
            try:
                reply = await client.reply(digest, partial(self._body, builder, options))
            except CallRefused as error:
                return builder.end(StopReason.NO_CALL_NO_ANSWER, usage, "refused", str(error))
            except CallFailed as error:
                return builder.end(StopReason.NO_CALL_NO_ANSWER, usage, "no_reply", str(error))
            usage.append((reply.prompt_tokens, reply.completion_tokens))
            parsed = builder.assistant_text(reply.text)
            if reply.finish_reason == "length":
                return builder.end(StopReason.TOKEN_LIMIT, usage)
            reason = await asyncio.to_thread(environment.respond, builder, parsed)
            if reason is not None:
                return builder.end(reason, usage)

    def _options(self, settings: SamplingSettings) -> dict[str, Any]:
        """Returns the fields of a body beside the messages."""
        options = {"model": self._settings.model, "max_completion_tokens": settings.max_new_tokens_per_turn}
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p}
        return options | (sampling if self._evaluate.send_sampling else {})

    def _digest(self, builder: ChatBuilder, options: dict[str, Any], draw: str | None) -> str:
        """Returns the SHA-256 of all that determines a reply. The content of the file identifies a clip."""
        content = {"endpoint": self._settings.endpoint, "detail": self._evaluate.image_detail, "draw": draw, **options}
        content["messages"] = builder.chat(lambda clip: [clip_identity(clip)])
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _body(self, builder: ChatBuilder, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON of a chat completion. Decodes the clips. Raises VideoError."""

        def render(clip: Clip) -> list[dict[str, Any]]:
            return frame_parts(clip, detail=self._evaluate.image_detail)

        return options | {"messages": builder.chat(render)}
