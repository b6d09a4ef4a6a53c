"""Tokens of a text, a message and a batch: exact where that is affordable, a stated estimate elsewhere.

A message costs what OpenAI's cookbook ("How to count tokens with tiktoken") found for its chat models: 3 tokens of
framing, its role, its content, and 1 more for a name; each answer is primed with 3 more. Tool calls are not in that
recipe: their names and arguments are counted as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from contract_engine.memory.encodings import SHIPPED, encodings
from contract_engine.memory.encodings.measurement import RUN_CHARS, Encoding, TokenCount, encoded, measure
from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.exchange import whole_from

__all__ = ["TokenCount", "TokenCounter"]

FALLBACK_ENCODING = "o200k_base"

TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
TOKENS_PER_REPLY = 3

# What a block costs whose payload is not text. Image: OpenAI's vision guide, 1024 x 1024 pixels in high detail is
# 85 + 4 x 170, low detail always 85. Audio: half a minute at the 1 token per 100 ms of OpenAI's realtime guide.
# File: one page at the lower end of the 1,500 to 3,000 that Anthropic's guide gives for a page of PDF.
IMAGE_TOKENS = 765
LOW_DETAIL_IMAGE_TOKENS = 85
AUDIO_TOKENS = 300
FILE_TOKENS = 1500

# What one counter remembers: at most so many texts, none longer than the second figure, and characters in all. The last
# is 8 MiB at the worst, of text in which each character takes 4 bytes.
MAX_REMEMBERED_TEXTS = 8192
MAX_REMEMBERED_LENGTH = 16 * 1024
MAX_REMEMBERED_CHARS = 2 * 1024 * 1024

_BLOCK_KINDS = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "input_audio": "audio",
    "output_audio": "audio",
    "file": "file",
    "input_file": "file",
    "document": "file",
}

Message = Mapping[str, object] | str | None
M = TypeVar("M", bound=Message)


class EncodingSource(Protocol):
    """Where encodings come from; None means that exact counts are not to be had."""

    def get(self, name: str) -> Encoding | None: ...


class TokenCounter:
    """Counts tokens as ``model`` would see them. Safe to share between threads; never touches the network.

    Nothing is loaded until the first count or :meth:`warm`. A model that tiktoken does not know, or whose encoding is
    not shipped, is counted with o200k_base; ``encoding_name`` tells. Counting never raises and takes bounded time,
    whatever a text holds. The counts of up to 8,192 texts of up to 16 Ki characters, 2 Mi in all, are remembered,
    which keeps these texts in process memory until others push them out.

    Raises ConfigurationError for a model that is not a text.
    """

    def __init__(self, model: str = "gpt-4o", *, source: EncodingSource = encodings) -> None:
        if not isinstance(model, str):
            raise ConfigurationError("model", f"expected a text, got {type(model).__name__}")
        if not model:
            raise ConfigurationError("model", "must not be empty")
        self.model = model
        self._recent = _RecentCounts(source, model)

    @property
    def encoding_name(self) -> str:
        """Name the encoding that counts are made with."""
        return _encoding_name(self.model)

    def warm(self) -> bool:
        """Load the encoding now, best at service start (up to 0.6 s); return whether counts will be exact."""
        return self._recent.load() is not None

    def count_tokens(self, text: object) -> int:
        """Count one text. None is 0; bytes are read as UTF-8; any other value counts as its JSON."""
        return self._recent[text] if type(text) is str else self.count(text).tokens

    def count(self, text: object) -> TokenCount:
        """Count one text as :meth:`count_tokens` does, and say whether the number is an estimate.

        It is one for a text above 256 Ki characters, of which samples are measured; for one with a long run that offers
        no place to cut it (one token off per 512 characters or so); for every one when the encoding cannot be loaded.
        """
        if type(text) is not str:
            if text is None:
                return TokenCount(0, False)
            text = _as_text(text)
        known = self._recent.get(text)
        return self._recent.measure(text) if known is None else TokenCount(known, False)

    def count_message_tokens(self, message: Message) -> int:
        """Count one message with its framing; None is 0, a bare text is a message without a role.

        Counted are role, name, content, refusal, tool_call_id and the names and arguments of tool_calls and
        function_call. No other key is sent to a model. Blocks of content: text by its tokens; images, audio and files
        by the flat figures above instead of their base64; the rest by its JSON.
        """
        if message is None:
            return 0
        if not (type(message) is dict or isinstance(message, Mapping)):
            return TOKENS_PER_MESSAGE + self.count_tokens(message)
        get = message.get
        content = get("content")
        role = get("role")
        total = TOKENS_PER_MESSAGE + (self._recent[role] if type(role) is str else self.count_tokens(role))
        total += self._recent[content] if type(content) is str else self._content_tokens(content)
        # Most messages are these two keys and nothing else.
        if len(message) > 2 or role is None or content is None:
            if (name := get("name")) is not None:
                total += TOKENS_PER_NAME + self.count_tokens(name)
            if calls := get("tool_calls"):
                total += self._calls_tokens(calls)
            if call := get("function_call"):
                total += self._call_tokens(call)
            total += self.count_tokens(get("tool_call_id")) + self.count_tokens(get("refusal"))
        return total

    def count_batch_tokens(self, messages: Iterable[Message] | None) -> int:
        """Sum :meth:`count_message_tokens` over the messages; None is 0."""
        return sum(map(self.count_message_tokens, messages or ()))

    def estimate_context_tokens(self, messages: Iterable[Message] | None, summary: str | None = None) -> int:
        """Estimate a whole prompt: the summary as a system message, the messages, and the priming of the reply."""
        total = self.count_batch_tokens(messages) + TOKENS_PER_REPLY
        if summary:
            total += self.count_message_tokens({"role": "system", "content": summary})
        return total

    def should_trigger_summary(self, messages: Iterable[Message] | None, threshold: int = 3000) -> bool:
        """Tell whether the messages together reach ``threshold`` tokens."""
        return self.count_batch_tokens(messages) >= threshold

    def get_overflow_messages(self, messages: Sequence[M] | None, max_tokens: int = 4000) -> list[M]:
        """Return the oldest messages that have to go for the rest to count at most ``max_tokens``: as few as possible.

        ``messages`` are oldest first and stay as they are. A call goes together with its results. Only where the newest
        of these exchanges is larger than ``max_tokens`` itself, the beginning of it goes, and what is left does not
        begin with a result, unless it is nothing but results. The answer is empty when all of them fit, and all of
        them when not even the newest message does.
        """
        held = list(messages or ())
        total = 0
        for index in range(len(held) - 1, -1, -1):
            total += self.count_message_tokens(held[index])
            if total > max_tokens:
                return held[: whole_from(held, index + 1)]
        return []

    def _content_tokens(self, content: object, *, nested: bool = False) -> int:
        if isinstance(content, list | tuple):
            return sum(self._block_tokens(block, nested=nested) for block in content)
        return self._block_tokens(content, nested=nested)

    def _block_tokens(self, block: object, *, nested: bool) -> int:
        if not isinstance(block, Mapping):
            return self.count_tokens(block)
        for key in ("text", "refusal"):
            if isinstance(text := block.get(key), str):
                return self.count_tokens(text)
        kind = block.get("type")
        if (flat := _flat_tokens(kind, block)) is not None:
            return flat
        # The content of a tool result is blocks again, among them screenshots. One level is all that any API allows.
        if kind == "tool_result" and not nested:
            return self.count_tokens(block.get("tool_use_id")) + self._content_tokens(block.get("content"), nested=True)
        return self.count_tokens(block)

    def _calls_tokens(self, calls: object) -> int:
        if isinstance(calls, list | tuple):
            return sum(map(self._call_tokens, calls))
        return self._call_tokens(calls)

    def _call_tokens(self, call: object) -> int:
        """Count OpenAI's ``{"function": {"name", "arguments"}}``, and ``{"name", "args"}`` as LangChain writes it."""
        function = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(function, Mapping) or "name" not in function:
            return self.count_tokens(call)
        arguments = function.get("arguments", function.get("args"))
        return self.count_tokens(function["name"]) + self.count_tokens(arguments)


class _RecentCounts(dict[str, int]):
    """The exact counts of texts seen lately, in two generations: a full young one (this dict) becomes the old one.

    What is found in the old one moves back, so what is used stays, and a hit is one dict lookup. There is no lock on
    purpose: a race costs a text counted twice or forgotten early, never a wrong count.
    """

    def __init__(self, source: EncodingSource, model: str) -> None:
        super().__init__()
        self._source = source
        self._model = model
        self._encoding: Encoding | None = None
        self._old: dict[str, int] = {}
        self._chars = 0

    def load(self) -> Encoding | None:
        """Return the encoding, None when it cannot be had."""
        if self._encoding is None:
            self._encoding = self._source.get(_encoding_name(self._model))
        return self._encoding

    def __missing__(self, text: str) -> int:
        tokens = self._old.get(text)
        if tokens is None and self._encoding is not None and len(text) <= 2 * RUN_CHARS:
            tokens = encoded(self._encoding, text)  # what most messages are: short
        if tokens is None:
            return self.measure(text).tokens
        self._remember(text, tokens)
        return tokens

    def measure(self, text: str) -> TokenCount:
        """Count a text and remember the answer if it is exact."""
        count = measure(self._encoding or self.load(), text)
        if not count.is_estimate:
            self._remember(text, count.tokens)
        return count

    def _remember(self, text: str, tokens: int) -> None:
        length = len(text)
        if length > MAX_REMEMBERED_LENGTH:
            return
        if len(self) >= MAX_REMEMBERED_TEXTS // 2 or self._chars + length > MAX_REMEMBERED_CHARS // 2:
            self._old = self.copy()
            self.clear()
            self._chars = 0
        self[text] = tokens
        self._chars += length


def _encoding_name(model: str) -> str:
    # Imported here for the reason given in the encodings package: 50 ms that only a counting program should pay.
    try:
        from tiktoken.model import encoding_name_for_model
    except ImportError:
        return FALLBACK_ENCODING
    try:
        name = encoding_name_for_model(model)
    except KeyError:
        return FALLBACK_ENCODING
    return name if name in SHIPPED else FALLBACK_ENCODING


def _flat_tokens(kind: object, block: Mapping[str, object]) -> int | None:
    """Return what a block of media costs, None for other blocks."""
    family = _BLOCK_KINDS.get(kind) if isinstance(kind, str) else None
    if family == "image":
        image = block.get("image_url")
        detail = image.get("detail") if isinstance(image, Mapping) else block.get("detail")
        return LOW_DETAIL_IMAGE_TOKENS if detail == "low" else IMAGE_TOKENS
    if family == "audio":
        return AUDIO_TOKENS
    if family == "file":
        source = block.get("source")
        is_text = isinstance(source, Mapping) and source.get("type") == "text"
        return None if is_text else FILE_TOKENS
    return None


def _as_text(value: object) -> str:
    if isinstance(value, str):
        # A subclass, perhaps an enum: JSON and tiktoken both take the characters, whatever its __str__ says.
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    try:
        return json.dumps(value, ensure_ascii=False, skipkeys=True, default=repr, separators=(",", ":"))
    except Exception:  # noqa: BLE001  # a foreign __repr__ may raise anything; cycles and depth end here too
        return type(value).__name__
