"""HTML by construction: whatever is not already `Markup` is escaped on its way in, so no text can become a tag."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

#: Characters that HTML forbids or that no encoding can hold; texts of models contain them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = frozenset(("meta", "link", "img"))


class Markup(str):
    """HTML that goes into a page as it stands."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Any text as HTML; forbidden characters show as U+FFFD."""
    return text if isinstance(text, Markup) else Markup(html.escape(_FORBIDDEN.sub("\ufffd", text)))


def join(children: Iterable[str]) -> Markup:
    return Markup("".join(map(escape, children)))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """An element. In attribute names `_` stands for `-`, a final one is dropped (`class_`); None leaves it out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    closing = "" if name in _VOID else f"{join(children)}</{name}>"
    return Markup(f"<{name}{written}>{closing}")


def _value(value: str | float) -> str:
    """Numbers to a hundredth: finer than any pixel."""
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
