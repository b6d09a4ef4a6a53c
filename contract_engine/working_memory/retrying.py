"""Calls that are made again when a store was away for a moment."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from contract_engine.memory.errors import (
    ConfigurationError,
    CorruptDataError,
    MemoryServiceError,
    StoreUnavailableError,
)
from contract_engine.working_memory.errors import UnreadableMemoryError
from contract_engine.working_memory.layers import Flow, Layer, Pause
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.records import Record, RecordKey
from contract_engine.working_memory.settings import check_count, check_function, check_seconds
from contract_engine.working_memory.wrapping import (
    AsyncWrapper,
    Manager,
    Revise,
    Wrapped,
    Wrapper,
    Wrapping,
    same_contents,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)


class RetryingLayer(Wrapping):
    """Repeats what failed by a named error, after a pause that grows and is random in its full length.

    A call that failed may have had its effect. So a repeated write first looks what is there, and a repeated change
    knows what it has made: neither is applied twice, unless somebody else wrote between the two attempts, or a lost
    attempt arrives after the repeated one has looked; then the later one is put on top, as if called twice.
    """

    def __init__(
        self,
        below: Layer,
        *,
        on: tuple[type[Exception], ...],
        attempts: int,
        base_seconds: float,
        cap_seconds: float,
        deadline_seconds: float,
        uniform: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(below)
        self._on = _checked(on)
        self._attempts = check_count("attempts", attempts, least=1, most=1000)
        self._base_seconds = check_seconds("base_seconds", base_seconds)
        self._cap_seconds = check_seconds("cap_seconds", cap_seconds)
        self._deadline_seconds = check_seconds("deadline_seconds", deadline_seconds)
        self._uniform = check_function("uniform", uniform)
        self._clock = check_function("clock", clock)

    def read(self, keys: Sequence[RecordKey]) -> Flow[list[Record | None]]:
        """See :class:`Layer`."""
        return self._repeated(lambda _: self.below.read(keys))

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """See :class:`Layer`."""
        return self._repeated(
            lambda attempt: self.below.write(records) if attempt == 1 else self._write_missing(records)
        )

    def change(self, key: RecordKey, revise: Revise) -> Flow[Record | None]:
        """See :class:`Layer`."""
        earlier: list[Record] = []  # made by attempts that failed, or seemed to

        def attempt(_: int) -> Flow[Record | None]:
            made: list[Record] = []  # which never got there, as far as this attempt can tell: the like is another's

            def once(current: Record | None) -> Record | None:
                if current is not None and any(same_contents(current, record) for record in earlier):
                    return current
                revised = revise(current)
                if revised is not None:
                    made.append(revised)
                return revised

            try:
                return (yield from self.below.change(key, once))
            finally:
                earlier.extend(made)

        return self._repeated(attempt)

    def remove(self, keys: Sequence[RecordKey]) -> Flow[int]:
        """Remove records; the answer is of the last attempt, which does not count what an earlier one removed."""
        return self._repeated(lambda _: self.below.remove(keys))

    def _write_missing(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        wanted = dict(records)  # of two for one key the last one stays
        try:
            found = yield from self.below.read(list(wanted))
        except (UnreadableMemoryError, CorruptDataError):
            found = [None] * len(wanted)  # what is there is not ours, and is to be replaced
        there = {key: record for key, record in zip(wanted, found, strict=True) if record is not None}
        done = {key for key, record in there.items() if same_contents(record, wanted[key])}
        missing = [(key, record) for key, record in records if key not in done]
        if missing:
            yield from self.below.write(missing)

    def _repeated(self, attempt: Callable[[int], Flow[T]]) -> Flow[T]:
        give_up_at = self._clock() + self._deadline_seconds
        number = 1
        while True:
            try:
                return (yield from attempt(number))
            except self._on as exc:
                most = min(self._cap_seconds, self._base_seconds * 2.0 ** min(number - 1, 60))
                seconds = self._uniform() * most
                if number >= self._attempts or self._clock() + seconds > give_up_at:
                    raise
                logger.info("attempt %d of %d failed: %s", number, self._attempts, type(exc).__name__)
            yield Pause(seconds)
            number += 1


class _Retrying(Wrapped[Manager]):
    """What both colours have."""

    def __init__(
        self,
        manager: Manager,
        *,
        on: tuple[type[Exception], ...] = (StoreUnavailableError,),
        attempts: int = 3,
        base_seconds: float = 0.05,
        cap_seconds: float = 1.0,
        deadline_seconds: float = 5.0,
        uniform: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        wrap = partial(
            RetryingLayer,
            on=on,
            attempts=attempts,
            base_seconds=base_seconds,
            cap_seconds=cap_seconds,
            deadline_seconds=deadline_seconds,
            uniform=uniform,
            clock=clock,
        )
        super().__init__(manager, wrap)


class Retrying(_Retrying[WorkingMemoryManager], Wrapper):
    """Makes a call up to ``attempts`` times, where it fails by an error that ``on`` names.

    Before attempt n + 1 it waits for a random part of ``base_seconds`` * 2^(n - 1), at most ``cap_seconds``, and not at
    all if that would end after ``deadline_seconds``, which count from the first attempt: then the error is raised. What
    it does with a call whose effect may have happened stands at :class:`RetryingLayer`. ``uniform`` gives numbers from
    0 to 1, ``clock`` seconds. See also :meth:`retrieve_safe`.
    """


class AsyncRetrying(_Retrying[AsyncWorkingMemoryManager], AsyncWrapper):
    """:class:`Retrying` for an event loop."""


def _checked(on: object) -> tuple[type[Exception], ...]:
    """Return the errors that a flow is told of; others come straight out of it, and could not be caught here.

    Those of a store that is away have other names too: ``ConnectionError``, and in Redis that of redis-py.
    """
    if not isinstance(on, tuple) or not on:
        raise ConfigurationError("on", "expected a tuple of error classes")
    if not all(isinstance(each, type) and (issubclass(each, MemoryServiceError) or _is_an_outage(each)) for each in on):
        problem = "only errors of this package reach a wrapper, and what they are by inheritance"
        raise ConfigurationError("on", f"{problem}; see contract_engine.memory.errors")
    return on


def _is_an_outage(error: type) -> bool:
    """Tell whether a store that is away may be told by this error, which says more than that there is one."""
    kinds = [StoreUnavailableError]
    for kind in kinds:  # which grows
        kinds += kind.__subclasses__()
    return error is not Exception and issubclass(error, Exception) and any(issubclass(kind, error) for kind in kinds)
