"""Counts hard words in the docstrings of a source tree: `python tests/support/prose.py FOLDER ...`.

The script prints per 100 words: relative words (`which`, `that`, `whose` ..), negations (`not`, `no`, `never` ..) and
bare pronouns (`it`, `they`, `one` ..). The counts show a tendency, and judge no single sentence.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

RELATIVE = {"that", "which", "who", "whom", "whose", "what", "whatever", "whichever", "where", "wherever"}
NEGATIONS = {"not", "no", "never", "none", "nothing", "nobody", "nowhere", "neither", "nor", "without", "cannot"}
PRONOUNS = {"it", "its", "they", "them", "their", "these", "those", "this", "one", "ones", "he", "such", "so"}


def docstrings(folder: Path) -> Iterator[str]:
    """Yields every docstring below `folder`."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def counts(folder: Path) -> dict[str, float]:
    """Returns words per docstring and per sentence, and the three kinds of hard words per 100 words."""
    texts = [re.sub(r"`[^`]*`", "NAME", text) for text in docstrings(folder)]
    words = [re.findall(r"[A-Za-z']+", text) for text in texts]
    num_words = sum(map(len, words))
    num_sentences = sum(len(re.findall(r"[.!?:;](?:\s|$)", text)) or 1 for text in texts)
    lowered = [word.lower() for text in words for word in text]

    def per_hundred(kind: set[str]) -> float:
        return 100 * sum(word in kind for word in lowered) / num_words

    return {
        "docstrings": len(texts),
        "words per docstring": num_words / len(texts),
        "words per sentence": num_words / num_sentences,
        "relative words %": per_hundred(RELATIVE),
        "negations %": per_hundred(NEGATIONS),
        "bare pronouns %": per_hundred(PRONOUNS),
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, {name: round(value, 1) for name, value in counts(Path(argument)).items()})
