"""A model behind any server with the interface of OpenAI's chat completions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from contract_engine.memory.errors import ConfigurationError
from contract_engine.memory.summarizers.chat_model import ChatMessages, ModelAnswer
from contract_engine.memory.summarizers.openai_answer import parsed

_MODEL = (re.compile(r"\S.*"), "the name of a model")
_ADDRESS = (re.compile(r"https?://[!-~]+"), "an address that begins with http:// or https://")
_KEY = (re.compile(r"[!-~]+"), "a text of ASCII characters without blanks")

LIMIT_NAMES = ("max_tokens", "max_completion_tokens")


class OpenAIChat:
    """Asks ``model`` at ``base_url`` (of OpenAI itself where it is left out), with the client of the extra ``llm``.

    Without ``api_key`` the variable ``OPENAI_API_KEY`` is used for OpenAI's own address only; a server of your own is
    called without a key then. ``temperature=None`` sends none, as reasoning models want it. ``timeout_seconds`` is for
    a whole request, and an answer above ``max_answer_bytes`` is cut off (a stream takes about 300 bytes a token).
    ``stream=False`` asks for the answer in one piece. ``limit_name``: what the server calls the limit of tokens,
    ``max_completion_tokens`` for OpenAI and ``max_tokens`` for the others. ``extra`` are further fields of the request.

    Nothing is opened before the first request, and nothing is kept open after it, so one instance serves any number of
    threads and event loops. The client's own retries are off. Raises ConfigurationError, also where the package is
    missing.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        temperature: float | None = 0.0,
        timeout_seconds: float = 30.0,
        max_answer_bytes: int = 4 * 1024 * 1024,
        stream: bool = True,
        limit_name: str | None = None,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        _check_text("model", model, _MODEL)
        if base_url is not None:
            _check_text("base_url", base_url, _ADDRESS)
        if api_key is not None:
            _check_text("api_key", api_key, _KEY)
        if temperature is not None:
            _check_number("temperature", temperature, 0, 2)
        _check_number("timeout_seconds", timeout_seconds, 0.001, 10**6)
        _check_number("max_answer_bytes", max_answer_bytes, 1024, 2**31)
        if limit_name is not None and limit_name not in LIMIT_NAMES:
            raise ConfigurationError("limit_name", f"expected {' or '.join(LIMIT_NAMES)}, got {limit_name!r}")
        self.model = model
        self._limit_name = limit_name or LIMIT_NAMES[base_url is None]
        self._parameters: dict[str, Any] = {"model": model, "extra_body": dict(extra)}
        if temperature is not None:
            self._parameters["temperature"] = float(temperature)
        if stream:
            self._parameters |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            # Here, because openai takes seconds to import and is an extra.
            from contract_engine.memory.summarizers.openai_transport import OpenAITransport
        except ImportError as exc:
            raise ConfigurationError("openai", 'the package is missing: pip install "contract-engine[llm]"') from exc
        self._transport = OpenAITransport(
            base_url=base_url,
            api_key=api_key if api_key is not None or base_url is None else "none",
            timeout_seconds=timeout_seconds,
            max_bytes=max_answer_bytes,
        )

    async def complete(self, messages: ChatMessages, *, max_tokens: int) -> ModelAnswer:
        """Return the answer to ``messages``; raises ModelUnavailableError, whose text holds nothing of them."""
        limit = {self._limit_name: max_tokens}
        return parsed(await self._transport.post({**self._parameters, **limit, "messages": list(messages)}))


def _check_text(field: str, value: object, expected: tuple[re.Pattern[str], str]) -> None:
    """Refuse a text of another form; it is not shown, for it may be a key."""
    pattern, words = expected
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ConfigurationError(field, f"expected {words}")


def _check_number(field: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigurationError(field, f"expected a number from {least:g} to {most:g}, got {value!r}")
