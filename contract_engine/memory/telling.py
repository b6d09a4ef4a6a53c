"""Telling Redis of changes in the log that it did not follow: its copy of the session is given up."""

from __future__ import annotations

import logging
import math

from contract_engine.memory._effects import Flow, spawn
from contract_engine.memory.errors import MemoryServiceError
from contract_engine.memory.session_cache import REDIS_TROUBLE, SessionCache
from contract_engine.memory.untold import Untold

logger = logging.getLogger(__name__)


class Telling:
    """Gives up copies that are out of date, at once or in the background; this process believes none of them before."""

    def __init__(self, cache: SessionCache, untold: Untold) -> None:
        self._cache = cache
        self._untold = untold

    def spawn(self) -> Flow[None]:
        """Have Redis told in the background, by one flow at a time, of every session it could not be told of before."""
        if self._untold.begin_telling():
            yield from spawn(self._tell, "telling Redis of changes")

    def _tell(self) -> Flow[None]:
        trouble: MemoryServiceError | None = None
        try:
            for session_id, note in self._untold.all():
                if self._untold.expected(session_id):  # nobody else has replaced the copy meanwhile
                    try:
                        yield from self._cache.forget_buffer(session_id)
                        self._untold.settle(session_id, note)
                    except REDIS_TROUBLE as exc:  # of a Cluster another server may be there all the same
                        trouble = exc
        finally:
            self._untold.end_telling()
        if trouble is not None:
            raise trouble

    def distrust(self, session_id: str) -> Flow[None]:
        """Have the next reader rebuild the copy in Redis: the log has changed in another way than by an append."""
        note = self._untold.note(session_id, math.inf)
        try:
            yield from self._cache.forget_buffer(session_id)
            self._untold.settle(session_id, note)
        except REDIS_TROUBLE as exc:
            # Its revision is old: the next append replaces it, and this process does not believe it before.
            logger.info("session %s: Redis not told of a change: %s", session_id, exc)

    def distrust_later(self, session_id: str) -> Flow[None]:
        """Do so in the background: Redis has just failed this caller, who does not wait for it twice."""
        self._untold.note(session_id, math.inf)
        yield from self.spawn()
