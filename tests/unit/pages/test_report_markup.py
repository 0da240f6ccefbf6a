"""Nothing but Markup reaches a page unescaped."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from videoseek.pages.page import Markup, escape, join, tag

any_text = st.text(st.characters(codec=None, exclude_categories=()))


class Reader(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(any_text, any_text)
def test_any_text_is_one_element_with_that_text(title: str, text: str) -> None:
    source = tag("p", text, title=title)
    source.encode("utf-8")
    page = Reader(source)
    assert page.tags == [("p", {"title": read_back(title)})]
    assert page.text == read_back(text)


def read_back(text: str) -> str:
    """What a reader gets: forbidden characters (as of the HTML standard's list) replaced one for one."""
    return "".join("\ufffd" if is_forbidden(ord(character)) else character for character in text)


def is_forbidden(code: int) -> bool:
    control = (code < 32 and chr(code) not in "\t\n\r") or 127 <= code < 160
    return control or 0xD800 <= code < 0xE000 or 0xFDD0 <= code < 0xFDF0 or code in (0xFFFE, 0xFFFF)


def test_markup_passes_and_text_does_not() -> None:
    assert join([Markup("<b>x</b>"), "<b>"]) == "<b>x</b>&lt;b&gt;"
    assert escape(escape("<")) == "&lt;", "not twice"


def test_attributes_are_written_in_html_form() -> None:
    shown = tag("rect", class_="a", aria_label="b", x=1.0, width=2.3456, hidden=None)
    assert shown == '<rect class="a" aria-label="b" x="1" width="2.35"></rect>'
    assert tag("img", src="data:,") == '<img src="data:,">'
