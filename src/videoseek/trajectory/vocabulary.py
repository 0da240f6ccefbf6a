"""Vocabulary: the special tokens of the template, and an encoder of text as plain characters only."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from transformers import PreTrainedTokenizerFast

# <|endoftext|> is an end token of the released generation config. A turn with this end would lack <|im_end|>.
_NEVER_SAMPLED = (
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer with the token ids of Qwen2.5-VL's template. Raises ValueError for a missing token.

    `banned` ids are never sampled: vision tokens (each needs a clip), starts and ends of texts, and the unused tail of
    the embedding.
    """

    tokenizer: PreTrainedTokenizerFast
    num_embeddings: int
    im_start: int = field(init=False)
    im_end: int = field(init=False)
    vision_start: int = field(init=False)
    vision_end: int = field(init=False)
    video_pad: int = field(init=False)
    banned: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        id_of = self.tokenizer.get_vocab()
        for name in ("im_start", "im_end", "vision_start", "vision_end", "video_pad"):
            token = f"<|{name}|>"
            if token not in id_of:
                raise ValueError(f"the tokenizer has no {token!r}, which Qwen2.5-VL's template needs")
            object.__setattr__(self, name, id_of[token])
        special = [id_of[token] for token in _NEVER_SAMPLED if token in id_of]
        tail = range(len(self.tokenizer), self.num_embeddings)
        object.__setattr__(self, "banned", (*sorted(special), self.im_start, *tail))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of plain text. Encodes `<|im_end|>` inside `text` as characters, not as a special token."""
        return list(_encode(self.tokenizer, text))

    def decode(self, token_ids: list[int]) -> str:
        """Returns the text of ids, with the names of special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)


@lru_cache(maxsize=65536)
def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
