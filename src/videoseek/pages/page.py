"""Builds HTML elements, and the frame of every page.

A page is a single file: loads nothing from outside, reads well without the script, and prints. An element escapes every
string but `Markup`: a text cannot become a tag.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from importlib.resources import files

#: Characters forbidden in HTML or impossible in any encoding. Texts of models contain some.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = frozenset(("meta", "link", "img"))


class Markup(str):
    """HTML for a page, already escaped."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Returns any text as HTML; U+FFFD replaces each forbidden character."""
    return text if isinstance(text, Markup) else Markup(html.escape(_FORBIDDEN.sub("\ufffd", text)))


def join(children: Iterable[str]) -> Markup:
    """Joins the children, and escapes all but Markup."""
    return Markup("".join(map(escape, children)))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Returns an element.

    In attribute names `_` becomes `-`, and a final `_` is dropped (`class_`). Attributes of value None are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute_text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    closing = "" if name in _VOID else f"{join(children)}</{name}>"
    return Markup(f"<{name}{written}>{closing}")


def _attribute_text(value: str | float) -> str:
    """Rounds numbers to a hundredth, finer than any pixel."""
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def document(title: str, sections: Iterable[Markup]) -> str:
    """Returns a whole HTML file: the title as heading, then the sections."""
    script = Markup(_read_asset("page.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_content_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(_read_asset("page.css"))),
    )
    body = tag("body", tag("main", tag("h1", title), *sections), tag("script", script))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _read_asset(name: str) -> str:
    return (files("videoseek.pages") / name).read_text(encoding="utf-8")


def _content_policy(script: str) -> str:
    """Allows the page's own pictures and script, and forbids every request."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
