"""Sentences: cutting a text into them, and joining some of them so that cutting gives the same ones again.

A boundary is decided by two words on either side of it, nothing further away. That is what lets
sentences be chosen, left out and joined, and still be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

MAX_SENTENCE_CHARS = 240
"""A longer sentence is a list or a lost full stop; it is cut at commas or spaces."""

# Controls, surrogates and direction overrides: no store takes the first two, and the last show a text other than it is.
_UNSAFE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BULLET = re.compile(r"(?:(?:[-*+•>]|#{1,6}|\d{1,2}[.)]) )+")
_EMPHASIS = re.compile(r"(?<!\w)(?<!\w-)(?:\*\*|`+)|(?:\*\*|`+)(?!\w)")
"""Not inside a word: without the mark its halves would be one that nobody wrote."""
_BLOB = re.compile(r"(?<![!-~])[!-~]{201,}")
_END = re.compile(
    r"""[.!?…।॥؟۔;。！？；]  # by its first character alone a place is found in a third of the time
        (?: (?<=(?P<mark>[.!?…।॥؟۔]))(?P<closer>["')\]}”“’»«]{0,3})[ ]  # ends before a space
          | (?<=;)[ ]
          | (?<=[。！？；])["')\]}”’»」』）]{0,3}[ ]?                     # ends without one
        )""",
    re.VERBOSE,
)
_ABBREVIATIONS = frozenset(
    [
        *("mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "vs.", "e.g.", "i.e.", "cf.", "approx.", "fig.", "mt."),
        *("sr.", "sra.", "srta.", "dra.", "p.ej.", "z.b.", "d.h.", "bzw.", "inkl.", "evtl.", "ggf."),
    ]
)
_OFTEN_LAST = frozenset(["etc.", "a.m.", "p.m.", "inc.", "ltd.", "co.", "jr.", "u.s.", "u.k.", "usw."])
# "z. B.", "p. m.": the first of two letters ends nothing, and the second seldom.
_LETTER, _TWO_LETTERS = re.compile(r"[^\W\d_]\."), re.compile(r"\b[^\W\d_]\. [^\W\d_]\.$")
_BEFORE_NUMBERS = frozenset(
    ["no.", "nr.", "nº.", "núm.", "num.", "tel.", "tél.", "ext.", "ca.", "art.", "str.", "p.", "pp.", "pág.", "vol."]
)
_COUNTER = re.compile(r"\d{1,2}\.")
# German writes ordinal numbers with a full stop and what they count with a capital: "am 3. Mai", "im 2. Stock".
_ORDINAL = re.compile(r"\b(?:[AaIi]m|[Dd](?:as|e[mnrs]|ie)|[Vv]om|[Zz]u[mr]|[Bb]eim) \d{1,2}\.$")
_GERMAN_MONTH = re.compile(
    r"(?:Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)\b"
)
# And dates in numbers, "3. 5. 2024". Hungarian begins with the year, "2024. május 3-án".
_DAY_BEFORE, _DAY_AFTER = re.compile(r"\b\d{1,2}\. \d{1,2}\.$"), re.compile(r"\d{1,2}\. ?\d{2,4}\b")
_YEAR = re.compile(r"\d{4}\.?")
_HUNGARIAN_MONTH = re.compile(
    r"(?:január|február|március|április|május|június|július|augusztus|szeptember|október|november|december)"
)
_INITIAL = re.compile(r"[A-HJ-Z]\.")
_CUT = re.compile(r".*[,，、:] ?|.* ")


def one_line(text: str) -> str:
    """Return ``text`` with every run of white space as one space and without characters that no store would take."""
    return " ".join(_UNSAFE.sub("", text).split())


def plain_lines(text: str) -> list[str]:
    """Return the lines of ``text`` without markdown marks; blobs without a space are shortened."""
    lines = (one_line(line) for line in text.splitlines())
    return [_BLOB.sub(_shortened, _EMPHASIS.sub("", unmarked(line))).strip() for line in lines if line]


def unmarked(line: str) -> str:
    """Return ``line`` without the bullets, quote marks or heading marks it begins with."""
    return _BULLET.sub("", line, count=1) if _BULLET.match(line) else line


def sentences(line: str) -> list[str]:
    """Return the sentences of a line made by ``one_line``; what has no letter or digit is left out."""
    found: list[str] = []
    for piece in _pieces(line):
        if len(piece) > MAX_SENTENCE_CHARS:
            for part in _parts(piece):
                found += sentences(part)
        elif any(map(str.isalnum, piece)):
            found.append(piece)
    return found


@lru_cache(maxsize=2**13)  # a fold writes its text several times
def is_sentence(text: str) -> bool:
    """Tell whether ``text`` is one sentence as ``sentences`` gives it."""
    return sentences(text) == [text]


def joined(parts: Sequence[str]) -> str:
    """Return one line of which ``sentences`` gives ``parts`` again; each must be a sentence as ``sentences`` makes it.

    A blank separates where the end of a sentence shows, else a semicolon.
    """
    line = "".join(parts[:1])
    for before, after in pairwise(parts):
        line += _separator(before, after) + after
    return line


@lru_cache(maxsize=2**13)
def _separator(before: str, after: str) -> str:
    for candidate in ("", " ") if before[-1] > "⺀" else (" ",):
        if _pieces(before + candidate + after) == [before, after]:
            return candidate
    return "; "


def _pieces(line: str) -> list[str]:
    pieces: list[str] = []
    start = 0
    for match in _END.finditer(line):
        end = match.end()
        if match["mark"]:
            end -= 1
            # No abbreviation is longer than this, and a long line is not copied for each of its full stops.
            before, follows = line[max(start, end - 40) : end], line[end + 1 : end + 12]
            if not _ends_sentence(before, mark=match["mark"], closer=match["closer"], follows=follows):
                continue
        pieces.append(line[start:end].strip(" ;"))
        start = match.end()
    pieces.append(line[start:].strip(" ;"))
    return [piece for piece in pieces if piece]


def _ends_sentence(before: str, *, mark: str, closer: str, follows: str) -> bool:
    """Tell whether the mark that ``before`` ends with also ends a sentence; ``follows`` begins what comes next."""
    is_lower = follows[:1].islower()
    if closer and is_lower:
        return False
    if mark != ".":
        return True
    head, _, word = before.rpartition(" ")
    word = word.lstrip("\"'([{“‘«")
    if _YEAR.fullmatch(word):
        return not _HUNGARIAN_MONTH.match(follows)
    if _COUNTER.fullmatch(word):
        return bool(head) and not (is_lower or _is_ordinal(before, follows))
    if _INITIAL.fullmatch(word):
        return False
    if _LETTER.fullmatch(word):
        return not is_lower if _TWO_LETTERS.search(before) else not _LETTER.match(follows)
    word = word.lower()
    if word in _OFTEN_LAST:
        return not is_lower
    return word not in _ABBREVIATIONS and not (word in _BEFORE_NUMBERS and follows[:1].isdigit())


def _is_ordinal(before: str, follows: str) -> bool:
    """Tell whether the number that ``before`` ends with counts what follows, or is the day or month of a date."""
    if _GERMAN_MONTH.match(follows) or _ORDINAL.search(before) or _DAY_AFTER.match(follows):
        return True
    return bool(_YEAR.match(follows) and _DAY_BEFORE.search(before))


def _parts(piece: str) -> Iterator[str]:
    """Cut a piece that is too long, at its last comma or space before the limit."""
    while len(piece) > MAX_SENTENCE_CHARS:
        match = _CUT.match(piece, MAX_SENTENCE_CHARS // 2, MAX_SENTENCE_CHARS)
        cut = match.end() if match else MAX_SENTENCE_CHARS
        yield piece[:cut].strip(" ,;")
        piece = piece[cut:].strip(" ,;")
    yield piece


def _shortened(match: re.Match[str]) -> str:
    return match[0][:60] + "…"
