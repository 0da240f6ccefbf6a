"""EpisodeBuilder: builds all token sequences. SFT, rollout and evaluation share the builder and see the same ids.

Template (Qwen2.5-VL's ChatML; a later turn never rewrites an earlier one; tool results are user turns):

    <|im_start|>system\\n..<|im_end|>\\n<|im_start|>user\\n{clip}{sentence}\\n{question}<|im_end|>\\n<|im_start|>assistant\\n
    {sampled}<|im_end|>
    \\n<|im_start|>user\\n{observation}<|im_end|>\\n<|im_start|>assistant\\n
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.roles import assistant_roles, token_bytes
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.trajectory.wording import time_sentence
from videoseek.types import CallRecord, Clip, Episode, Fault, ParsedTurn, Role, Sample, StopReason, Turn, TurnKind

#: Mark of a clip in the readable text of a user turn.
CLIP_MARK = "<video>"


class EpisodeBuilder:
    """Builds one episode. Order of calls: `prompt`, then (assistant turn, `observe`)*, assistant turn, `finish`.

    The builder only appends tokens. Sampled ids stay unchanged, and cached keys and values stay valid.
    """

    def __init__(self, sample: Sample, vocabulary: Vocabulary, fmt: CallFormat) -> None:
        self.sample = sample
        self.vocabulary = vocabulary
        self.fmt = fmt
        self.token_ids: list[int] = []
        self.roles: list[int] = []
        self.turn_kinds: list[int] = []
        self.loss_mask: list[bool] = []
        self.rollout_logprobs: list[float] = []
        self.clips: list[Clip] = []
        self.turns: list[Turn] = []
        self.calls: list[CallRecord] = []
        self.faults: list[Fault] = []
        self.answer: str | None = None
        self.prompt_length = 0
        self.num_turns = 0

    def prompt(self, clip: Clip) -> None:
        """Appends the system turn and the first user turn with `clip` and the question."""
        vocabulary = self.vocabulary
        system = [vocabulary.im_start, *vocabulary.encode("system\n" + self.fmt.system_prompt()), vocabulary.im_end]
        self._append(system, Role.SYSTEM)
        self.turns.append(Turn("system", self.fmt.system_prompt(), 0, len(system)))
        question = f"{time_sentence(clip)}\n{self.fmt.prompt_text(self.sample)}"
        parts: list[str | Clip] = [clip, question]
        self._user_turn(parts, self._user_tokens(parts, Role.QUESTION, Role.GLOBAL_VIDEO))
        self.prompt_length = len(self.token_ids)

    def assistant_text(self, text: str) -> ParsedTurn:
        """Appends a recorded turn: the text and its end-of-turn token, all trained."""
        token_ids = [*self.vocabulary.encode(text), self.vocabulary.im_end]
        return self.assistant_tokens(token_ids, [0.0] * len(token_ids))

    def assistant_tokens(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> ParsedTurn:
        """Appends and parses a sampled turn, with unchanged ids.

        A truncated turn lacks the end-of-turn token. Its text is parsed all the same.
        """
        start = len(self.token_ids)
        content = list(token_ids[:-1]) if token_ids and token_ids[-1] == self.vocabulary.im_end else list(token_ids)
        contents = token_bytes(self.vocabulary.tokenizer, content)
        roles, kind = assistant_roles(contents, self.fmt)
        # A sampled token may end inside a UTF-8 character.
        text = b"".join(contents).decode("utf-8", errors="replace")
        roles += [int(Role.TAG)] * (len(token_ids) - len(content))
        self.token_ids += token_ids
        self.roles += roles
        self.turn_kinds += [int(kind)] * len(token_ids)
        self.loss_mask += [True] * len(token_ids)
        self.rollout_logprobs += logprobs
        self.turns.append(Turn("assistant", text, start, len(self.token_ids)))
        self.num_turns += 1
        parsed = self.fmt.parse(text)
        self.faults += parsed.faults
        self.answer = parsed.answer
        return parsed

    def observe(
        self, records: Sequence[CallRecord], faults: Sequence[Fault] = (), *, max_tokens: int, note: str = ""
    ) -> bool:
        """Appends the user turn with the outcome of each call, in order: a clip, a text or a fault in words.

        `note` is the end.

        A turn without a readable call has one record, and `faults` come from the parser. Returns False and appends
        nothing if the episode would reach `max_tokens`.
        """
        parts: list[str | Clip] = []
        new_faults: list[Fault] = []
        for number, record in enumerate(records, len(self.calls) + 1):
            if record.clip is not None:
                before, after = self.fmt.observation_text(number, time_sentence(record.clip))
                parts += [before, record.clip, after]
            elif record.text is not None:
                parts.append(self.fmt.text_observation(number, record.text))
            else:
                reasons = [record.fault] if record.fault is not None else list(faults)
                new_faults += [fault for fault in reasons if fault not in faults]
                parts.append(self.fmt.fault_text(reasons))
        parts += [note] if note else []
        turn = self._user_tokens(parts, Role.OBSERVATION, Role.CROP_VIDEO)
        if len(self.token_ids) + sum(len(token_ids) for token_ids, _ in turn) >= max_tokens:
            return False
        self.calls += records
        self.faults += new_faults
        self._user_turn(parts, turn)
        return True

    def finish(self, stop_reason: StopReason, weight_version: int = 0) -> Episode:
        """Returns the episode. Episode and builder share their lists: the builder must not grow further."""
        return Episode(
            sample=self.sample,
            token_ids=self.token_ids,
            roles=self.roles,
            turn_kinds=self.turn_kinds,
            loss_mask=self.loss_mask,
            rollout_logprobs=self.rollout_logprobs,
            clips=self.clips,
            turns=self.turns,
            calls=self.calls,
            stop_reason=stop_reason,
            prompt_length=self.prompt_length,
            answer=self.answer,
            faults=self.faults,
            weight_version=weight_version,
        )

    def _user_tokens(self, parts: Sequence[str | Clip], role: Role, clip_role: Role) -> list[tuple[list[int], Role]]:
        """Returns the tokens of a user turn and of the next assistant turn's header, as spans of one role each."""
        vocabulary = self.vocabulary
        spans = [([*vocabulary.encode("\n"), vocabulary.im_start, *vocabulary.encode("user\n")], role)]
        # Neighbouring texts are encoded together, as other tools encode a whole turn: ".O" may be one token.
        for kind, group in groupby(parts, type):
            if kind is str:
                spans.append((vocabulary.encode("".join(map(str, group))), role))
            for clip in (part for part in group if isinstance(part, Clip)):
                spans.append(([vocabulary.vision_start], role))
                spans.append(([vocabulary.video_pad] * clip.num_tokens, clip_role))
                spans.append(([vocabulary.vision_end], role))
        header = [*vocabulary.encode("\n"), vocabulary.im_start, *vocabulary.encode("assistant\n")]
        return [*spans, ([vocabulary.im_end], role), (header, role)]

    def _user_turn(self, parts: Sequence[str | Clip], spans: Sequence[tuple[list[int], Role]]) -> None:
        *turn, header = spans
        start = len(self.token_ids)
        for token_ids, role in turn:
            self._append(token_ids, role)
        self.clips += [part for part in parts if isinstance(part, Clip)]
        text = "".join(part if isinstance(part, str) else CLIP_MARK for part in parts)
        self.turns.append(Turn("user", text, start, len(self.token_ids)))
        self._append(*header)

    def _append(self, token_ids: list[int], role: Role) -> None:
        count = len(token_ids)
        self.token_ids += token_ids
        self.roles += [int(role)] * count
        self.turn_kinds += [int(TurnKind.NONE)] * count
        self.loss_mask += [False] * count
        self.rollout_logprobs += [0.0] * count
