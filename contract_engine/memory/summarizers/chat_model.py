"""A chat model, as a summarizer sees it: anything that answers messages with a text."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from contract_engine.memory.daemon import in_daemon
from contract_engine.memory.errors import ConfigurationError, ModelUnavailableError
from contract_engine.memory.summarizers.sentences import one_line

MAX_NAME_CHARS = 200


class ModelAnswer(NamedTuple):
    """What a model answered. ``tokens_in`` and ``tokens_out`` are what it charged, None where it does not say.

    ``is_cut``: it was stopped at ``max_tokens``, or by a filter, before it had said everything.
    """

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    is_cut: bool = False


ChatMessages = Sequence[Mapping[str, str]]
Completion = Callable[..., Awaitable[ModelAnswer]]


def completion(model: object) -> Completion:
    """Return the coroutine function by which ``model`` is asked: ``await complete(messages, max_tokens=...)``.

    ``model`` is an object with a method ``complete(messages, *, max_tokens)``, or a callable with the same arguments;
    either may be a coroutine function. One that is not runs in a daemon thread, so that it holds up neither an event
    loop nor the end of the program; a coroutine function must not block. The answer is a text or a
    :class:`ModelAnswer`.
    """
    method = getattr(model, "complete", None)
    function = method if callable(method) else model
    if not callable(function) or isinstance(function, type):
        raise ConfigurationError("model", "expected a callable, or an object with complete(messages, *, max_tokens)")
    _check_signature(function)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # of an object whose class defines it
    )

    async def complete(messages: ChatMessages, *, max_tokens: int) -> ModelAnswer:
        if is_async:
            answer: Any = function(messages, max_tokens=max_tokens)
        else:
            answer = await in_daemon(lambda: function(messages, max_tokens=max_tokens), "contract-memory-model")
        if inspect.isawaitable(answer):
            answer = await answer
        return _checked(answer)

    return complete


def model_name(model: object) -> str:
    """Return what a model calls itself: its ``model`` or ``name``, else the name of the function or class."""
    for attribute in ("model", "name", "__name__"):
        named = getattr(model, attribute, None)
        if isinstance(named, str) and one_line(named):
            return one_line(named)[:MAX_NAME_CHARS]
    return type(model).__name__


def _check_signature(function: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none; then the first call will tell
        return
    try:
        signature.bind([], max_tokens=1)
    except TypeError as exc:
        raise ConfigurationError("model", f"cannot be called with (messages, max_tokens=...): {exc}") from None


def _checked(answer: object) -> ModelAnswer:
    if isinstance(answer, str):
        return ModelAnswer(answer)
    if isinstance(answer, ModelAnswer) and isinstance(answer.text, str):
        return answer
    kind = type(answer).__name__
    raise ModelUnavailableError("invalid_answer", f"expected a str or a ModelAnswer, got {kind}")
