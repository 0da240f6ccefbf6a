"""Reads the answer of a model's reply: an option letter, a number or a span of time. Nothing is drawn at random.

`docs/scoring.md` has the rules in words. An unread reply is None with a stable reason, and counts as wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from videoseek.types import Interval

#: Rules that read a value, in the order of trial.
READ = ("letter", "line_letter", "phrase", "option_text", "option_contained", "lone_letter", "number", "span")
#: Reasons for None.
UNREAD = ("empty", "no_answer", "several_answers", "not_allowed", "reversed_span")

_BLOCK = re.compile(r"<answer\s*>((?:(?!<answer\s*>).)*?)</answer\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(?:answer|think)\s*>", re.IGNORECASE)
_LATEX = re.compile(r"\\(?:boxed|text|textbf|textit|mathrm|mathbf|mathbb|mathsf|bm|fbox)\s*\{([^{}]*)\}")
_LATEX_SIGNS = re.compile(r"\$|\\[()\[\]]|\\(?:displaystyle|quad|left|right|,|;|!)")
_LINE_MARKS = re.compile(r"^[ \t]*(?:(?:[#>]+|[-*+\u2022])[ \t]+)+", re.MULTILINE)
_EMPHASIS = re.compile(r"[*`]+|~~|(?<![^\W_])_+|_+(?![^\W_])")
# An apostrophe inside a word stays: the I of "I'm" is no option.
_QUOTES = re.compile(r"[\"\u201c\u201d\u00ab\u00bb\u300c-\u300f]|(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)")
_BRACKETS = str.maketrans("\u3010\u3011\u3014\u3015\u3016\u3017\u3008\u3009\u300a\u300b", "()" * 5)

# Letters of other scripts may touch an option: Chinese and Korean write no space.
_LEFT = r"(?<![A-Za-z0-9_\u00c0-\u024f'\u2019])(?<![A-Za-z0-9][-.])"
_RIGHT = r"(?![A-Za-z0-9_\u00c0-\u024f'\u2019]|-[A-Za-z0-9]|(?-i:\.[a-z0-9]|\.[A-Z]\.))"
_WHOLE = re.compile(r"[(\[{<]*\s*([A-Za-z])\s*[)\]}>]*\s*[.:,;!\u3002]?\s*[)\]}>]*")
_LINE_LETTER = re.compile(
    r"^ ?(?:[(\[{] ?)?([A-Za-z]) ?(?:[)\]}] ?[.:]?|[.:](?=\s|$|[A-Z][a-z]|[^\x00-\x7f])|(?<=[A-Z])$)(.*)$",
    re.MULTILINE,
)
_LABELS_ONLY = re.compile(r"(?:[ ,;/&.:()\[\]]*\b[A-Za-z]\b)+[ ,;/&.:()\[\]]*")
_PHRASE = re.compile(
    r"(?P<not>(?:\b(?:not|cannot|never|nor|neither|than|instead of)|n['\u2019]t)\s+(?:be\s+)?(?:the\s+)?)?"
    r"\b(?:answer|option|choice)\s*(?P<copula>is\b|:)?\s*:?\s*(?:the\s+)?(?:(?:option|choice)\s*:?\s*)?"
    rf"(?:[(\[{{]\s*(?P<boxed>[A-Za-z])\s*[)\]}}]|[(\[{{]?{_LEFT}(?P<plain>[A-Z]){_RIGHT})(?P<rest>[^\n]{{0,80}})",
    re.IGNORECASE,
)
_LONE = re.compile(rf"{_LEFT}([A-Z]){_RIGHT}")
# Words that may follow a letter but no article.
_AFTER_LETTER = re.compile(
    r"\s+(?:because|since|as|so|for|but|is|was|which|where|given|due|based|if|while|although|though|not|from|in|"
    r"with|by)\b"
)
_AFTER_ARTICLE = {"A": re.compile(r"\s+(?!and\b|or\b)[a-z]"), "I": re.compile(r"\s+(?!and\b|or\b)[A-Za-z]{2}")}
_ADVERB = r"(?:clearly|definitely|obviously|therefore|thus|also|probably|likely|most likely)"
_REJECTED_BEFORE = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor|except|excluding|unlike|eliminate|exclude|reject|than|instead of)"
    r"|n['\u2019]t)(?:\s+be)?\s+(?:the\s+)?(?:(?:option|choice|answer)\s+)?[(\[]?\s*$",
    re.IGNORECASE,
)
_REJECTED_AFTER = re.compile(
    rf"\s*[)\]]?\s+(?:(?:is|was|seems|looks|are)\s+(?:{_ADVERB}\s+)?(?:wrong|incorrect|false|not|out|impossible|"
    r"eliminated|excluded|ruled out|irrelevant|unlikely)|(?:is|was|does|do|can|could)n['\u2019]t|cannot|does not|"
    r"can(?: safely)? be (?:ruled out|excluded|eliminated))\b"
)
_CONCLUDED = re.compile(
    rf"\s*(?:$|[.,;:!?)\]](?:\s|$)|because\b|since\b|as\b|(?:is|seems|looks)\s+(?:{_ADVERB}\s+)?(?:the\s+)?(?:most\s+|only\s+)?"
    r"(?:correct|right|best|true|answer|accurate|likely|appropriate|suitable)\b)"
)
_OTHER_LETTER = re.compile(
    r"\s*[)\]]?\s*(?:,|/|&|\+|\band/or\b|\bor\b|\band\b)\s*(?:or\s+|and\s+)?(?:option\s+)?[(\[]?([A-Z])[)\]]?"
    r"(?=\s*(?:$|[.,;:!?/&+)\]]|or\b|and\b))"
)

# A clock (1:05, 0:01:05), or a number with an optional unit and seconds behind it (1m30s, 1 minute and 5 seconds).
_TIME = (
    r"(?:(?P<clock{0}>(?:\d{{1,3}}:)?\d{{1,4}}:\d{{1,2}}(?:\.\d+)?)|(?P<n{0}>\d{{1,9}}(?:\.\d+)?)\s*(?P<unit{0}>h(?:ours?|rs?)?\b|"
    r"m(?:in(?:ute)?s?)?(?=\W|\d|$)|s(?:ec(?:ond)?s?)?\b)?(?:\s*(?:and\s+)?(?P<rest{0}>\d{{1,9}}(?:\.\d+)?)\s*s(?:ec(?:ond)?s?)?\b)?)"
)
_ONE_TIME = re.compile(rf"(?<![\w.:]){_TIME.format(1)}(?![\w:]|-\w|\.\d)", re.IGNORECASE)
_JOIN = r"\s*(?:-+>?|\u2013|\u2014|~|\u2192|,|\bto\b|\buntil\b|\btill\b|\bthrough\b|\band\b)+\s*"
_TIME_PAIR = re.compile(rf"(?<![\w.:]){_TIME.format(1)}{_JOIN}{_TIME.format(2)}(?![\w:]|-\w|\.\d)", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.\d+)?(?:[eE][-+]?\d{1,2}(?!\w))?(?!\d|[eE][-+]?\d)"
)
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_NUMBER_PHRASE = re.compile(r"\banswer\s*(?:is\b|:|=)?\s*:?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Extraction:
    """The value of a reply, or None, and the rule of READ or the reason of UNREAD."""

    value: str | float | Interval | None
    reason: str


def scope(reply: str) -> str:
    """Returns the part that holds the answer: the last complete answer block, else the text after the thinking."""
    if blocks := _BLOCK.findall(reply):
        return str(blocks[-1])
    return re.split(r"</think\s*>", reply, flags=re.IGNORECASE)[-1]


def plain(text: str) -> str:
    """Removes Markdown, LaTeX, quotes and tags. Full-width characters and brackets become ASCII."""
    text = unicodedata.normalize("NFKC", text).translate(_BRACKETS)
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    text = _TAG.sub("", text)
    for _ in range(8):  # from the innermost braces outwards
        text = _LATEX.sub(r" \1", text)
    text = re.sub(r"[^\S\n]+", " ", _LATEX_SIGNS.sub("", text))
    text = re.sub(r" ?\n[\n ]*", "\n", text)
    return _QUOTES.sub("", _EMPHASIS.sub("", _LINE_MARKS.sub("", text))).strip()


def extract_letter(reply: str, letters: Sequence[str], options: Sequence[str] = ()) -> Extraction:
    """Reads one of the capital `letters`. `options` are the texts of the letters in order, with or without labels."""
    text = plain(scope(reply))
    if not text:
        return Extraction(None, "empty")
    if whole := _WHOLE.fullmatch(text):
        return _allowed(whole[1], letters, "letter")
    labelled = _line_letters(text, letters)
    if len(labelled) == 1:
        return Extraction(labelled.pop(), "line_letter")
    if (found := _phrase_letter(text, letters)) is not None:
        return found
    for rule, fits in (("option_text", _equals), ("option_contained", _contains)):
        named = [letter for letter, option in zip(letters, options, strict=False) if fits(text, option, letter)]
        if len(named) == 1:
            return Extraction(named[0], rule)
    lone = _lone_letters(text)
    if len(lone) == 1:
        return _allowed(lone.pop(), letters, "lone_letter")
    return Extraction(None, "several_answers" if lone or len(labelled) > 1 else "no_answer")


def _allowed(letter: str, letters: Sequence[str], rule: str) -> Extraction:
    letter = letter.upper()
    return Extraction(letter, rule) if letter in letters else Extraction(None, "not_allowed")


def _line_letters(text: str, letters: Sequence[str]) -> set[str]:
    """Returns the letters at the beginning of lines; a line of nothing but labels names all of them."""
    found: set[str] = set()
    for match in _LINE_LETTER.finditer(text):
        if match[1].upper() in letters:
            found.add(match[1].upper())
            if other := _OTHER_LETTER.match(match[2]):
                found.add(other[1])
            if _LABELS_ONLY.fullmatch(match[2]):
                found.update(re.findall(r"[A-Z]", match[2].upper()))
    return found


def _phrase_letter(text: str, letters: Sequence[str]) -> Extraction | None:
    """Returns the letter of the last phrase that concludes, such as "the answer is B"; None without such a phrase.

    "Option A" alone is a mention, unless the sentence ends there or calls the option right.
    """
    found = None
    position = 0
    while match := _PHRASE.search(text, position):
        position = match.start("rest")
        letter, rest = match["boxed"] or match["plain"], match["rest"]
        if not (match["boxed"] or letter.isupper()) or match["not"]:
            continue
        if not match["boxed"] and _is_article(letter, rest) and not _AFTER_LETTER.match(rest):
            continue
        other = _OTHER_LETTER.match(rest)
        if other and other[1] != letter.upper():
            found = Extraction(None, "several_answers")
            position += other.end()
        elif (match["copula"] or _CONCLUDED.match(rest)) and not _REJECTED_AFTER.match(rest):
            found = _allowed(letter, letters, "phrase")
    return found


def _lone_letters(text: str) -> set[str]:
    """Returns the standalone capitals: no article, no pronoun, and none that the text rejects."""
    found = set()
    for match in _LONE.finditer(text):
        before, rest = text[max(0, match.start() - 80) : match.start()], text[match.end() : match.end() + 80]
        rejected = _REJECTED_BEFORE.search(before) or _REJECTED_AFTER.match(rest)
        if not _is_article(match[1], rest) and not rejected:
            found.add(match[1])
    return found


def _is_article(letter: str, rest: str) -> bool:
    """Returns whether a capital is the article A before a lower-case word, or the pronoun I before any word.

    "A because .." and "A is correct" name the option.
    """
    return bool(letter in _AFTER_ARTICLE and _AFTER_ARTICLE[letter].match(rest) and not _CONCLUDED.match(rest))


def normalise(text: str) -> str:
    """Returns lower-case words without punctuation; points, commas and colons inside numbers stay."""
    text = re.sub(r"['\u2019]", "", plain(text).casefold())
    text = re.sub(r"(?<!\d)[.,:]|[.,:](?!\d)|(?<!\S)-(?!\d)|(?<=\S)-|[^\w\s.,:%+-]|_", " ", text)
    return " ".join(text.split())


def _option_words(option: str, letter: str) -> str:
    return normalise(re.sub(rf"^\s*[(\[]?{letter}[)\].:]\s*", "", option))


def _equals(text: str, option: str, letter: str) -> bool:
    return normalise(text) == _option_words(option, letter) != ""


def _contains(text: str, option: str, letter: str) -> bool:
    """Returns whether the text names the option in whole words and does not deny it."""
    words = _option_words(option, letter)
    if not words:
        return False
    left, right = (r"(?<!\S)" if words[0] < "\u2e80" else ""), (r"(?!\S)" if words[-1] < "\u2e80" else "")
    denied = r"\b(?:not|never|no|isnt|wasnt) (?:an? |the )?"
    mentions = re.finditer(rf"({denied})?{left}{re.escape(words)}{right}", normalise(text))
    return any(mention[1] is None for mention in mentions)


def extract_number(reply: str) -> Extraction:
    """Reads the only number, in digits or as a word up to twelve, or the number right after the last "answer is"."""
    text = plain(scope(reply))
    if not text:
        return Extraction(None, "empty")
    for phrase in reversed(list(_NUMBER_PHRASE.finditer(text))):
        if number := _NUMBER.match(text, phrase.end()) or _NUMBER_WORD.match(text, phrase.end()):
            return Extraction(_number(number[0]), "number")
    numbers = {_number(match[0]) for match in _NUMBER.finditer(text)}
    numbers = numbers or {_number(match[0]) for match in _NUMBER_WORD.finditer(text)}
    if len(numbers) == 1:
        return Extraction(numbers.pop(), "number")
    return Extraction(None, "several_answers" if numbers else "no_answer")


def _number(text: str) -> float:
    word = text.casefold()
    return float(_WORDS.index(word)) if word in _WORDS else float(text.replace(",", "").replace("\u2212", "-"))


def extract_span(reply: str) -> Extraction:
    """Reads the only pair of times, in seconds: `12.5s to 1:05`, `[3, 7]`, `from 1 to 2 minutes`, `00:05-00:10`."""
    text = plain(scope(reply))
    if not text:
        return Extraction(None, "empty")
    spans = {_pair(match) for match in _TIME_PAIR.finditer(text)}
    if not spans:
        times = list(_ONE_TIME.finditer(text))
        if len(times) != 2:
            return Extraction(None, "several_answers" if len(times) > 2 else "no_answer")
        spans = {(_seconds(times[0], 1), _seconds(times[1], 1))}
    if len(spans) > 1:
        return Extraction(None, "several_answers")
    start_seconds, end_seconds = spans.pop()
    if not start_seconds < end_seconds:
        return Extraction(None, "reversed_span")
    return Extraction((start_seconds, end_seconds), "span")


def _pair(match: re.Match[str]) -> Interval:
    """Returns two joined times; the first takes the unit of the second if it has none, as in "1 to 2 minutes"."""
    shared = match["unit2"] if match["unit1"] is None and match["clock1"] is None else None
    return _seconds(match, 1, shared), _seconds(match, 2)


def _seconds(match: re.Match[str], index: int, unit: str | None = None) -> float:
    if clock := match[f"clock{index}"]:
        seconds = 0.0
        for part in clock.split(":"):
            seconds = seconds * 60 + float(part)
        return seconds
    factor = {"h": 3600.0, "m": 60.0, "s": 1.0}[(match[f"unit{index}"] or unit or "s")[0].lower()]
    return float(match[f"n{index}"]) * factor + float(match[f"rest{index}"] or 0)
