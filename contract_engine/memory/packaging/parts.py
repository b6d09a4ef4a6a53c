"""The content of messages in one form: text, media and thoughts, whichever provider's blocks they were stored as."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_BLOCK_CHARS = 2000
"""How much is shown of a block that no provider knows."""

_DATA_URL = re.compile(r"data:([\w.+/-]+)?(?:;[\w=.+-]+)*?;base64,(.*)", re.DOTALL)
_IMAGES = frozenset(("image", "image_url", "input_image"))
_AUDIO = frozenset(("audio", "input_audio"))
_FILES = frozenset(("file", "input_file", "document"))
_THOUGHTS = frozenset(("thinking", "redacted_thinking"))


class Text(NamedTuple):
    """Words; never empty and never blank."""

    text: str


class Media(NamedTuple):
    """An image, audio or file: ``data`` in base64 or a ``url``, and neither where it lies with another provider."""

    kind: str
    mime: str = ""
    data: str = ""
    url: str = ""
    name: str = ""
    detail: str = ""

    @property
    def marked(self) -> Text:
        """What stands in its place where a provider does not take it."""
        return Text(f"[{self.kind} left out: {self.url or self.name or self.mime or 'no address'}]")

    @property
    def is_on_the_web(self) -> bool:
        """Whether a provider can fetch it."""
        return self.url.startswith(("https://", "http://"))

    @property
    def data_url(self) -> str:
        """Its data as a URL."""
        return f"data:{self.mime};base64,{self.data}"


class Thought(NamedTuple):
    """A thinking block of Anthropic, which takes it back as it was and in an assistant's message only."""

    block: dict[str, object]


Part = Text | Media | Thought


def parts_of(content: object) -> list[Part]:
    """Return what a content holds. Calls and results among its blocks are not content, and are left out."""
    if isinstance(content, str):
        return [Text(content)] if content.strip() else []
    if content is None:
        return []
    found: list[Part] = []
    for block in content if isinstance(content, list | tuple) else (content,):
        if isinstance(block, str):
            found += [Text(block)] if block.strip() else []
        elif isinstance(block, Mapping):
            found += _of_block(block)
        elif block is not None:
            found.append(Text(json_text(block)))
    return found


def text_of(parts: Sequence[Part]) -> str:
    """Return the words of parts, with a mark in the place of each medium; thoughts are not for others."""
    shown = (one.marked if isinstance(one, Media) else one for one in parts)
    return "\n".join(one.text for one in shown if isinstance(one, Text))


def json_text(value: object) -> str:
    """Return a value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _of_block(block: Mapping[str, object]) -> list[Part]:
    kind = block.get("type")
    if kind in ("tool_use", "tool_result", "reasoning"):
        return []
    for key in ("text", "refusal"):
        if isinstance(text := block.get(key), str):
            return [Text(text)] if text.strip() else []
    if not isinstance(kind, str):
        return [_unknown(block)]
    if kind in _THOUGHTS:
        fields = ("thinking", "signature") if kind == "thinking" else ("data",)
        if all(isinstance(block.get(field), str) for field in fields):
            return [Thought({"type": kind, **{field: block[field] for field in fields}})]
        return []
    if kind in _IMAGES:
        return [_image(block)]
    if kind in _AUDIO:
        return [_audio(block)]
    if kind in _FILES:
        return _document(block)
    return [_unknown(block)]


def _unknown(block: Mapping[str, object]) -> Text:
    kind = block.get("type")
    return Text(f"[{kind if isinstance(kind, str) else 'unknown'} block] {json_text(block)[:MAX_BLOCK_CHARS]}")


def _image(block: Mapping[str, object]) -> Media:
    given = block.get("image_url")
    if given is None:
        return _sourced("image", block)
    if isinstance(given, Mapping):
        return _at("image", given.get("url"), detail=_text(given.get("detail")))
    return _at("image", given, detail=_text(block.get("detail")))


def _audio(block: Mapping[str, object]) -> Media:
    given = block.get("input_audio")
    if not isinstance(given, Mapping):
        return _sourced("audio", block)
    form = _text(given.get("format")) or "wav"
    return Media("audio", f"audio/{form}", _text(given.get("data")))


def _document(block: Mapping[str, object]) -> list[Part]:
    """Return a file; a document whose source is text is that text."""
    source = block.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        return parts_of(source.get("data"))
    if isinstance(source, Mapping) and source.get("type") == "content":
        return parts_of(source.get("content"))
    given = block.get("file")
    found = given if isinstance(given, Mapping) else block
    if (data := found.get("file_data")) is not None:
        return [_at("file", data)._replace(name=_text(found.get("filename")))]
    name = _text(found.get("filename")) or _text(found.get("title")) or _text(found.get("file_id"))
    return [_sourced("file", found)._replace(name=name)]


def _sourced(kind: str, block: Mapping[str, object]) -> Media:
    """Return what Anthropic keeps under ``source``, and LangChain in the block itself."""
    given = block.get("source")
    source = given if isinstance(given, Mapping) else block
    mime = _text(source.get("media_type")) or _text(source.get("mime_type"))
    data = _text(source.get("data")) or _text(source.get("base64"))
    if data:
        return Media(kind, mime or "application/octet-stream", data)
    return _at(kind, source.get("url"))._replace(mime=mime, name=_text(source.get("file_id")))


def _at(kind: str, address: object, *, detail: str = "") -> Media:
    url = _text(address)
    found = _DATA_URL.fullmatch(url) if url.startswith("data:") else None
    if found is not None:
        return Media(kind, found[1] or "application/octet-stream", found[2], detail=detail)
    # An address that is data all the same, in a form nobody takes, is nothing to show either.
    return Media(kind, url="" if url.startswith("data:") else url, detail=detail)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
