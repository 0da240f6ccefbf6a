"""Parses a page into elements, texts and attributes, and holds a text that breaks a page without escapes."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = "<script>document.title='broken'</script>\"'><img src=x onerror=alert(1)>\0\x1b&amp;\u202e"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Holds elements by name, visible text and every attribute; fails on a tag closed out of order."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.names: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], "elements were left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]
