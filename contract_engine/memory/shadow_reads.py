"""Comparing a sample of what the legacy store answered with what the new one would have."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from contract_engine.memory._effects import Flow
from contract_engine.memory.errors import MemoryServiceError
from contract_engine.memory.hooks import DualWriteMismatch, observers
from contract_engine.memory.legacy import is_same
from contract_engine.memory.models import Message
from contract_engine.memory.outbox import LogEnd, Outbox
from contract_engine.memory.parity import Kind

logger = logging.getLogger(__name__)

DIFFERS = "differs"
"""What hooks are told of two reads of which neither lacks messages at a glance."""


class ShadowReads:
    """The share ``rate`` of reads, drawn before the read: what was in the log by then is what it has to show."""

    def __init__(self, outbox: Outbox, *, rate: float, rng: random.Random) -> None:
        self._outbox = outbox
        self._rate = rate
        self._rng = rng
        self.compared = self.mismatches = 0

    def is_drawn(self) -> bool:
        """Whether the read that is about to begin is one of the sample."""
        return self._rng.random() < self._rate

    def compare(self, session_id: str, old: Sequence[Message], end: LogEnd | None, limit: int | None) -> Flow[None]:
        """Compare what was read with the log, whose end was noted before the read.

        What has come since is no difference, whether the read shows it or not. A session that was changed meanwhile in
        another way than by appending is not compared, and neither is one while the database is away.
        """
        last_seq = 0 if end is None else end.last_seq
        first = 0 if limit is None else max(0, last_seq - limit)
        try:
            now, logged = yield from self._outbox.logged_behind(session_id, first)
        except MemoryServiceError as exc:
            logger.info("session %s: not compared: %s", session_id, exc)
            return
        if (None if now is None else now[:2]) != (None if end is None else end[:2]):
            logger.info("session %s: not compared: it was changed meanwhile", session_id)
            return
        self.compared += 1
        new = [one.message for one in logged]
        # The read ended with the message that was the last then, or with any that has come since.
        for stop in range(last_seq - first, len(new) + 1):
            shown = new[0 if limit is None else max(0, stop - limit) : stop]
            if len(shown) == len(old) and all(map(is_same, old, shown)):
                return
        self._tell(session_id, len(old), limit, last_seq, first + len(new))

    def _tell(self, session_id: str, read: int, limit: int | None, least: int, most: int) -> None:
        """Count a mismatch; there were ``least`` messages in the log before the read and ``most`` after it."""
        self.mismatches += 1
        logger.warning("session %s: the stores differ: %d and %d messages read", session_id, read, most)
        if observers.is_active:
            least, most = (least, most) if limit is None else (min(limit, least), min(limit, most))
            kind = Kind.MISSING_IN_NEW if read > most else Kind.MISSING_IN_LEGACY if read < least else DIFFERS
            observers.tell(DualWriteMismatch(kind))
