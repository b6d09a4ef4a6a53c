"""What records of 200 characters take in the store, compressed with a dictionary, and what compressing them costs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from scenario import Bench, Timer, per_call

from contract_engine.demo import conversations
from contract_engine.working_memory import (
    Compressed,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    WorkingMemoryManager,
    train_dictionary,
)


def memories() -> list[list[str]]:
    """Return texts of about 200 characters of each of the demo's conversations that has any."""
    found = []
    for conversation in conversations():
        said = [message["content"] for message in conversation["messages"] if message["role"] in ("user", "assistant")]
        texts = textwrap.wrap(" ".join(text for text in said if text), 200)
        found.append([text for text in texts if len(text) > 150])
    return [texts for texts in found if texts]


def folds() -> Iterator[tuple[list[str], list[str]]]:
    """Yield the texts of each conversation, after those of all others to train on."""
    each = memories()
    for number, measured in enumerate(each):
        yield [text for texts in each[:number] + each[number + 1 :] for text in texts], measured


def _stored_bytes(manager: WorkingMemoryManager, inner: InMemoryManager, text: str) -> int:
    key = manager.store(IMemoryInput("bench", data=[IWorkingMemory(text)]))
    (body,) = inner.store_of_records.get([key])
    assert body is not None
    return len(body)


def compressed_size(*, with_dictionary: bool) -> Callable[[Bench], AbstractContextManager[tuple[Timer, Timer]]]:
    """Make a scenario whose figures are bytes, not microseconds: of all that is stored for a text, times included.

    The dictionary was trained on other conversations than the one that is measured.
    """

    @contextmanager
    def prepare(_: Bench) -> Iterator[tuple[Timer, Timer]]:
        inner = InMemoryManager()
        plain = stored = count = 0
        for trained_on, measured in folds():
            manager = Compressed(inner, dictionary=train_dictionary(trained_on) if with_dictionary else None)
            plain += sum(_stored_bytes(inner, inner, text) for text in measured)
            stored += sum(_stored_bytes(manager, inner, text) for text in measured)
            count += len(measured)
        yield lambda: stored / count / 1e6, lambda: plain / count / 1e6

    return prepare


@contextmanager
def compressed_time(_: Bench) -> Iterator[tuple[Timer, Timer]]:
    trained_on, measured = max(folds(), key=lambda fold: len(fold[1]))
    requests = [IMemoryInput("bench", data=[IWorkingMemory(text)]) for text in measured]
    inner = InMemoryManager()
    manager = Compressed(inner, dictionary=train_dictionary(trained_on))

    def both(one: InMemoryManager | Compressed, request: IMemoryInput) -> None:
        one.store(request)
        one.retrieve(request)

    def timer(one: InMemoryManager | Compressed) -> Timer:
        return lambda: per_call([lambda request=request: both(one, request) for request in requests])  # type: ignore[misc]

    yield timer(manager), timer(inner)
