"""The code of the documents that programs are written after runs as it stands there, import line aside.

``document_blocks`` lists every block of the four documents and says what is changed when one is run. What a block has
defined is then used here, as a program that has copied it would.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import document_surroundings
import pytest
import redis
from document_blocks import (
    BLOCKS,
    DOCUMENTS,
    FOLLOWS,
    MODULES,
    PACKAGES,
    RUNS,
    SHELL,
    Tests,
    names,
    run,
    runnable,
    source,
)
from local_models import NotingModel

from contract_engine.embedded import EmbeddedServers
from contract_engine.plugins.memory_manager.plugin_interface import MemoryManager
from contract_engine.working_memory import (
    ConversationMemoryType,
    IMemoryInput,
    IMemoryManager,
    InMemoryManager,
    IWorkingMemory,
    RedisWorkingMemoryManager,
)

HERE = Path(__file__).parent
Names = dict[str, Any]


@pytest.fixture(scope="module")
def own_redis() -> Iterator[str]:
    """A Redis of these tests alone: the documents write to several databases, and empty them."""
    with EmbeddedServers(postgres=False) as servers:
        yield servers.redis_url


@pytest.fixture
def url(own_redis: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty Redis, its database 1 as ``REDIS_URL``."""
    with redis.Redis.from_url(own_redis) as client:
        client.flushall()
    parts = urlsplit(own_redis)
    found = f"{parts.scheme}://{parts.netloc}/1"
    monkeypatch.setenv("REDIS_URL", found)
    monkeypatch.delenv("ENVIRONMENT", raising=False)
    return found


def surroundings(name: str) -> Names:
    """Return the names that stand around a block."""
    found: Names = {each: getattr(document_surroundings, each) for each in document_surroundings.__all__}
    found |= {"__name__": "block", "llm_client": NotingModel()}
    found["memory_manager"] = InMemoryManager() if name.startswith("in_memory/") else RedisWorkingMemoryManager()
    return found


def memory_input(conversation: str, *texts: str, **more: Any) -> IMemoryInput:
    data = [IWorkingMemory(working_memory=text) for text in texts] or None
    return IMemoryInput(conversation, ConversationMemoryType.WORKING_MEMORY, data=data, **more)


def texts(manager: Any, conversation: str, **more: Any) -> list[str]:
    return [memory.working_memory for memory in manager.retrieve(memory_input(conversation, **more))]


# -- the list is complete


@pytest.mark.parametrize(("document", "count"), [("plugin", 4), ("reference", 11), ("redis", 31), ("in_memory", 15)])
def test_every_block_of_a_document_is_listed_once(document: str, count: int) -> None:
    listed = [name for name, _ in BLOCKS[document]]
    assert [int(name[:2]) for name in listed] == list(range(1, count + 1))
    assert len(set(listed)) == count


def test_every_block_that_claims_to_be_python_is_kept_and_nothing_else() -> None:
    kept = {f"{path.parent.name}/{path.stem}" for path in DOCUMENTS.glob("*/*.py") if path.parent.name in BLOCKS}
    runs = set(names(RUNS, Tests))
    assert runs <= kept
    assert kept - runs == {"redis/27_connection_refused"}
    assert len(runs) == 3 + 11 + 20 + 14
    assert len(names(SHELL)) == 12  # of installing, of Docker and clouds, and of a Redis at an address of their own
    assert names(PACKAGES) == ["plugin/03_dependencies"]


def test_the_block_that_does_not_run_is_no_python() -> None:
    with pytest.raises(SyntaxError):
        ast.parse(source("redis/27_connection_refused"))


@pytest.mark.parametrize("name", names(RUNS, Tests))
def test_only_import_lines_and_addresses_are_changed(name: str) -> None:
    before, after = source(name).splitlines(), runnable(name, "redis://host:1/0").splitlines()
    for old, new in zip(before, after, strict=True):
        if old != new:
            assert old.lstrip().startswith("from arshai.") or "redis://localhost:6379" in old or ".plugin_" in old
    assert "arshai" not in "\n".join(line for line in after if line.lstrip().startswith(("from ", "import ")))


@pytest.mark.parametrize("name", names(RUNS, Tests))
def test_what_a_block_imports_is_where_the_table_says(name: str) -> None:
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.ImportFrom) and (module := MODULES.get("." * node.level + (node.module or ""))):
            for alias in node.names:
                assert hasattr(importlib.import_module(module), alias.name), alias.name


# -- and runs


@pytest.mark.parametrize("name", names(RUNS))
def test_a_block_runs_and_does_what_it_says(
    name: str, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = surroundings(name)
    if name in FOLLOWS:
        run(runnable(FOLLOWS[name], url), namespace)
    run(runnable(name, url), namespace)
    check = USES[name]
    check(namespace, capsys.readouterr().out, url)


@pytest.mark.parametrize("name", names(Tests))
def test_the_tests_of_a_document_pass(name: str, url: str, tmp_path: Path) -> None:
    """Run by pytest as a file of their own, with every warning an error."""
    document, _, block = name.partition("/")
    (count,) = (kind.count for each, kind in BLOCKS[document] if each == block and isinstance(kind, Tests))
    path = tmp_path / "test_block.py"
    path.write_text(f"from document_surroundings import *\n{runnable(name, url)}", "utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers = integration\nfilterwarnings = error\naddopts = --strict-markers -p no:cacheprovider\n"
        "asyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_block.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "REDIS_URL": url,
            "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
            "PYTEST_ADDOPTS": "",  # those of the run around it are not meant
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{count} passed in ", done.stdout, re.MULTILINE), done.stdout


# -- what each block has defined, used


def plugin_interface(found: Names, _: str, __: str) -> None:
    run(source("plugin/01_plugin_interface"), found)  # with the address that is the default there
    theirs = {name: f for name, f in vars(found["MemoryManager"]).items() if inspect.isfunction(f)}
    assert len(theirs) == 5
    for name, function in theirs.items():
        ours = inspect.signature(getattr(MemoryManager, name)).parameters
        for parameter in inspect.signature(function).parameters.values():
            assert ours[parameter.name].default == parameter.default, f"{name}({parameter.name})"
            assert ours[parameter.name].kind == parameter.kind, f"{name}({parameter.name})"


def plugin_usage(found: Names, out: str, url: str) -> None:
    assert found["success"] is True
    assert out == "Resuming from: Design database schema\n"
    with redis.Redis.from_url(url.removesuffix("/1")) as client:
        assert 0 < client.ttl("riker:memory:conv-12345") <= 24 * 3600


def interface(found: Names, _: str, __: str) -> None:
    for name in ("store", "retrieve", "update", "delete"):
        theirs = list(inspect.signature(getattr(found["IMemoryManager"], name)).parameters)
        for ours in (IMemoryManager, InMemoryManager, RedisWorkingMemoryManager):
            assert list(inspect.signature(getattr(ours, name)).parameters) == theirs == ["self", "input"]


def input_structure(found: Names, _: str, __: str) -> None:
    given = found["memory_input"]
    assert given.memory_type is ConversationMemoryType.WORKING_MEMORY
    assert given.data[0].working_memory == "User prefers technical details"
    assert given.metadata == {"user_type": "developer", "session_id": "abc123"}
    manager = InMemoryManager()
    manager.store(given)
    assert texts(manager, "user_123") == ["User prefers technical details"]


def basic_operations(_: Names, out: str, __: str) -> None:
    assert out == (
        "Stored memory with key: memory:WORKING_MEMORY:conversation_123\n"
        "Retrieved memory: User is interested in machine learning\n"
    )


def agent_integration(found: Names, _: str, url: str) -> None:
    assert found["result"] == "success"
    assert texts(found["memory_manager"], "dev_chat_123") == ["- User mentioned they're a Python developer"]
    with redis.Redis.from_url(url) as client:
        assert 12 * 3600 < client.ttl("memory:WORKING_MEMORY:dev_chat_123") <= 24 * 3600


def sqlite_manager(found: Names, _: str, __: str) -> None:
    manager = found["SQLiteMemoryManager"]("own.db")
    assert isinstance(manager, IMemoryManager)
    assert manager.store(memory_input("c", "one", metadata={"a": 1})) == "c:WORKING_MEMORY"
    assert texts(manager, "c") == ["one"]
    manager.update(memory_input("c", "two"))
    assert texts(manager, "c") == ["two"]
    agent = document_surroundings.WorkingMemoryAgent(NotingModel(), manager)
    assert asyncio.run(agent.process("- three", "c")) == "success"
    assert texts(manager, "c") == ["- - three"]
    manager.delete(memory_input("c"))
    assert texts(manager, "c") == []


def ttl_manager(found: Names, _: str, url: str) -> None:
    manager = found["TTLOptimizedMemoryManager"](RedisWorkingMemoryManager())
    for user, hours in (("inactive_user", 2), ("premium_user", 24 * 7), ("unheard_of", 12)):
        key = manager.store(memory_input(user, "text", metadata={"user_type": user}))
        with redis.Redis.from_url(url) as client:
            assert hours * 3600 - 60 <= client.ttl(key) <= hours * 3600


def compression(found: Names, _: str, __: str) -> None:
    text = "what is said again and again " * 50
    for base in (InMemoryManager(), RedisWorkingMemoryManager()):
        manager = found["CompressedMemoryWrapper"](base)
        manager.store(memory_input("c", text, metadata={"user": "u"}))
        assert texts(manager, "c", metadata={"compressed": True}) == [text]
        (kept,) = texts(base, "c")
        assert len(kept) < len(text) / 4


def versions(found: Names, _: str, __: str) -> None:
    manager = found["VersionedMemoryManager"](InMemoryManager())
    for number in range(12):
        manager.store(memory_input("c", f"version {number}"))
    history = manager.get_memory_history("c", ConversationMemoryType.WORKING)
    assert [entry["content"] for entry in history] == [f"version {number}" for number in range(2, 12)]
    assert texts(manager.base_manager, "c") == ["version 11"]


def simple_example(_: Names, out: str, __: str) -> None:
    assert out == "Stored memory with key: memory:WORKING_MEMORY:conv_123\nRetrieved: User's name is Alice\n"


def with_agent(_: Names, out: str, __: str) -> None:
    assert out == "Agent: success\nAgent: success\n"


def redis_with_agent(found: Names, out: str, url: str) -> None:
    with_agent(found, out, url)
    remembered = texts(RedisWorkingMemoryManager(), "conv_123")
    assert remembered == ["- My name is Bob and I like Python\n- What's my name and what do I like?"]


def works_for(seconds: int) -> Callable[[Names, str, str], None]:
    """Make a use of a manager whose records live for so long."""

    def use(found: Names, _: str, url: str) -> None:
        key = found["memory_manager"].store(memory_input("used", "text"))
        assert texts(found["memory_manager"], "used") == ["text"]
        with redis.Redis.from_url(url) as client:
            assert seconds - 60 <= client.ttl(key) <= seconds

    return use


def stored(found: Names, _: str, __: str) -> None:
    (memory,) = found["memory_manager"].retrieve(memory_input("conv_123"))
    assert found["key"] == "memory:WORKING_MEMORY:conv_123"
    assert memory.working_memory.startswith("User prefers email")
    assert memory.metadata["source"].startswith("user_")


def retrieved(found: Names, out: str, _: str) -> None:
    assert len(found["memories"]) == 1
    assert "Memory: User prefers email" in out
    assert "No memories" not in out


def updated(found: Names, _: str, __: str) -> None:
    (text,) = texts(found["memory_manager"], "conv_123")
    assert text.startswith("User prefers SMS")
    assert text.endswith("(updated)")


def deleted(found: Names, _: str, __: str) -> None:
    assert texts(found["memory_manager"], "conv_123") == []


def two_processes(found: Names, _: str, __: str) -> None:
    asyncio.run(found["process_1"]())
    asyncio.run(found["process_2"]())
    assert "- I'm Alice" in found["llm_client"].asked[1].user_message
    assert texts(RedisWorkingMemoryManager(), "conv_123") == ["- I'm Alice\n- What's my name?"]


def pooled(found: Names, _: str, url: str) -> None:
    works_for(12 * 3600)(found, _, url)
    manager = found["memory_manager"]
    manager.update(memory_input("used", "again"))
    assert texts(manager, "used") == ["again"]
    manager.delete(memory_input("used"))
    assert texts(manager, "used") == []


def robust(found: Names, out: str, url: str) -> None:
    manager = found["RobustMemoryManager"](url)
    manager.store_with_retry(memory_input("c", "text"))
    assert [memory.working_memory for memory in manager.retrieve_safe(memory_input("c"))] == ["text"]
    away = found["RobustMemoryManager"]("redis://127.0.0.1:1/1", max_retries=2)
    assert away.retrieve_safe(memory_input("c")) == []
    with pytest.raises(redis.ConnectionError):
        away.store_with_retry(memory_input("c", "text"))


def monitored(found: Names, out: str, _: str) -> None:
    assert re.fullmatch(r"Memory usage: [\d.]+[KMG]\nTotal keys: 0\n", out)
    RedisWorkingMemoryManager().store(memory_input("c", "text"))
    assert found["get_memory_stats"](os.environ["REDIS_URL"])["total_keys"] == 1


def cleaned_up(found: Names, out: str, url: str) -> None:
    assert out == "No memories found to delete\n" * 2
    manager = RedisWorkingMemoryManager()
    for conversation in ("conv_1", "conv_2", "conv_3"):
        manager.store(memory_input(conversation, "text"))
    found["cleanup_old_conversations"](url, "memory:*:conv_2")
    assert [texts(manager, f"conv_{number}") for number in (1, 2, 3)] == [["text"], [], ["text"]]
    found["cleanup_old_conversations"](url)
    assert manager.storage_stats()["total_entries"] == 0


def batch(found: Names, _: str, __: str) -> None:
    manager = found["memory_manager"]
    kept = [texts(manager, f"conv_{number}") for number in (1, 2, 3)]
    assert kept == [["Alice prefers email"], ["Bob likes Python"], ["Carol uses dark mode"]]


def reused(found: Names, _: str, __: str) -> None:
    assert found["MemoryService"].get_manager() is found["manager"]
    found["manager"].store(memory_input("c", "text"))
    assert texts(found["manager"], "c") == ["text"]


def factory(found: Names, _: str, url: str) -> None:
    assert type(found["memory_manager"]) is InMemoryManager
    assert asyncio.run(found["agent"].process("said", "c")) == "success"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVIRONMENT", "production")
        made = found["create_memory_manager"]()
    assert type(made) is RedisWorkingMemoryManager
    works_for(24 * 3600)({"memory_manager": made}, "", url)


def environments(found: Names, _: str, url: str) -> None:
    assert type(found["memory_manager"]) is RedisWorkingMemoryManager
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVIRONMENT", "development")
        again = surroundings("in_memory/15_migration_to_production")
        run(runnable("in_memory/15_migration_to_production", url), again)
    assert type(again["memory_manager"]) is InMemoryManager
    for names_ in (found, again):
        assert asyncio.run(names_["agent"].process("said", "c")) == "success"
        assert texts(names_["memory_manager"], "c") == ["- said"]


def address_with_password(found: Names, _: str, __: str) -> None:
    assert urlsplit(found["REDIS_URL"]).password == "your_password"
    RedisWorkingMemoryManager(found["REDIS_URL"])  # which opens nothing


def address(found: Names, _: str, url: str) -> None:
    assert found["REDIS_URL"] == url
    works_for(12 * 3600)({"memory_manager": RedisWorkingMemoryManager(found["REDIS_URL"])}, "", url)


def without_end(found: Names, _: str, __: str) -> None:
    manager = found["memory_manager"]
    assert manager.ttl is None
    manager.store(memory_input("c", "text"))
    assert texts(manager, "c") == ["text"]


def memory_types(found: Names, _: str, __: str) -> None:
    manager = found["memory_manager"]
    manager.store(IMemoryInput("conv_123", data=[IWorkingMemory("of another type")]))
    assert texts(manager, "conv_123") == ["Important context"]


def many_conversations(found: Names, _: str, __: str) -> None:
    asyncio.run(found["multi_conversation_example"]())
    manager = found["ConversationManager"]()

    async def talk() -> None:
        for user, conversation, said in (("u", "c1", "I'm Alice"), ("v", "c2", "I'm Bob"), ("u", "c1", "Who am I?")):
            assert await manager.process_message(user, conversation, said) == "success"

    asyncio.run(talk())
    assert texts(manager.memory_manager, "c1") == ["- I'm Alice\n- Who am I?"]
    assert texts(manager.memory_manager, "c2") == ["- I'm Bob"]


def enhanced(found: Names, _: str, __: str) -> None:
    manager = found["EnhancedMemoryManager"]()
    for importance in (3, 7, 9):
        memory = found["RichMemory"](f"worth {importance}", importance, ["tag"], {})
        manager.store_rich_memory("c", memory)
    assert [memory.importance for memory in manager.get_important_memories("c")] == [7, 9]
    assert texts(manager.base_manager, "c") == ["worth 9"]


def managed(found: Names, _: str, __: str) -> None:
    manager = found["ManagedInMemory"](ttl=3600)
    for conversation in ("c1", "c2"):
        manager.memory_manager.store(memory_input(conversation, "text"))
    expected = ["memory:WORKING_MEMORY:c1", "memory:WORKING_MEMORY:c2"]
    assert manager.get_storage_stats() == {"total_entries": 2, "memory_keys": expected}
    manager.cleanup_conversation("c1")
    manager.cleanup_expired()
    assert manager.get_storage_stats() == {"total_entries": 1, "memory_keys": expected[1:]}


USES: dict[str, Callable[[Names, str, str], None]] = {
    "plugin/01_plugin_interface": plugin_interface,
    "plugin/04_example_usage": plugin_usage,
    "reference/01_interface_compliance": interface,
    "reference/02_memory_input_structure": input_structure,
    "reference/03_basic_memory_operations": basic_operations,
    "reference/04_agent_integration": agent_integration,
    "reference/05_custom_memory_implementation": sqlite_manager,
    "reference/06_ttl_management": ttl_manager,
    "reference/07_memory_compression": compression,
    "reference/08_memory_versioning": versions,
    "redis/08_simple_example": simple_example,
    "redis/09_with_agent": redis_with_agent,
    "redis/10_connection_options": works_for(24 * 3600),
    "redis/11_ttl_configuration": works_for(3600),
    "redis/12_store_memory": stored,
    "redis/13_retrieve_memory": retrieved,
    "redis/14_update_memory": updated,
    "redis/15_delete_memory": deleted,
    "redis/16_multi_process_deployment": two_processes,
    "redis/17_connection_pooling": pooled,
    "redis/18_error_handling": robust,
    "redis/20_monitor_memory_usage": monitored,
    "redis/21_cleanup_utilities": cleaned_up,
    "redis/22_batch_operations": batch,
    "redis/23_connection_reuse": reused,
    "redis/26_migration_from_in_memory": factory,
    "redis/28_authentication_failed": address_with_password,
    "redis/29_wrong_database": address,
    "in_memory/02_simple_example": simple_example,
    "in_memory/03_with_agent": with_agent,
    "in_memory/04_ttl_time_to_live": without_end,
    "in_memory/05_memory_types": memory_types,
    "in_memory/06_store_memory": stored,
    "in_memory/07_retrieve_memory": retrieved,
    "in_memory/08_update_memory": updated,
    "in_memory/09_delete_memory": deleted,
    "in_memory/10_multi_conversation_management": many_conversations,
    "in_memory/11_custom_memory_structure": enhanced,
    "in_memory/12_memory_cleanup": managed,
    "in_memory/15_migration_to_production": environments,
}
