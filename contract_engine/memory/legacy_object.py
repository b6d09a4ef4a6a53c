"""Sessions of a legacy store that is any object of the program: read whole, as an import and a comparison need them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import cached_property
from typing import Any

from contract_engine.memory._effects import call_legacy
from contract_engine.memory._runtime import Runtime, breaker_for
from contract_engine.memory.closing import Closing
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import ConfigurationError, InvalidInputError
from contract_engine.memory.legacy import Legacy
from contract_engine.memory.legacy_messages import legacy_message
from contract_engine.memory.legacy_source import Element, History, now_in_ms, read_element


class LegacyObject(Closing):
    """Reads a legacy object that can list its sessions; raises :class:`LegacyUnavailableError` where that raises.

    Besides what the adapter needs (see :class:`contract_engine.memory.legacy.Legacy`) it has ``session_ids()``, which
    answers the ids of all its sessions, as a list or by and by. ``get_chat_history`` is called without a limit, so a
    history is held in memory while its session is at work. A message may hold the id it has in the log in the field
    ``memory_message_id``; without that, content tells.
    """

    def __init__(self, store: Any) -> None:
        self._legacy = Legacy(store)
        if not callable(getattr(store, "session_ids", None)):
            problem = f"{type(store).__name__} has no method session_ids(), which has to answer the ids of its sessions"
            raise ConfigurationError("legacy", f"{problem}; add one")
        config = MemoryConfig()
        self._runtime = Runtime(config, breaker=breaker_for(config, is_shared=False))

    def session_names(self) -> list[str]:
        """Return its session ids, each once, in the order in which it lists them; it is asked for them once."""
        return list(self._names)

    def history(self, session_id: str) -> History | None:
        """Return a session as it is now; None where there is no message, and it is not listed."""
        found = self._runtime.run(self._legacy.history(session_id))
        if not found and session_id not in self._names:
            return None
        now_ms = now_in_ms()
        elements = [
            read_element(place, value, parse=legacy_message, created_ms=now_ms, latest_ms=now_ms)
            for place, value in enumerate(found, start=1)
        ]

        def read(after: int) -> Iterator[Element]:
            yield from elements[after:]

        has_ids = any(item.message_id is not None for item in elements)
        return History(session_id, len(elements), has_ids, now_ms, now_ms, read)

    def close(self) -> None:
        """Close nothing of the store: whoever made it does that."""
        self._runtime.close()

    @cached_property
    def _names(self) -> dict[str, None]:
        store = self._legacy.store
        found = self._runtime.run(
            call_legacy("session_ids", lambda: _listed(store.session_ids()), self._legacy.breaker)
        )
        if not all(isinstance(name, str) for name in found):
            raise InvalidInputError("legacy", f"session_ids() of {type(store).__name__} answers other than texts")
        return dict.fromkeys(found)


def _listed(found: Any) -> Any:
    """Return a list of what a store answers by and by, or something to await that does."""
    if hasattr(found, "__aiter__"):
        return _iterated(found)
    return _awaited(found) if inspect.isawaitable(found) else list(found)


async def _awaited(found: Awaitable[Any]) -> Any:
    return list(await found)


async def _iterated(found: AsyncIterator[Any]) -> Any:
    return [name async for name in found]
