"""Requests by the ``openai`` client, which is imported here and nowhere else: only when such a model is made."""

from __future__ import annotations

import asyncio
import email.utils
import math
import ssl
import time
from collections.abc import Mapping
from typing import Any

import certifi
import openai

from contract_engine.memory.errors import ConfigurationError, ModelUnavailableError
from contract_engine.memory.summarizers.openai_answer import content_code

MAX_RETRY_AFTER_SECONDS = 3600.0

BAD_REQUEST, TOO_LARGE = 400, 413


class OpenAITransport:
    """Sends requests, each on a client and a connection of its own: nothing here belongs to an event loop."""

    def __init__(self, *, base_url: str | None, api_key: str | None, timeout_seconds: float, max_bytes: int) -> None:
        self._timeout = timeout_seconds
        self._max_bytes = max_bytes
        self._settings: dict[str, Any] = {"base_url": base_url, "api_key": api_key}
        # Made once: reading the certificates takes a tenth of a second, far longer than all the rest of a client.
        self._tls = ssl.create_default_context()
        self._tls.load_verify_locations(certifi.where())
        try:
            self._client(_Body(max_bytes))
        except openai.OpenAIError as exc:
            raise ConfigurationError("api_key", "missing; give it, or set OPENAI_API_KEY") from exc

    async def post(self, parameters: Mapping[str, Any]) -> bytes:
        """Return the body of the answer to one chat completion; raises ModelUnavailableError."""
        body = _Body(self._max_bytes)
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client(body) as client,
                client.chat.completions.with_streaming_response.create(**parameters),
            ):
                pass  # it was read on the way, see _Body
        except (openai.APITimeoutError, TimeoutError):
            raise ModelUnavailableError("timeout", f"no answer within {self._timeout:g} s") from None
        except (openai.OpenAIError, OSError, ValueError, RuntimeError) as exc:  # the last while the program is ending
            cause = exc.__cause__ or exc
            if isinstance(cause, ModelUnavailableError):
                raise cause from None
            raise ModelUnavailableError("connection", type(cause).__name__) from None
        if body.is_too_large:
            raise ModelUnavailableError("too_large", f"an answer of more than {self._max_bytes} bytes")
        return bytes(body.data)

    def _client(self, body: _Body) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(
            verify=self._tls,
            event_hooks={"response": [body.read]},
            follow_redirects=False,  # the messages go nowhere but to the server that was named
        )
        return openai.AsyncOpenAI(
            **self._settings,
            http_client=http,
            max_retries=0,
            timeout=self._timeout,
            default_headers={"Accept-Encoding": "identity"},
        )


class _Body:
    """Reads a body as it comes, up to a limit, and raises what a refusal means.

    Of all refusals the body of a 400 alone is read, and only for its code: its text may repeat what was sent. It is a
    hook of the HTTP client, since that is the one place where whatever goes wrong is translated by ``openai``.
    """

    def __init__(self, max_bytes: int) -> None:
        self.data = bytearray()
        self.is_too_large = False
        self._max_bytes = max_bytes

    async def read(self, response: Any) -> None:
        if response.is_success or response.status_code == BAD_REQUEST:
            async for piece in response.aiter_bytes():
                self.data += piece
                if len(self.data) > self._max_bytes:
                    self.is_too_large = True
                    break
        await response.aclose()
        if not response.is_success:
            raise _refused(response.status_code, response.headers, bytes(self.data))


def _refused(status: int, headers: Mapping[str, str], body: bytes) -> ModelUnavailableError:
    if status == 429:
        return ModelUnavailableError("rate_limited", "status 429", retry_after=_retry_after(headers))
    if status >= 500 or status in (408, 409, 425):
        return ModelUnavailableError("server_error", f"status {status}", retry_after=_retry_after(headers))
    if problem := "too large" if status == TOO_LARGE else content_code(body):
        return ModelUnavailableError("content", f"status {status}, {problem}")
    return ModelUnavailableError("configuration", f"status {status}; check base_url, api_key, model and window_tokens")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait: given in seconds, in milliseconds, or as a date."""
    try:
        if text := headers.get("retry-after-ms"):
            seconds = float(text) / 1000
        elif not (text := headers.get("retry-after")):
            return None
        elif text.replace(".", "", 1).isdigit():
            seconds = float(text)
        else:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None
