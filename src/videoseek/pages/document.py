"""The frame of every page: one file without a single outside reference, readable without its script, printable."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files

from videoseek.pages.markup import Markup, tag


def document(title: str, sections: Iterable[Markup]) -> str:
    """A whole HTML file: the title as its heading, then the sections."""
    script = Markup(_asset("page.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(_asset("page.css"))),
    )
    body = tag("body", tag("main", tag("h1", title), *sections), tag("script", script))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return (files("videoseek.pages") / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """What a browser may do with the page: show its own pictures and run this very script, ask nobody."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
