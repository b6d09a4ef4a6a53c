"""The tokens of one text in bounded time, whatever the text holds."""

from __future__ import annotations

import logging
import re
import unicodedata
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

# One call of tiktoken panics on a million spaces, and in its version 0.12 the time grows with the square of the longest
# run without a break: 65,536 spaces take 4 s, as many ideographs a minute. So long texts are cut into chunks, and a
# chunk that may hold a run of 2 x RUN_CHARS is cut into pieces of RUN_CHARS. Most cuts cost nothing, see _CLEAN_CUT.
CHUNK_CHARS = 64 * 1024
RUN_CHARS = 512
# Longer texts are not measured whole: 16 samples, evenly spread, stand for the rest.
MAX_MEASURED_CHARS = 256 * 1024
SAMPLES = 16

# Where both patterns begin a new piece whatever stands around, so that the two sides count as much as the whole: before
# a space after something else, between a letter or digit and white space or punctuation (not apostrophes, which belong
# to "it's"), between an ASCII letter and an ASCII digit.
_CLEAN_CUT = re.compile(
    r"\S(?= )|[^\W_](?=[\s!-&(-/:-@\[-`{-~、。，．！？；：（）「」『』《》])|[A-Za-z](?=[0-9])|[0-9](?=[A-Za-z])"
)


class TokenCount(NamedTuple):
    """A number of tokens; ``is_estimate`` unless it is exactly what the encoding makes of the text."""

    tokens: int
    is_estimate: bool


class Encoding(Protocol):
    """The one thing needed of ``tiktoken.Encoding``: special tokens such as ``<|endoftext|>`` are ordinary text."""

    def encode_ordinary(self, text: str) -> list[int]: ...


def measure(encoding: Encoding | None, text: str) -> TokenCount:
    """Count the text: exactly if no cut was needed or every cut was clean, else as an estimate; never raises."""
    if encoding is None:
        return TokenCount(estimate_tokens(text), True)
    if len(text) > 2 * RUN_CHARS:
        return _encoded_in_pieces(encoding, text)
    return _counted(encoding, text)


def estimate_tokens(text: str) -> int:
    """Estimate from the characters alone: a token per 4 ASCII characters and per 3 bytes of UTF-8 beyond ASCII.

    4 is OpenAI's rule of thumb for English. 3 bytes make an ideograph one token, as in cl100k_base; for o200k_base and
    for alphabets of 2 bytes it errs on the high side, which folds early instead of overrunning a budget.
    """
    if text.isascii():
        return (len(text) + 3) // 4
    ascii_chars = len(text.encode("ascii", "ignore"))
    other_bytes = len(text.encode("utf-8", "surrogatepass")) - ascii_chars
    return (ascii_chars + 3) // 4 + (other_bytes + 2) // 3


def _counted(encoding: Encoding, text: str) -> TokenCount:
    tokens = encoded(encoding, text)
    return TokenCount(estimate_tokens(text), True) if tokens is None else TokenCount(tokens, False)


def encoded(encoding: Encoding, text: str) -> int | None:
    """Return the tokens of a text of at most ``2 * RUN_CHARS`` characters; None where the encoding fails."""
    try:
        return len(encoding.encode_ordinary(text))
    except BaseException as exc:
        # A Rust panic arrives as pyo3's PanicException: not an Exception, and in no module it could be imported from.
        # What is neither (KeyboardInterrupt, SystemExit, a cancellation) is not ours to stop.
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        logger.warning("tiktoken failed on a text of %d characters: %s", len(text), type(exc).__name__)
        return None


def _encoded_in_pieces(encoding: Encoding, text: str) -> TokenCount:
    if len(text) > MAX_MEASURED_CHARS:
        chunks, is_estimate = _samples(text), True
    else:
        chunks, is_estimate = _cut(text, CHUNK_CHARS)
    tokens = 0
    for chunk in chunks:
        pieces = [chunk]
        if _may_hold_long_run(chunk):
            pieces, is_torn = _cut(chunk, RUN_CHARS)
            is_estimate |= is_torn
        for piece in pieces:
            count = _counted(encoding, piece)
            tokens += count.tokens
            is_estimate |= count.is_estimate
    return TokenCount(-(-tokens * len(text) // sum(map(len, chunks))), is_estimate)


def _may_hold_long_run(text: str) -> bool:
    """Tell whether the text may hold 2 x RUN_CHARS characters that both patterns take as one piece.

    A piece is white space only or has no space but as its first character, and one so long fills a whole block of those
    looked at here.
    """
    for start in range(0, len(text) - RUN_CHARS + 1, RUN_CHARS):
        block = text[start : start + RUN_CHARS]
        if " " not in block or block.isspace():
            return True
    return False


def _cut(text: str, size: int) -> tuple[list[str], bool]:
    """Cut the text into pieces of at most ``size`` characters; tell whether a cut may have torn a token."""
    pieces: list[str] = []
    start, is_torn = 0, False
    while len(text) - start > size:
        end = start + size
        clean = [match.end() for match in _CLEAN_CUT.finditer(text, max(start, end - RUN_CHARS), end)]
        cut = clean[-1] if clean else end - _numbers_before(text, start, end) % 3
        is_torn |= not clean and not _is_number(text[cut - 1])
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces, is_torn


def _numbers_before(text: str, start: int, end: int) -> int:
    """Count the digits and other numbers right before ``end``: both patterns take three at a time, from the first."""
    first = end
    while first > start and _is_number(text[first - 1]):
        first -= 1
    return end - first


def _is_number(char: str) -> bool:
    return unicodedata.category(char).startswith("N")


def _samples(text: str) -> list[str]:
    size = MAX_MEASURED_CHARS // SAMPLES
    starts = [index * (len(text) - size) // (SAMPLES - 1) for index in range(SAMPLES)]
    return [text[start : start + size] for start in starts]
