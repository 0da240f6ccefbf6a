"""The role of each token of an assistant's turn, found by bytes instead of token ids.

Byte-level BPE fuses tags with their content: `>A`, `.</` and `><` are single tokens in Qwen's vocabulary. A token takes
the role of the content with an overlap of at least one byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from videoseek.trajectory.grammar import CallFormat
from videoseek.types import Role, TurnKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A token with two overlapping contents takes the later role of this tuple.
_PRECEDENCE = (Role.TAG, Role.THINK, Role.CALL, Role.ANSWER)


def _byte_of_character() -> dict[str, int]:
    """Returns the byte of each character of byte-level BPE: printable bytes map to themselves, others to 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_of_character()


def token_bytes(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[bytes]:
    """Returns the bytes of each token of a byte-level BPE tokenizer. The concatenation is the text.

    Added tokens give their content in UTF-8. An id outside the tokenizer gives zero bytes. Raises ValueError for a
    token of another kind of tokenizer.
    """
    added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
    contents: list[bytes] = []
    for index, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        if index in added:
            contents.append(added[index])
            continue
        try:
            contents.append(bytes(_BYTE_OF_CHARACTER[character] for character in token or ""))
        except KeyError as error:
            raise ValueError(f"token {token!r} ({index}) is not byte-level BPE: {error.args[0]!r}") from error
    return contents


def assistant_roles(token_contents: Sequence[bytes], fmt: CallFormat) -> tuple[list[int], TurnKind]:
    """Returns the role of each token of one assistant turn, and the kind of the turn.

    token_contents: the bytes of the turn's tokens, in order (`token_bytes`). A token overlapping an answer, a call or
    reasoning takes the role of the first of the three. All other tokens are TAG. A turn with a call, well-formed or
    malformed, is SEEK. A turn with an answer and without a call is ANSWER. Any other turn is NONE.
    """
    data = b"".join(token_contents)
    spans = fmt.content_spans(data)
    rank_of_byte = bytearray(len(data))
    for start, end, role in spans:
        rank_of_byte[start:end] = bytes([_PRECEDENCE.index(role)]) * (end - start)
    roles, position = [], 0
    for content in token_contents:
        rank = max(rank_of_byte[position : position + len(content)], default=0)
        roles.append(int(_PRECEDENCE[rank]))
        position += len(content)
    span_roles = {role for _, _, role in spans}
    if Role.CALL in span_roles:
        return roles, TurnKind.SEEK
    return roles, TurnKind.ANSWER if Role.ANSWER in span_roles else TurnKind.NONE
