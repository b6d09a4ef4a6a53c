"""The package: everything a context holds, in the order in which a model should read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.packaging import anthropic_messages, gemini_contents, langchain_json, openai_chat
from contract_engine.memory.packaging.budget import Content, Count, is_surely_within, within
from contract_engine.memory.packaging.notes import block, items_text, recalled_turns
from contract_engine.memory.packaging.parts import Text
from contract_engine.memory.packaging.turns import USER, Turn, turns_of
from contract_engine.memory.token_counter import TokenCounter

PROVIDERS = {
    "openai": openai_chat.package,
    "anthropic": anthropic_messages.package,
    "gemini": gemini_contents.package,
    "langchain-json": langchain_json.package,
}


def to_messages(
    context: Mapping[str, Any],
    provider: str = "openai",
    *,
    system: str | None = None,
    max_tokens: int | None = None,
    count_tokens: Count | None = None,
    cache_control: bool = False,
) -> dict[str, Any]:
    """Return the context of ``get_context`` as keyword arguments of a provider's call; nothing is asked of any server.

    ``openai``: ``{"messages"}`` for chat completions, also of compatible servers. ``anthropic``: ``{"system",
    "messages"}``. ``gemini``: ``{"system_instruction", "contents"}``, the body of generateContent. ``langchain-json``:
    ``{"messages"}`` for LangChain's ``messages_from_dict``. The keys for ``system`` are there only if it is given.

    ``system`` alone gets the role system. Summary, ``pinned_messages`` and ``recalled`` are shown as labelled notes,
    and stored messages with the role system (or one that is not known) as messages that name it, all of them as the
    user's: whoever writes to a session must not instruct the model by it. Every call has its result behind it; one
    without, the newest too, gets one that says so. Blocks a provider does not take become a text that names them.

    Order: summary, pinned, messages, with what was recalled before the newest user's message. It changes with every
    question, so all that stands before it stays as it was from one question to the next, for the provider's cache of
    prefixes, until the summary or what is pinned changes: with a fold, or when a model has refined it.

    ``max_tokens``: the most the package may cost, in tokens of ``count_tokens`` (that of :class:`TokenCounter` by
    default). What is too much goes in this order: recalled, oldest first; the oldest messages, a call with all its
    results at once, and up to a quarter more of what would fit, so that the prefix stays for some turns. Summary,
    pinned and the newest turn stay; :class:`PackageTooLargeError` where they do not fit.
    ``cache_control`` (Anthropic): sets cache markers behind the notes and behind the last message before the newest
    user's.

    Raises :class:`InvalidInputError` for a provider that is not known or a context that is none.
    """
    if provider not in tuple(PROVIDERS):
        raise InvalidInputError("provider", f"is none of {', '.join(PROVIDERS)}")
    _check_options(system, max_tokens)
    if cache_control and provider != "anthropic":
        raise InvalidInputError("cache_control", "only Anthropic has cache markers")
    held = _checked(context)
    system = system if system is not None and system.strip() else None
    content = Content(_notes(held), turns_of(held["buffer_messages"]), _items(held, "recalled"))
    if max_tokens is not None and (count_tokens or not is_surely_within(content, max_tokens, system=system)):
        content = within(content, max_tokens, count=count_tokens or _counter(), system=system)
    notes, turns, recalled = content
    place = _place(turns)
    shown = [*notes, *turns[:place], *recalled_turns(recalled), *turns[place:]]
    if cache_control:
        stable = len(notes) + place
        return anthropic_messages.package(shown, system, stable=stable, has_notes=bool(notes))
    return PROVIDERS[provider](shown, system)


def _check_options(system: object, max_tokens: object) -> None:
    if system is not None and not isinstance(system, str):
        raise InvalidInputError("system", f"expected a text, got {type(system).__name__}")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise InvalidInputError("max_tokens", "expected a number above 0")


def _checked(context: object) -> Mapping[str, Any]:
    held = context.get("buffer_messages") if isinstance(context, Mapping) else None
    if not isinstance(context, Mapping) or not isinstance(held, list | tuple):
        raise InvalidInputError("context", "expected what get_context answers, with buffer_messages")
    for number, message in enumerate(held):
        if not isinstance(message, dict):
            raise InvalidInputError("context", f"buffer_messages[{number}] is no message")
    return context


def _items(context: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return what was recalled or pinned."""
    held = context.get(name) or ()
    if not isinstance(held, list | tuple):
        raise InvalidInputError("context", f"{name} is no list")
    for number, item in enumerate(held):
        if not isinstance(item, Mapping) or not isinstance(item.get("message"), Mapping):
            raise InvalidInputError("context", f"{name}[{number}] holds no message")
    return list(held)


def _notes(context: Mapping[str, Any]) -> list[Turn]:
    """Return the turn that opens the package, if there is anything to note."""
    summary = context.get("current_summary")
    pinned = _items(context, "pinned_messages")
    blocks = [block("summary", summary)] if isinstance(summary, str) and summary.strip() else []
    blocks += [block("pinned", items_text(pinned))] if pinned else []
    return [Turn(USER, [Text(one) for one in blocks], [])] if blocks else []


def _place(turns: Sequence[Turn]) -> int:
    """Return before which turn the recalled notes stand: the newest of the user, behind all where there is none."""
    return next((at for at in range(len(turns) - 1, -1, -1) if turns[at].role == USER), len(turns))


@cache
def _counter() -> Count:
    return TokenCounter().count_tokens
