"""EndpointEngine: asks a model behind an OpenAI-compatible endpoint by the protocol of local models.

System turn, call format, frames, tool, limits and votes are ours, and crops come back as further pictures. An episode
has messages in place of tokens: the endpoint counts the tokens, and the lists per token stay empty.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from videoseek.config import EvaluateConfig, TrainConfig, UsageError
from videoseek.endpoint import CallFailed, CallRefused, Client, EndpointSettings, check_endpoint
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampler import SamplingSettings
from videoseek.rollout.setup import run_environment
from videoseek.trajectory.builder import CLIP_MARK, EpisodeBuilder
from videoseek.trajectory.media import clip_identity, frame_parts, text_part
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.trajectory.wording import time_sentence
from videoseek.types import Clip, Episode, ParsedTurn, Role, Sample, StopReason, Turn
from videoseek.video.errors import VideoError, warn_once

#: `model=openai:NAME` names a model behind `evaluate.endpoint`.
PREFIX = "openai:"


@dataclass(slots=True)
class ChatEpisode(Episode):
    """An episode of messages. `usage` holds the tokens of prompt and reply for each answered request.

    `failure` is `refused` or `no_reply` for an episode that a request without an answer ended. `problem` says why.
    """

    usage: list[tuple[int, int]] = field(default_factory=list)
    failure: str | None = None
    problem: str = ""


class ChatBuilder(EpisodeBuilder):
    """Builds an episode from messages. `messages` holds the role and the parts of each turn."""

    messages: list[tuple[str, Sequence[str | Clip]]]

    def prompt(self, clip: Clip) -> None:
        """Adds the system turn and the first user turn with `clip` and the question."""
        self.messages = []
        self._add("system", [self.fmt.system_prompt()])
        self._add("user", [clip, f"{time_sentence(clip)}\n{self.fmt.prompt_text(self.sample)}"])

    def assistant_text(self, text: str) -> ParsedTurn:
        """Adds and parses a reply."""
        self._add("assistant", [text])
        self.num_turns += 1
        parsed = self.fmt.parse(text)
        self.faults += parsed.faults
        self.answer = parsed.answer
        return parsed

    def chat(self, render: Callable[[Clip], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Returns the messages for an endpoint, with the content parts of each clip from `render`."""
        messages = []
        for role, parts in self.messages:
            rendered = [part for p in parts for part in (render(p) if isinstance(p, Clip) else [text_part(p)])]
            messages.append({"role": role, "content": rendered if role == "user" else parts[0]})
        return [message for message in messages if message["content"]]  # a system turn may be empty

    def _user_tokens(self, parts: Sequence[str | Clip], role: Role, clip_role: Role) -> list[tuple[list[int], Role]]:
        return []

    def _user_turn(self, parts: Sequence[str | Clip], spans: Sequence[tuple[list[int], Role]]) -> None:
        self._add("user", parts)

    def _add(self, role: str, parts: Sequence[str | Clip]) -> None:
        self.messages.append((role, parts))
        self.clips += [part for part in parts if isinstance(part, Clip)]
        self.turns.append(Turn(role, "".join(part if isinstance(part, str) else CLIP_MARK for part in parts), 0, 0))


def endpoint_settings(config: TrainConfig) -> EndpointSettings | None:
    """Returns the endpoint of `model=openai:NAME`, or None for a local model. Raises UsageError."""
    evaluate, name = config.evaluate, config.model.removeprefix(PREFIX)
    if name == config.model:
        return None
    if not name or not evaluate.tasks:
        raise UsageError(f"model={config.model}: give model={PREFIX}NAME with tasks=[NAME, ...]")
    settings = EndpointSettings(endpoint=evaluate.endpoint, model=name, api_key_env=evaluate.api_key_env)
    check_endpoint(settings)
    return settings


def chat_environment(config: TrainConfig) -> Environment:
    """Returns the rules of an episode of messages: nobody here knows the tokens of the model."""
    return replace(run_environment(config, cast(Vocabulary, None)), max_context_tokens=sys.maxsize)


class EndpointEngine:
    """Asks all questions of a batch side by side. `cache_dir` keeps the replies: no answered request is sent again."""

    def __init__(
        self, environment: Environment, evaluate: EvaluateConfig, settings: EndpointSettings, cache_dir: Path
    ) -> None:
        self.environment = environment
        self._evaluate = evaluate
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
        options: dict[str, Any] = {"model": self._settings.model}
        options["max_completion_tokens"] = settings.max_new_tokens_per_turn
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p}
        options |= sampling if self._evaluate.send_sampling else {}
        reason, failure, problem = None, None, ""
        while reason is None:
            digest = await asyncio.to_thread(self._digest, builder, options, draw)
            try:
                reply = await client.reply(digest, partial(self._body, builder, options))
            except (CallRefused, CallFailed) as error:
                failure, problem = "refused" if isinstance(error, CallRefused) else "no_reply", str(error)
                break
            usage.append((reply.prompt_tokens, reply.completion_tokens))
            parsed = builder.assistant_text(reply.text)
            is_cut = reply.finish_reason == "length"
            reason = StopReason.TOKEN_LIMIT if is_cut else await asyncio.to_thread(environment.respond, builder, parsed)
        episode = builder.finish(reason or StopReason.NO_CALL_NO_ANSWER)
        known = {item.name: getattr(episode, item.name) for item in fields(Episode)}
        return ChatEpisode(**known, usage=usage, failure=failure, problem=problem)

    def _digest(self, builder: ChatBuilder, options: dict[str, Any], draw: str | None) -> str:
        """Returns the SHA-256 of all that determines a reply. The content of the file identifies a clip."""
        content = {"endpoint": self._settings.endpoint, "detail": self._evaluate.image_detail, "draw": draw, **options}
        content["messages"] = builder.chat(lambda clip: [clip_identity(clip)])
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _body(self, builder: ChatBuilder, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the JSON of a chat completion. Decodes the clips. Raises VideoError."""
        return options | {"messages": builder.chat(partial(frame_parts, detail=self._evaluate.image_detail))}


def token_counts(episode: Episode) -> dict[str, int]:
    """Returns the tokens of a whole episode, and those that the model wrote."""
    if not isinstance(episode, ChatEpisode):
        return {"tokens": len(episode.token_ids), "new_tokens": sum(episode.loss_mask)}
    return {"tokens": sum(episode.usage[-1]), "new_tokens": sum(reply for _, reply in episode.usage)}


def remote_facts(group: Sequence[Episode]) -> dict[str, Any]:
    """Returns requests and tokens of all votes as the endpoint bills them, or {} for a local model.

    One failed vote fails the question: reason and sentence of the first failure come with the counts.
    """
    votes = [episode for episode in group if isinstance(episode, ChatEpisode)]
    prompt, reply = (sum(used[i] for vote in votes for used in vote.usage) for i in (0, 1))
    counts = {"requests": sum(len(vote.usage) for vote in votes), "prompt_tokens": prompt, "completion_tokens": reply}
    failures = [{"reason": vote.failure, "error": vote.problem} for vote in votes if vote.failure is not None]
    return counts | (failures[0] if failures else {}) if votes else {}


def bill(lines: Sequence[Mapping[str, Any]], evaluate: EvaluateConfig) -> dict[str, float | None] | None:
    """Returns replies, tokens and cost of all lines, cached replies included, or None for a local model.

    The cost is None unless both prices are known.
    """
    asked = [line for line in lines if "requests" in line]
    counts = {name: sum(line[name] for line in asked) for name in ("requests", "prompt_tokens", "completion_tokens")}
    prices, cost = (evaluate.prompt_price, evaluate.completion_price), None
    if prices[0] is not None and prices[1] is not None:
        cost = (counts["prompt_tokens"] * prices[0] + counts["completion_tokens"] * prices[1]) / 1e6
    return {**counts, "cost": cost} if asked else None
