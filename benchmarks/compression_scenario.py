"""What texts of 200 characters take in the store, compressed with a dictionary, and what compressing them costs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from scenario import Bench, Timer, per_call

from contract_engine.demo import conversations
from contract_engine.working_memory import Compressed, IMemoryInput, InMemoryManager, IWorkingMemory, train_dictionary


def memories() -> tuple[list[str], list[str]]:
    """Return texts of about 200 characters of the demo's conversations, to train on and to measure: every third one."""
    found = []
    for conversation in conversations():
        said = [message["content"] for message in conversation["messages"] if message["role"] in ("user", "assistant")]
        found += textwrap.wrap(" ".join(text for text in said if text), 200)
    found = [text for text in found if len(text) > 150]
    return [text for number, text in enumerate(found) if number % 3], found[::3]


def compressed_size(*, with_dictionary: bool) -> Callable[[Bench], AbstractContextManager[tuple[Timer, Timer]]]:
    """Make a scenario whose figures are bytes, not microseconds: of the stored text, and of the text itself.

    The mark beside the text, which says with what it was compressed, is not counted; nor are metadata and times.
    """

    @contextmanager
    def prepare(_: Bench) -> Iterator[tuple[Timer, Timer]]:
        trained_on, measured = memories()
        inner = InMemoryManager()
        manager = Compressed(inner, dictionary=train_dictionary(trained_on) if with_dictionary else None)
        plain = stored = 0
        for text in measured:
            key = manager.store(IMemoryInput("bench", data=[IWorkingMemory(text)]))
            plain += len(text.encode())
            stored += len(inner.storage[key]["data"]["working_memory"].encode())
        yield lambda: stored / len(measured) / 1e6, lambda: plain / len(measured) / 1e6

    return prepare


@contextmanager
def compressed_time(_: Bench) -> Iterator[tuple[Timer, Timer]]:
    trained_on, measured = memories()
    requests = [IMemoryInput("bench", data=[IWorkingMemory(text)]) for text in measured]
    inner = InMemoryManager()
    manager = Compressed(inner, dictionary=train_dictionary(trained_on))

    def both(one: InMemoryManager | Compressed, request: IMemoryInput) -> None:
        one.store(request)
        one.retrieve(request)

    def timer(one: InMemoryManager | Compressed) -> Timer:
        return lambda: per_call([lambda request=request: both(one, request) for request in requests])  # type: ignore[misc]

    yield timer(manager), timer(inner)
