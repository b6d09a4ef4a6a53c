"""The route into a Cluster: by the slot of a session's keys, following redirections and failovers.

Each node has a breaker of its own, so that one dead primary costs its own sessions and nobody else's. The breaker in
front of them counts only what concerns the Cluster as a whole: that no node answers, or that it is down as one.
"""

from __future__ import annotations

import math
import time
from typing import Any

from redis import exceptions as redis_exc

from contract_engine.memory._effects import Command, RedisCall
from contract_engine.memory._runtime.redis_routing import LOOK_SECONDS, Routing, Talk, failure_of, scan_step
from contract_engine.memory._runtime.redis_steps import Address, Attempt, Outcome, Retire, Steps, Wait
from contract_engine.memory._runtime.redis_topology import Deployment, SlotMap, slot_of
from contract_engine.memory.circuit_breaker import CircuitBreaker, CircuitState
from contract_engine.memory.errors import MemoryServiceError, RedisUnavailableError

WAIT_SECONDS = 0.01
"""Between two attempts at a slot on its way from one node to another, some of whose keys are there already."""

QUICK_HOPS = 4
"""Redirections followed at once; the nodes are of two minds then, and further ones are followed after a wait."""

_SLOTS = Command(("CLUSTER", "SLOTS"))
_NOWHERE = Address("", 0)


class ClusterRouting(Routing):
    """Every call goes to the primary that serves the slot of its keys."""

    def __init__(self, target: Deployment, *, timeout: float, breaker: CircuitBreaker) -> None:
        super().__init__(target, timeout=timeout, breaker=breaker)
        self._map: SlotMap | None = None
        self._is_doubtful = False
        self._looked_at = -math.inf
        self._is_heard = True
        self._breakers: dict[Address, CircuitBreaker] = {}
        self._overrides = breaker.overrides

    def call(self, effect: RedisCall) -> Steps[list[Any]]:
        """Answer the replies of a call; one about several sessions is a call to each of their slots, in turn."""
        if not effect.is_spread:
            return (yield from super().call(effect))
        by_slot: dict[int | None, list[int]] = {}
        for index, command in enumerate(effect.commands):
            by_slot.setdefault(slot_of((command,)), []).append(index)
        replies: list[Any] = [None] * len(effect.commands)
        for indexes in by_slot.values():
            answers = yield from super().call(_repeatable(tuple(effect.commands[index] for index in indexes)))
            for index, answer in zip(indexes, answers, strict=True):
                replies[index] = answer
        return replies

    def scan(self, pattern: str) -> Steps[list[bytes]]:
        """Answer the keys that match a glob, from every primary; raises where one is away."""
        found: list[bytes] = []
        for address in (yield from self._guarded(self._mapped(time.monotonic() + self._timeout))).primaries:
            cursor = 0
            while True:
                (reply,) = yield from self._guarded(self._at(address, scan_step(cursor, pattern)))
                cursor = int(reply[0])
                found += reply[1]
                if cursor == 0:
                    break
        return found

    def _conversation(self, effect: RedisCall, deadline: float) -> Steps[list[Any]]:
        slots = yield from self._mapped(deadline)
        slot = slot_of(effect.commands)
        if slot is None:
            return (yield from self._anywhere(effect, slots, deadline))
        talk = Talk(effect)
        owner = slots.owner(slot)
        address, is_asking, is_fresh = owner or _NOWHERE, False, False
        hops = 0
        while True:
            outcome: Outcome | None = None
            cause: redis_exc.RedisError | MemoryServiceError | None
            try:
                outcome = yield from self._attempt(Attempt(address, talk.commands, deadline, is_asking, is_fresh))
                cause = outcome.error or talk.take(outcome.replies, outcome.run)
            except RedisUnavailableError as exc:
                cause = exc
            if cause is None:
                if talk.is_done:
                    return talk.replies
                address, is_asking, is_fresh = self._owner(slot), False, False
                continue
            if outcome is not None and outcome.error is not None and not talk.survives(outcome):
                self._is_doubtful = True
                raise self._unserved(cause)
            if time.monotonic() >= deadline:
                raise self._unserved(cause)
            hops += 1
            if hops > QUICK_HOPS:
                yield Wait(WAIT_SECONDS)
            if outcome is not None and outcome.error is not None and outcome.was_idle:
                # The node may have been restarted meanwhile; the call is said again from its beginning.
                address, is_asking, is_fresh = self._owner(slot), False, True
            else:
                address, is_asking = yield from self._direction(slot, address, cause, deadline)
                is_fresh = False

    def _attempt(self, step: Attempt) -> Steps[Outcome]:
        """Make an attempt if the breaker of its node lets it."""
        address = step.address
        if address is _NOWHERE:
            raise RedisUnavailableError("nobody serves the slot of this session")
        breaker = self._breaker_of(address)
        permit = breaker.acquire()
        outcome: Outcome | None = None
        try:
            outcome = yield step
        finally:
            if outcome is None:
                breaker.cancel(permit)
        error = outcome.error or next((reply for reply in outcome.replies if _is_outage(reply)), None)
        if error is None:
            breaker.success(permit)
            self._is_heard = True
            if self._silent:
                self._silent.discard(address)
        elif not _is_outage(error) or (outcome.was_idle and isinstance(error, redis_exc.ConnectionError)):
            breaker.cancel(permit)
        else:
            breaker.failure(permit, error)
            self._silent.add(address)
        return outcome

    def _direction(
        self, slot: int, address: Address, cause: redis_exc.RedisError | MemoryServiceError, deadline: float
    ) -> Steps[tuple[Address, bool]]:
        """Answer where to go instead, and whether as one who was sent there; raises where there is nobody."""
        if isinstance(cause, redis_exc.AskError):
            target = Address(cause.host or address.host, cause.port)
            is_moved = isinstance(cause, redis_exc.MovedError)
            if is_moved and self._map is not None:
                self._map.move(slot, target)
                self._is_doubtful = True
            return target, not is_moved
        if isinstance(cause, redis_exc.TryAgainError):
            yield Wait(WAIT_SECONDS)
            return self._owner(slot), False
        yield from self._look(deadline)
        owner = self._owner(slot)
        if owner == address:
            raise self._unserved(cause)
        return owner, False

    def _mapped(self, deadline: float) -> Steps[SlotMap]:
        """Answer the map, looking for a better one where there is reason to."""
        if self._map is None or self._is_doubtful:
            yield from self._look(deadline)
        assert self._map is not None
        return self._map

    def _look(self, deadline: float) -> Steps[None]:
        """Ask for the map, unless somebody has just done so."""
        now = time.monotonic()
        old = self._map
        if old is not None:
            if now - self._looked_at < LOOK_SECONDS:
                return
            self._looked_at = now
        answer = yield from self._ask((*(old.nodes if old else ()), *self._seeds), (_SLOTS,), deadline)
        self._is_heard = answer.address is not None
        if answer.address is None:
            if old is None and answer.error is not None:
                raise self._unserved(answer.error)
            return
        fresh = SlotMap(answer.replies[0], answer.address)
        self._map, self._is_doubtful = fresh, False
        for address in set(old.nodes if old else ()).difference(fresh.nodes):
            self._breakers.pop(address, None)
            yield Retire(address)

    def _at(self, address: Address, effect: RedisCall) -> Steps[list[Any]]:
        """Put a call to one node, whatever it serves."""
        deadline = time.monotonic() + self._timeout
        outcome = yield from self._attempt(Attempt(address, effect.commands, deadline))
        if outcome.was_idle and isinstance(outcome.error, redis_exc.ConnectionError):
            outcome = yield from self._attempt(Attempt(address, effect.commands, deadline, is_fresh=True))
        for error in (outcome.error, *outcome.replies):
            if isinstance(error, redis_exc.RedisError):
                self._is_doubtful = True
                raise self._unserved(error)
        return outcome.replies

    def _anywhere(self, effect: RedisCall, slots: SlotMap, deadline: float) -> Steps[list[Any]]:
        """Put a call without keys to any primary that answers."""
        answer = yield from self._ask(slots.primaries, effect.commands, deadline)
        self._is_heard = answer.address is not None
        if answer.error is not None:
            self._is_doubtful = True
            raise self._unserved(answer.error)
        return answer.replies

    def _owner(self, slot: int) -> Address:
        return (self._map.owner(slot) if self._map else None) or _NOWHERE

    def _breaker_of(self, address: Address) -> CircuitBreaker:
        front = self._breaker
        if self._overrides != front.overrides:  # an operator's word is for every node
            self._overrides = front.overrides
            self._breakers = {}
        breaker = self._breakers.get(address)
        if breaker is None:
            made = CircuitBreaker(front.failure_threshold, front.recovery_timeout, name=f"{front.name} {address}")
            if front.get_state() is CircuitState.DISABLED:
                made.disable()
            breaker = self._breakers.setdefault(address, made)
        return breaker

    def _is_replaced(self) -> Steps[bool]:
        yield from ()
        return False  # there is no other Cluster

    def _counts(self, cause: Exception) -> bool:
        is_down = isinstance(cause, redis_exc.ClusterDownError) and "cluster is down" in str(cause)
        return is_down or not self._is_heard


def _repeatable(commands: tuple[Command, ...]) -> RedisCall:
    return RedisCall(commands, lambda: commands)


def _is_outage(reply: Any) -> bool:
    return isinstance(reply, redis_exc.RedisError) and failure_of(reply)[1]
