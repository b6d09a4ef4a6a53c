"""The route to a primary that Sentinels watch: they are asked who it is, and asked again when it is so no more."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from contract_engine.memory._effects import Command, RedisCall
from contract_engine.memory._runtime.redis_routing import LOOK_SECONDS, Routing, Talk, Unserved
from contract_engine.memory._runtime.redis_steps import Address, Attempt, Outcome, Retire, Steps
from contract_engine.memory._runtime.redis_topology import Deployment
from contract_engine.memory.circuit_breaker import CircuitBreaker, CircuitState
from contract_engine.memory.errors import StoreMisconfiguredError

logger = logging.getLogger(__name__)

ASK_SECONDS = 0.1
"""What the Sentinels have to answer in while the breaker is open, once a second."""


class SentinelRouting(Routing):
    """One primary at a time. A failure of its counts as usual: there is nobody else to ask."""

    def __init__(self, target: Deployment, *, timeout: float, breaker: CircuitBreaker) -> None:
        super().__init__(target, timeout=timeout, breaker=breaker)
        self._service = target.service
        self._question = Command(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service))
        self._primary: Address | None = None
        self._previous: Address | None = None
        self._asked_at = -math.inf

    def _conversation(self, effect: RedisCall, deadline: float) -> Steps[list[Any]]:
        talk = Talk(effect)
        address = self._primary or (yield from self._discover(deadline))
        is_fresh = False
        while True:
            outcome: Outcome = yield Attempt(address, talk.commands, deadline, is_fresh=is_fresh)
            is_fresh = False
            error = outcome.error or talk.take(outcome.replies, outcome.run)
            if error is None:
                if talk.is_done:
                    return talk.replies
                continue
            if outcome.error is not None:
                if not talk.survives(outcome) or time.monotonic() >= deadline:
                    self._primary = None
                    raise self._unserved(error)
                if outcome.was_idle:  # it may have been restarted meanwhile
                    is_fresh = True
                    continue
            self._primary = None
            successor = yield from self._discover(deadline)
            if successor == address or time.monotonic() >= deadline:
                raise self._unserved(error)
            address = successor

    def _discover(self, deadline: float) -> Steps[Address]:
        """Ask the Sentinels for the primary."""
        answer = yield from self._ask(self._seeds, (self._question,), deadline)
        if answer.error is not None:
            logger.warning("no Sentinel tells the primary of %s: %s", self._service, type(answer.error).__name__)
            raise self._unserved(answer.error)
        (reply,) = answer.replies
        if reply is None:
            hint = "check the service name in the URL"
            error = StoreMisconfiguredError("redis", f"no Sentinel watches a primary {self._service!r}", hint=hint)
            raise Unserved(error, counts=False)
        found = Address(reply[0].decode(), int(reply[1]))
        self._primary = found
        previous, self._previous = self._previous, found
        if previous is not None and previous != found:
            logger.info("the primary of %s is now %s, it was %s", self._service, found, previous)
            yield Retire(previous)  # its connections would lie there for good
        return found

    def _is_replaced(self) -> Steps[bool]:
        """Ask the Sentinels once in a while: a failover takes seconds, the breaker waits for up to a minute.

        They are given a moment only, since a call is waiting that would be rejected at once otherwise.
        """
        now = time.monotonic()
        if self._breaker.get_state() is not CircuitState.OPEN or now - self._asked_at < LOOK_SECONDS:
            return False  # an operator's word holds whoever is the primary
        self._asked_at = now
        judged = self._previous
        try:
            return (yield from self._discover(now + min(self._timeout, ASK_SECONDS))) != judged
        except Unserved:
            return False

    def _counts(self, cause: Exception) -> bool:
        return True
