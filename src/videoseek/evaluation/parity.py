"""How two public harnesses read letters, in our own words, to explain the distance between their tables and ours.

`lmms` follows lmms-eval 0.7, `vlmevalkit` follows VLMEvalKit of August 2026 under exact matching (no judge model).
Both read differently by benchmark. Where a harness draws an option at random, nothing is read, for the reason `drawn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from videoseek.evaluation.extract import Extraction, extract_letter

MODES = ("ours", "lmms", "vlmevalkit")

# lmms-eval hands the four letters to its reader for every set, also for sets with more options.
_FOUR, _FIVE = "ABCD", "ABCDE"
#: Phrases of lmms-eval: every capital after their first place counts, and the last of these wins.
_LMMS_PHRASES = (
    *(f"{before}answer is" for before in ("", "the ", "my ", "correct ", "the correct ", "best ", "the best ")),
    *(f"{before}option is" for before in ("correct ", "the correct ", "best ", "the best ")),
    *(f"{before}choice is" for before in ("", "the ", "my ", "correct ", "the correct ")),
    *("i choose", "i select", "i pick", "\uc635\uc158", "\uc815\ub2f5\uc740", "\ub2f5\uc740", "\ub2f5:"),
    *("\u7b54\u6848\u662f", "\u7b54\u6848\u4e3a", "\u9009", "\u7b54\u3048\u306f"),
)
#: Places of a letter in lmms-eval, from the strongest to the weakest.
_LMMS_SUFFIXES = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))
_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_LMMS_PREFIXES = (*_PREFIXES, "The best option is", "The correct option is", "Best answer:", "Best option:")
# Two commas are missing in VLMEvalKit's list: two pairs of prefixes are one long prefix each, which no reply holds.
_VLMEVALKIT_PREFIXES = (
    *_PREFIXES,
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
)


def parity_letter(
    mode: str, reply: str, letters: Sequence[str], options: Sequence[str] = (), benchmark: str = ""
) -> Extraction:
    """Reads a letter as `mode` does on `benchmark` (longvideobench and video_holmes differ from all others).

    Raises ValueError for an unknown mode.
    """
    if mode == "ours":
        return extract_letter(reply, letters, options)
    if mode == "lmms":
        if benchmark == "longvideobench":
            return _read(_first_capital(reply, _FIVE, _LMMS_PREFIXES), "drawn")
        if benchmark == "video_holmes":
            return _read(_lmms_mmmu(reply, letters, options), "drawn")
        return _read(_lmms_ranked(reply, _FOUR), "no_answer")
    if mode == "vlmevalkit":
        if "Failed to obtain answer via API" in reply:  # the harness drops such questions from its mean
            return Extraction(None, "no_answer")
        known = _FIVE if benchmark == "longvideobench" else _FOUR
        letter = _first_capital(reply, known, _VLMEVALKIT_PREFIXES) or _contained_option(reply, letters, options)
        return _read(letter, "no_answer")
    raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")


def _read(letter: str | None, reason: str) -> Extraction:
    return Extraction(letter, reason if letter is None else "letter")


def _first_capital(reply: str, letters: str, prefixes: Sequence[str]) -> str | None:
    """Returns the first of the capitals anywhere, also inside a word, after the removal of some phrases."""
    for prefix in prefixes:
        reply = reply.replace(prefix, "")
    return next((character for character in reply if character in letters), None)


def _contained_option(reply: str, letters: Sequence[str], options: Sequence[str]) -> str | None:
    """Returns the only option whose text the reply contains, unless the reply is twice as long as all options."""
    text = reply.lower()
    if not options or len(text) > 2 * sum(map(len, options)):
        return None
    named = [letter for letter, option in zip(letters, options, strict=False) if option.lower() in text]
    return named[0] if len(named) == 1 else None


def _lmms_ranked(reply: str, letters: str) -> str | None:
    """Returns the letter in the strongest place: at the start, at the end, after a phrase, then by what follows it.

    Of equal places the last one wins. A capital inside a word counts where nothing else does.
    """
    text = reply.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    core, padded = text.strip(), f" {text} "
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        found += [(rank, padded.rfind(form.format(letter)), letter) for rank, form in _LMMS_SUFFIXES]
        if core.startswith(letter) and not core[1:2].isalpha():
            found.append((10, 0, letter))
        if core.endswith(letter) and not core[-2:-1].isalpha():
            found.append((9, len(padded), letter))
        for phrase in _LMMS_PHRASES:
            if (start := padded.lower().find(phrase)) >= 0:
                found.append((7, padded.find(letter, start + len(phrase)), letter))
    placed = [place for place in found if place[1] >= 0]
    placed = placed or [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
    # Python's sort is stable and the letters come in order: the first letter wins a tie.
    return max(placed, key=lambda place: place[:2])[2] if placed else None


def _lmms_mmmu(reply: str, letters: Sequence[str], options: Sequence[str]) -> str | None:
    """Reads as lmms-eval does on Video-Holmes: the last bracketed letter, else the last before a space or a point.

    A reply of more than five words without such a letter names the last contained option text.
    """
    for mark in ",.!?;:'":
        reply = reply.strip(mark)
    text = f" {reply} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [letter for letter in letters if form.format(letter) in text]
        if named:
            return max(named, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) > 5:
        lower = text.lower()
        places = {letter: lower.rfind(option.lower()) for letter, option in zip(letters, options, strict=False)}
        if any(place >= 0 for place in places.values()):
            return max(places, key=lambda letter: places[letter])
    return None


@dataclass(frozen=True, slots=True)
class Question:
    """A reply with the letters and texts of its options."""

    reply: str
    letters: str
    options: tuple[str, ...] = ()
    benchmark: str = ""


#: A question, and the extraction of each mode.
Reading = tuple[Question, dict[str, Extraction]]


def read_all_modes(questions: Iterable[Question]) -> list[Reading]:
    """Returns every question with what each mode reads in its reply."""
    return [
        (asked, {m: parity_letter(m, asked.reply, asked.letters, asked.options, asked.benchmark) for m in MODES})
        for asked in questions
    ]


def agreement_table(readings: Sequence[Reading]) -> str:
    """Returns Markdown: the number of equal readings of each two modes, then every reply that they read differently.

    Two modes agree on a reply that neither can read.
    """
    read = [found for _, found in readings]
    rows: list[list[object]] = [[f"of {len(read)} replies", *MODES], ["---"] * (len(MODES) + 1)]
    rows += [[mode, *(sum(r[mode].value == r[other].value for r in read) for other in MODES)] for mode in MODES]
    rows.append(["a letter is read", *(sum(r[mode].value is not None for r in read) for mode in MODES)])
    rows.append(["the harness draws", *(sum(r[mode].reason == "drawn" for r in read) for mode in MODES)])
    rows += [[], ["reply", *MODES], ["---"] * (len(MODES) + 1)]
    for question, found in readings:
        letters = [found[mode].value or "-" for mode in MODES]
        reply = ascii(question.reply)[1:-1].replace("|", "\\|")
        rows += [[f"`{reply}`", *letters]] if len(set(letters)) > 1 else []
    return "\n".join(f"| {' | '.join(map(str, row))} |" if row else "" for row in rows)
