"""Evidence: the numbers, ids, addresses and links of a text, by which a summary can be held against its source."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from contract_engine.memory.summarizers.languages import NUMBERS_IN_WORDS

IDENTIFIER_WEIGHT = 3
NUMBER_WEIGHT = 1
"""What an id, an address or a link, and a number of two digits or more, are worth. A single digit is worth nothing."""

_LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"'`|\\^{}，。；、）】」]+", re.IGNORECASE)
# The look behind keeps a long run without an address from being searched from each of its characters.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# ASCII only: Chinese writes its words right beside its numbers. Digits of other scripts are turned into these first.
_TOKEN = re.compile(r"\d{1,3}(?:[,'’]\d{3})+(?![a-z0-9])|[a-z0-9]+(?:[-_./:][a-z0-9]+)*")
_PIECE = re.compile(r"[a-z0-9]+")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_GROUPED = re.compile(r"\d{1,3}(?:[.,'’]\d{3})+")
_COUNTED = re.compile(r"(\d+)([a-z]{1,3})")
_WORD = re.compile(r"[^\W\d_]+")
_ENDS = ".,:;!?)]}'\"’”*/"


def evidence(text: str) -> dict[str, int]:
    """Return each number, id, address and link of ``text`` once, in one form, with what it is worth."""
    found: dict[str, int] = {}
    rest = _folded(text)
    for pattern in (_LINK, _EMAIL):
        for match in pattern.findall(rest):
            found[match.rstrip(_ENDS)] = IDENTIFIER_WEIGHT
        rest = pattern.sub(" ", rest)
    for token in _TOKEN.findall(rest):
        if any(map(str.isdigit, token)):
            found[_number(token)] = _weight(token)
    return found


def weight(text: str) -> int:
    """Return what the evidence of a text is worth."""
    return sum(evidence(text).values())


@dataclass(frozen=True, slots=True)
class Known:
    """What texts know: everything a summary of them may say of numbers, ids, addresses and links."""

    text: str
    tokens: frozenset[str]
    pieces: frozenset[str] = field(repr=False)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Known:
        """Read the texts."""
        text = _folded("\n".join(texts))
        tokens = frozenset(evidence(text))
        pieces = {piece for piece in _PIECE.findall(text) if any(map(str.isdigit, piece))}
        pieces |= {match[1] for piece in pieces if (match := _COUNTED.fullmatch(piece))}
        words = set(_WORD.findall(text))
        pieces |= {number for word, number in NUMBERS_IN_WORDS.items() if word in words}
        pieces |= {str(int(value)) for value in _signs(text)}
        return cls(text, tokens, frozenset(pieces | {_plain(piece) for piece in pieces}))

    def unknown(self, text: str) -> list[str]:
        """Return the evidence of ``text`` that is nowhere in what is known."""
        return [token for token in evidence(text) if not self._knows(token)]

    def says(self, text: str) -> bool:
        """Tell whether ``text``, of three words or more, stands here word for word."""
        words = _folded(text).strip(_ENDS)
        return words.count(" ") >= 2 and words in self.text

    def _knows(self, token: str) -> bool:
        if token in self.tokens:
            return True
        if "@" in token or token.startswith(("http", "www.")):
            return token in self.text
        return all(
            piece in self.pieces
            or _plain(piece) in self.pieces
            or ((match := _COUNTED.fullmatch(piece)) is not None and _plain(match[1]) in self.pieces)
            for piece in _PIECE.findall(token)
            if any(map(str.isdigit, piece))
        )


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), folded)


def _number(token: str) -> str:
    """Return a number without what separates its thousands; any other token as it is."""
    return re.sub(r"[.,'’]", "", token) if _GROUPED.fullmatch(token) else token


def _plain(piece: str) -> str:
    """Return a whole number in ASCII digits and without leading zeros; any other piece as it is."""
    return str(int(piece)) if piece.isdecimal() and len(piece) < 40 else piece


def _weight(token: str) -> int:
    digits = sum(map(str.isdigit, token))
    if digits >= 5 or (digits and len(token) >= 5 and any(map(str.isalpha, token))):
        return IDENTIFIER_WEIGHT
    return NUMBER_WEIGHT if digits >= 2 else 0


def _signs(text: str) -> set[float]:
    """Return the values of signs that are numbers without being digits, as Chinese has them."""
    values = (unicodedata.numeric(sign, -1) for sign in set(text) if not sign.isascii() and not sign.isdigit())
    return {value for value in values if 0 <= value < 10**9 and value == int(value)}
