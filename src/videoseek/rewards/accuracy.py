"""Whether an answer matches its key: exactly as the public code reads it, or as a person would."""

from __future__ import annotations

import re

_ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_PUBLIC_OPTION = re.compile(r"\(([A-Z])\)|([A-Z])\.")

_PREFIX = r"(?:(?:the\s+)?(?:correct\s+)?(?:option|answer|choice)\b\s*(?:is\b)?\s*:?\s*)?"
_BARE_OPTION = re.compile(_PREFIX + r"[(\[]?([a-z])[)\]]?[.:]?", re.IGNORECASE)
_LABELLED_OPTION = re.compile(_PREFIX + r"(?:\(([a-z])\)|([a-z])[.:)])\s+\S.*", re.IGNORECASE | re.DOTALL)


def last_answer(text: str) -> str | None:
    """Content of the last complete answer block of a turn."""
    blocks = _ANSWER_BLOCK.findall(text)
    return blocks[-1] if blocks else None


def public_match(answer: str, key: str) -> bool:
    """The public code's rule: the key itself, or a text that begins with `(A)` or `A.`; case and place matter."""
    if answer.strip() == key.strip():
        return True
    option = _PUBLIC_OPTION.match(answer)
    return option is not None and (option.group(1) or option.group(2)) == key.strip()


def option_letter(text: str) -> str | None:
    """The one option that a text names, as a capital letter, or None.

    Accepted: `a`, `(A)`, `A.`, `A) red`, `[A]`, `Option A`, `The answer is (B).`, `**A**`, any of them in quotes.
    Of several labels the first one counts, so that listing all options gains nothing.
    """
    plain = re.sub(r"[*_`\"']", "", text).strip()
    if bare := _BARE_OPTION.fullmatch(plain):
        return bare.group(1).upper()
    if labelled := _LABELLED_OPTION.fullmatch(plain):
        return (labelled.group(1) or labelled.group(2)).upper()
    return None


def tolerant_match(answer: str, key: str) -> bool:
    """Same option, however it is written; for a key that is no option, the same words but for case and spaces."""
    letter = option_letter(key)
    if letter is not None:
        return option_letter(answer) == letter
    return answer.casefold().split() == key.casefold().split()
