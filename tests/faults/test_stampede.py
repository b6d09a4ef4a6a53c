"""A lost buffer, and readers of several processes at once: few of them ask the log, and one installs what it said."""

from __future__ import annotations

from collections import Counter

from memory_contract import talk
from server_faults import Outage
from test_flushed_redis import outage  # noqa: F401
from test_races import Crowd, crowd  # noqa: F401

PROCESSES = 4
EACH = 16
READERS = PROCESSES * EACH
SAID = 20

READ = """
import asyncio
from collections import Counter
from contract_engine.memory import AsyncMemoryManager
from contract_engine.memory._effects import Query, Transaction
from memory_contract import assert_context, talk

said, each, asked, sources = talk(given["said"]), given["each"], [], []

def counted(runtime):
    "Count what reaches PostgreSQL."
    performed = runtime._perform
    def passes(effect):
        asked.extend([1] * isinstance(effect, Query | Transaction))
        return performed(effect)
    runtime._perform = passes

def note(context):
    assert_context(context, said)
    assert context["degraded"] is False
    sources.append(context["source"])

async def in_tasks():
    async with AsyncMemoryManager(config=manager.config) as other:
        counted(other._runtime)
        await asyncio.gather(*[other.get_context("warm") for _ in range(each)])
        asked.clear()
        await asyncio.to_thread(begin)
        for context in await asyncio.gather(*[other.get_context("s") for _ in range(each)]):
            note(context)

if given["colour"] == "async":
    asyncio.run(in_tasks())
else:
    counted(manager._runtime)
    run_threads(each, lambda _: manager.get_context("warm"))
    asked.clear()
    begin()
    run_threads(each, lambda _: note(manager.get_context("s")))
end([len(asked), Counter(sources)])
"""


def test_readers_in_four_processes_of_a_lost_buffer(outage: Outage, crowd: Crowd) -> None:  # noqa: F811
    """By the clock: whoever asks the log has waited 30 ms for another one, or for the processor."""
    backend = outage.backend
    outage.open().add_messages("s", talk(SAID))
    with outage.redis() as client:
        assert client.delete(backend.keys("s").buffer) == 1
    before = outage.calls()
    found = crowd.run(READ, backend, count=PROCESSES, each=EACH, said=SAID, colour=backend.colour)
    after = outage.calls()
    asked = sum(statements for statements, _ in found)
    sources = sum((Counter[str](told) for _, told in found), Counter[str]())
    print(f"{backend.colour}: {asked} statements for {dict(sources)}")
    assert sources.total() == READERS
    assert asked == sources["postgres"], "a read of the log is one statement"
    assert 1 <= asked <= READERS // 4
    # An installation is the only script here that trims; those who warm up find nothing that could be installed.
    assert after["ltrim"] - before.get("ltrim", 0) == 1, "installed by one"
