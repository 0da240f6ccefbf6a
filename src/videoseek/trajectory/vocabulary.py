"""The tokens that the template is built of, and text to ids without ever reading text as special tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from transformers import PreTrainedTokenizerFast

# A turn ends at <|im_end|>; the other end token of the released generation config would end it unseen.
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
    """A tokenizer with the ids that Qwen2.5-VL's template needs. Raises ValueError when one is missing.

    `banned` may never be sampled: vision tokens without a clip behind them, starts and ends of texts, and the unused
    tail of the embedding.
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
        known = self.tokenizer.get_vocab()
        for name in ("im_start", "im_end", "vision_start", "vision_end", "video_pad"):
            token = f"<|{name}|>"
            if token not in known:
                raise ValueError(f"the tokenizer has no {token!r}, which Qwen2.5-VL's template needs")
            object.__setattr__(self, name, known[token])
        unwanted = [known[token] for token in _NEVER_SAMPLED if token in known]
        tail = range(len(self.tokenizer), self.num_embeddings)
        object.__setattr__(self, "banned", (*sorted(unwanted), self.im_start, *tail))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; `<|im_end|>` and its like inside `text` are encoded as characters, not obeyed."""
        return list(_encode(self.tokenizer, text))

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)


@lru_cache(maxsize=65536)
def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
