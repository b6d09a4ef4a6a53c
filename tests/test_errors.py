"""Errors as other processes get them: pickled, as process pools and task queues do it."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import contract_engine
from contract_engine.memory import InvalidInputError
from contract_engine.memory.errors import CircuitOpenError, MemoryServiceError
from contract_engine.memory.keys import check_session_id
from contract_engine.working_memory import ConversationMemoryType
from contract_engine.working_memory.records import RecordKey

VALUES: dict[str, Any] = {
    "str": "some text",
    "int": 3,
    "float": 1.5,
    "bool": True,
    "RecordKey": RecordKey(ConversationMemoryType.WORKING_MEMORY, "c", "memory:WORKING_MEMORY:c"),
}


def subclasses(kind: type[MemoryServiceError]) -> Iterator[type[MemoryServiceError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from subclasses(one)


def made(kind: Any) -> Any:
    """Make an error of its class, each argument by its annotation."""
    if kind is CircuitOpenError:  # which takes what it is given as it is
        return kind("redis", 1.5)
    given: dict[str, Any] = {}
    places: list[Any] = []
    for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return kind("some text")
        value = VALUES.get(str(parameter.annotation).partition(" | ")[0], "some text")
        if parameter.kind is parameter.KEYWORD_ONLY:
            given[parameter.name] = value
        else:
            places.append(value)
    return kind(*places, **given)


def all_errors() -> list[type[MemoryServiceError]]:
    for module in pkgutil.walk_packages(contract_engine.__path__, "contract_engine."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return sorted({one for one in subclasses(MemoryServiceError) if one.__module__.startswith("contract_")}, key=str)


@pytest.mark.parametrize("kind", all_errors())
def test_an_error_is_the_same_in_another_process(kind: type[MemoryServiceError]) -> None:
    error = made(kind)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


def test_bad_input_breaks_no_process_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        refused = pool.submit(check_session_id, "")
        served = pool.submit(check_session_id, "a session")
        with pytest.raises(InvalidInputError, match="session_id") as caught:
            refused.result(60)
        assert caught.value.field == "session_id"
        assert served.result(60) == "a session"
