"""How often a manager waits for a server that does not answer: a count, which no busy machine can change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from crash_attempts import bare
from crash_matrix import name_of
from memory_contract import SYNC, Backend

from contract_engine.memory import (
    CircuitOpenError,
    ConfigurationError,
    DatabaseCircuitOpenError,
    StoreUnavailableError,
)

EXPECTED = (StoreUnavailableError, ConfigurationError)
"""What a call raises because a server is away, or because there is no log to do it with."""


class VainWaits:
    """Stands between the flows of a manager and its runtime, and notes each effect whose server has not answered.

    ``own``: those of the calls made through :meth:`call`; ``background``: those of what they have spawned. A call that
    an open breaker rejects has waited for nobody.
    """

    def __init__(self, backend: Backend, manager: Any) -> None:
        self.own: list[str] = []
        self.background: list[str] = []
        self._manager = bare(manager)
        self._loop = backend.loop
        self._caller: Callable[[], object] = threading.get_ident if backend.colour == SYNC else asyncio.current_task
        self._home: object = None
        runtime = self._manager._runtime
        self._perform = runtime._perform
        runtime._perform = self._noted if backend.colour == SYNC else self._noted_in_task

    def call(self, call: Callable[[Any], Any]) -> tuple[int, int]:
        """Call the manager, and wait for what that has spawned; answers how often either has waited in vain.

        Errors that are ``EXPECTED`` end here.
        """
        own, background = len(self.own), len(self.background)
        if self._loop is None:
            self._home = self._caller()
            with suppress(*EXPECTED):
                call(self._manager)
            self._manager.wait_for_folds()
        else:
            self._loop.run_until_complete(self._call(call))
        return len(self.own) - own, len(self.background) - background

    async def _call(self, call: Callable[[Any], Any]) -> None:
        self._home = self._caller()
        with suppress(*EXPECTED):
            await call(self._manager)
        await self._manager.wait_for_folds()

    def _noted(self, effect: Any) -> Any:
        try:
            return self._perform(effect)
        except StoreUnavailableError as exc:
            self._note(effect, exc)
            raise

    async def _noted_in_task(self, effect: Any) -> Any:
        try:
            return await self._perform(effect)
        except StoreUnavailableError as exc:
            self._note(effect, exc)
            raise

    def _note(self, effect: Any, exc: StoreUnavailableError) -> None:
        if not isinstance(exc, CircuitOpenError | DatabaseCircuitOpenError):
            (self.own if self._caller() == self._home else self.background).append(name_of(effect))
