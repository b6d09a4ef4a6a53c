"""Layers: where records go through on their way to a store, and how both colours run the same logic.

An operation is a generator that yields what it asks of the world and is sent the answers; :func:`run` and
:func:`run_async` are all that differs between a manager and its asyncio twin. The lowest layer asks a store; every
wrapper is a layer over another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from contract_engine.memory.errors import MemoryServiceError
from contract_engine.working_memory.records import Record, RecordKey

T = TypeVar("T")


@dataclass(slots=True)  # not frozen: one is made for every operation, and that would take a few times as long
class Call:
    """Call a method of a store: plain in a manager, awaited in its twin.

    Its errors, all of them of this package, are raised in the flow.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Flow = Generator[Call | Pause, Any, T]


class Layer(Protocol):
    """What every layer does with records. Each method is a flow; many keys are one round trip, not many."""

    def read(self, keys: Sequence[RecordKey]) -> Flow[list[Record | None]]:
        """Answer the records, in the order of their keys; None where there is none."""
        ...

    def write(self, records: Sequence[tuple[RecordKey, Record]]) -> Flow[None]:
        """Put records in place of what is there."""
        ...

    def change(self, key: RecordKey, revise: Callable[[Record | None], Record | None]) -> Flow[Record | None]:
        """Put what ``revise`` makes of a record in its place, atomically, and answer it.

        ``revise`` is given None where there is no record, and answers None where there is to be none. It is called
        again when somebody else was faster, so it must be free of effects.
        """
        ...

    def remove(self, keys: Sequence[RecordKey]) -> Flow[int]:
        """Remove records and answer how many there were."""
        ...


def run(flow: Flow[T]) -> T:
    """Perform a flow in this thread."""
    try:
        step = next(flow)
        while True:
            try:
                answer = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    answer = step.function(*step.arguments)
            except MemoryServiceError as exc:
                step = flow.throw(exc)
            except StopIteration as exc:  # a client's own: below it would be the end of the flow
                raise RuntimeError("a store raised StopIteration") from exc
            else:
                step = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        flow.close()


async def run_async(flow: Flow[T]) -> T:
    """Perform a flow in the running loop."""
    try:
        step = next(flow)
        while True:
            try:
                answer = None
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    answer = await step.function(*step.arguments)
            except MemoryServiceError as exc:
                step = flow.throw(exc)
            else:
                step = flow.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        flow.close()
