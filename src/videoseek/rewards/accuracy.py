"""Compares an answer with its key: exactly like the public code, or tolerantly."""

from __future__ import annotations

import re

_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_PUBLIC_OPTION = re.compile(r"\(([A-Z])\)|([A-Z])\.")

_PREFIX = r"(?:(?:the\s+)?(?:correct\s+)?(?:option|answer|choice)\b\s*(?:is\b)?\s*:?\s*)?"
_BARE_OPTION = re.compile(_PREFIX + r"[(\[]?([a-z])[)\]]?[.:]?", re.IGNORECASE)
_LABELLED_OPTION = re.compile(_PREFIX + r"(?:\(([a-z])\)|([a-z])[.:)])\s+\S.*", re.IGNORECASE | re.DOTALL)


def last_answer(text: str) -> str | None:
    """Returns the content of the last complete answer block of a turn."""
    blocks = _ANSWER_BLOCK.findall(text)
    return blocks[-1] if blocks else None


def public_match(answer: str, key: str) -> bool:
    """Applies the public code's rule: the key itself, or `(A)` or `A.` at the start; case and place matter."""
    if answer.strip() == key.strip():
        return True
    option = _PUBLIC_OPTION.match(answer)
    return option is not None and (option.group(1) or option.group(2)) == key.strip()


def option_letter(text: str) -> str | None:
    """Returns the option named by a text as a capital letter, or None.

    Accepts `a`, `(A)`, `A.`, `A) red`, `[A]`, `Option A`, `The answer is (B).`, `**A**`, each also in quotes. The first
    of several labels counts: a list of all options gains nothing.
    """
    plain = re.sub(r"[*_`\"']", "", text).strip()
    if bare := _BARE_OPTION.fullmatch(plain):
        return bare.group(1).upper()
    if labelled := _LABELLED_OPTION.fullmatch(plain):
        return (labelled.group(1) or labelled.group(2)).upper()
    return None


def tolerant_match(answer: str, key: str) -> bool:
    """Compares options in any spelling. For other keys, compares words and ignores case and spaces."""
    letter = option_letter(key)
    if letter is not None:
        return option_letter(answer) == letter
    return answer.casefold().split() == key.casefold().split()
