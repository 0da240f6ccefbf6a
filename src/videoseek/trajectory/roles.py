"""The role of each token of an assistant's turn, from bytes and never from token ids.

Byte-level BPE fuses tags with their content (`>A`, `.</`, `><` are single tokens in Qwen's vocabulary), so a token
takes the role of the content that it overlaps by at least one byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from videoseek.trajectory.grammar import CallFormat
from videoseek.types import Role, TurnKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Where one token overlaps two contents, the later of these wins.
_PRECEDENCE = (Role.TAG, Role.THINK, Role.CALL, Role.ANSWER)


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself where it is printable, else 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_of_character()


def token_bytes(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[bytes]:
    """The bytes of each token of a byte-level BPE tokenizer: joined, they are the text.

    Added tokens give their content in UTF-8; an id that the tokenizer does not know gives no bytes.
    """
    added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
    pieces = []
    for index, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        if index in added:
            pieces.append(added[index])
            continue
        try:
            pieces.append(bytes(_BYTE_OF_CHARACTER[character] for character in token or ""))
        except KeyError as error:
            raise ValueError(f"token {token!r} ({index}) is not byte-level BPE: {error.args[0]!r}") from error
    return pieces


def assistant_roles(pieces: Sequence[bytes], fmt: CallFormat) -> tuple[list[int], TurnKind]:
    """Role of each token of one assistant turn, and which sort of turn it is.

    pieces: bytes of the turn's tokens, in order. A token that overlaps an answer, a call or reasoning takes that role
    (in this order of precedence), all else is TAG. A turn with a call, well-formed or not, is SEEK; else one with an
    answer is ANSWER; else it is NONE.
    """
    data = b"".join(pieces)
    spans = fmt.content_spans(data)
    rank_of_byte = bytearray(len(data))
    for start, end, role in spans:
        rank_of_byte[start:end] = bytes([_PRECEDENCE.index(role)]) * (end - start)
    roles, position = [], 0
    for piece in pieces:
        rank = max(rank_of_byte[position : position + len(piece)], default=0)
        roles.append(int(_PRECEDENCE[rank]))
        position += len(piece)
    found = {role for _, _, role in spans}
    if Role.CALL in found:
        return roles, TurnKind.SEEK
    return roles, TurnKind.ANSWER if Role.ANSWER in found else TurnKind.NONE
