"""tiktoken's two current encodings as package data, loaded without the network.

tiktoken downloads a rank file when an encoding is first used and has no offline mode. The files beside this module are
OpenAI's, published with tiktoken under the MIT licence, unchanged but for the xz compression. Patterns and special
tokens are those of ``tiktoken_ext.openai_public``, where they stand inside the functions that download.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from binascii import a2b_base64
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from contract_engine.memory.errors import CorruptDataError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    import tiktoken

logger = logging.getLogger(__name__)


class EncodingFacts(NamedTuple):
    """What tiktoken needs besides the ranks; ``sha256`` is of the file before compression."""

    sha256: str
    pattern: str
    special_tokens: dict[str, int]


SHIPPED = {
    "o200k_base": EncodingFacts(
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        pattern="|".join(
            (
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            )
        ),
        special_tokens={"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
    "cl100k_base": EncodingFacts(
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        pattern="|".join(
            (
                r"'(?i:[sdmt]|ll|ve|re)",
                r"[^\r\n\p{L}\p{N}]?+\p{L}++",
                r"\p{N}{1,3}+",
                r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
                r"\s++$",
                r"\s*[\r\n]",
                r"\s+(?!\S)",
                r"\s",
            )
        ),
        special_tokens={
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
}


def load_encoding(name: str, directory: Traversable | None = None) -> tiktoken.Encoding:
    """Build a shipped encoding from the rank file in ``directory`` (default: this package); some 300 to 600 ms.

    Raises OSError or CorruptDataError for a file that is missing or not the one expected, ImportError without tiktoken.
    """
    # Imported here because tiktoken takes 50 ms, and a program that never counts should not pay for it; and because
    # some builds of Python lack lzma, which must cost exact counts there, not the import of the package.
    import lzma

    import tiktoken

    facts = SHIPPED[name]
    packed = (directory or resources.files(__name__)).joinpath(f"{name}.tiktoken.xz").read_bytes()
    try:
        data = lzma.decompress(packed)
    except lzma.LZMAError as exc:
        raise CorruptDataError(f"rank file of {name} is not valid xz") from exc
    if hashlib.sha256(data).hexdigest() != facts.sha256:
        raise CorruptDataError(f"rank file of {name} has another SHA-256 than the one published")
    # A line is "base64 rank", and both files list the ranks 0, 1, 2 ... without a gap. The hash has pinned that, so
    # the second column need not be parsed.
    ranks = dict(zip(map(a2b_base64, data.split()[::2]), itertools.count(), strict=False))
    return tiktoken.Encoding(
        name, pat_str=facts.pattern, mergeable_ranks=ranks, special_tokens=dict(facts.special_tokens)
    )


class EncodingLibrary:
    """Loads each encoding once, at its first use, whichever thread that is in."""

    def __init__(self, directory: Traversable | None = None) -> None:
        self._directory = directory
        self._loaded: dict[str, tiktoken.Encoding | None] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> tiktoken.Encoding | None:
        """Return the encoding, or None when it cannot be loaded.

        A failure is logged once and remembered: a damaged installation does not heal, and trying again would cost every
        count a tenth of a second.
        """
        try:
            return self._loaded[name]
        except KeyError:
            pass
        with self._lock:
            if name not in self._loaded:
                try:
                    self._loaded[name] = load_encoding(name, self._directory)
                except (ImportError, OSError, CorruptDataError) as exc:
                    logger.warning("token encoding %s cannot be loaded, token counts are estimates: %s", name, exc)
                    self._loaded[name] = None
            return self._loaded[name]


encodings = EncodingLibrary()
