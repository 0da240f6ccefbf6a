"""Episodes of a model behind an endpoint: chat messages in place of tokens.

Token ids and log-probs of such a model are unknown. The lists per token stay empty, and the endpoint counts the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from videoseek.config import EvaluateConfig
from videoseek.trajectory.builder import CLIP_MARK, EpisodeBuilder
from videoseek.trajectory.media import text_part
from videoseek.trajectory.wording import time_sentence
from videoseek.types import Clip, Episode, ParsedTurn, Role, StopReason, Turn

_COUNTS = ("requests", "prompt_tokens", "completion_tokens")


@dataclass(slots=True)
class ChatEpisode(Episode):
    """An episode of messages. `usage` holds the tokens of the prompt and of the reply for each answered request.

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
        return [message for message in messages if message != {"role": "system", "content": ""}]

    def end(
        self, reason: StopReason, usage: list[tuple[int, int]], failure: str | None = None, problem: str = ""
    ) -> ChatEpisode:
        """Returns the episode."""
        episode = super().finish(reason)
        known = {item.name: getattr(episode, item.name) for item in fields(Episode)}
        return ChatEpisode(**known, usage=usage, failure=failure, problem=problem)

    def _user_tokens(self, parts: Sequence[str | Clip], role: Role, clip_role: Role) -> list[tuple[list[int], Role]]:
        return []  # the endpoint's tokens are unknown: no observation is too long for us

    def _user_turn(self, parts: Sequence[str | Clip], spans: Sequence[tuple[list[int], Role]]) -> None:
        self._add("user", parts)

    def _add(self, role: str, parts: Sequence[str | Clip]) -> None:
        self.messages.append((role, parts))
        self.clips += [part for part in parts if isinstance(part, Clip)]
        self.turns.append(Turn(role, "".join(part if isinstance(part, str) else CLIP_MARK for part in parts), 0, 0))


def token_counts(episode: Episode) -> dict[str, int]:
    """Returns the tokens of a whole episode, and those that the model wrote."""
    if not isinstance(episode, ChatEpisode):
        return {"tokens": len(episode.token_ids), "new_tokens": sum(episode.loss_mask)}
    return {"tokens": sum(episode.usage[-1]), "new_tokens": sum(reply for _, reply in episode.usage)}


def failure_line(group: Sequence[Episode]) -> dict[str, Any]:
    """Returns reason and sentence of a group's first failed request, or {}. One failed vote fails the question."""
    failed = [e for e in group if isinstance(e, ChatEpisode) and e.failure is not None]
    return {"reason": failed[0].failure, "error": failed[0].problem} if failed else {}


def usage_line(group: Sequence[Episode]) -> dict[str, int]:
    """Returns requests and tokens of all votes of a question, as the endpoint bills them, or {} for a local model."""
    usage = [used for episode in group if isinstance(episode, ChatEpisode) for used in episode.usage]
    counts = (len(usage), sum(prompt for prompt, _ in usage), sum(reply for _, reply in usage))
    return dict(zip(_COUNTS, counts, strict=True)) if any(isinstance(e, ChatEpisode) for e in group) else {}


def bill(lines: Sequence[Mapping[str, Any]], evaluate: EvaluateConfig) -> dict[str, float | None] | None:
    """Returns requests, tokens and cost of all lines, or None for a local model. Cached replies count too.

    The cost is None unless both prices are known.
    """
    if not any("requests" in line for line in lines):
        return None
    counts: dict[str, float | None] = {name: sum(line.get(name, 0) for line in lines) for name in _COUNTS}
    prices = (evaluate.prompt_price, evaluate.completion_price)
    pairs = zip(_COUNTS[1:], prices, strict=True)
    cost = None if None in prices else sum((counts[name] or 0) * (price or 0) for name, price in pairs) / 1e6
    return counts | {"cost": cost}
