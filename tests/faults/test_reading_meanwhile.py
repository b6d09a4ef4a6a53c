"""What others do between any two effects of a read is neither missed nor shown twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from dual_stores import contents, open_store, say, talk
from legacy_stores import ListStore
from meanwhile import Meanwhile, end_leases
from memory_contract import Backend

from contract_engine.memory.migration import EnhancedSessionStore, Phase

pytest_plugins = ("memory_fixtures", "meanwhile_fixtures")

SAID, OWED = 3, 2
"""What both stores have of a session, and what the legacy one has not got yet."""

LIMIT = 4
"""Few, so that a reader asks for the end of the legacy history alone where it may."""


class Pair:
    """An adapter that reads, and another one beside it that does the rest."""

    def __init__(self, reader: EnhancedSessionStore, other: EnhancedSessionStore, legacy: Any) -> None:
        self.reader, self.other, self.legacy = reader, other, legacy

    def say(self, session_id: str, start: int, stop: int) -> None:
        for number in range(start, stop):
            self.other.append(session_id, say(number))

    def die(self, session_id: str, written: int, lease_seconds: float) -> None:
        """Have a relay claim the session and write some, of which it takes no note."""
        flows, runtime = self.other._flows, self.other.memory_manager._runtime
        runtime.run(flows.outbox.claim("one that dies", sessions=25, lease_seconds=lease_seconds))
        held = contents(self.legacy.get_chat_history(session_id))
        for one in runtime.run(flows.outbox.pending(session_id)).pending[:written]:
            if one.message["content"] in held:
                continue
            keywords = {} if type(self.legacy) is ListStore else {"message_id": one.message_id}
            self.legacy.add_chat_message(session_id, one.message, **keywords)


Event = Callable[[Pair, str], object]


def relayed(more: int) -> Event:
    def happens(pair: Pair, session_id: str) -> None:
        pair.say(session_id, SAID + OWED, SAID + OWED + more)
        end_leases(pair.reader)
        assert pair.other.settle(30)

    return happens


def died(more: int, written: int, lease_seconds: float) -> Event:
    def happens(pair: Pair, session_id: str) -> None:
        pair.say(session_id, SAID + OWED, SAID + OWED + more)
        pair.die(session_id, written, lease_seconds)

    return happens


EVENTS = {
    "relayed": relayed(0),
    "some said and relayed": relayed(3),
    "many said and relayed": relayed(30),
    "a relay at work": died(3, 4, 30.0),
    "a relay that died": died(3, 4, 0.0),
    "a relay that died after much": died(30, 31, 0.0),
    "all is read in the new one": lambda pair, _: pair.other.set_phase(Phase.FULL),
    "all is read in the older one": lambda pair, _: pair.other.set_phase(Phase.COEXISTENCE),
}
BEFORE: dict[str, Event] = {
    "owed": lambda _, __: None,
    "leased": lambda pair, session_id: pair.die(session_id, 1, 30.0),
    "in doubt": lambda pair, session_id: pair.die(session_id, 1, 0.0),
    "read in the new one": lambda pair, _: pair.other.set_phase(Phase.FULL),
}


@pytest.mark.parametrize("before", BEFORE)
def test_whatever_happens_while_it_is_read_a_session_is_shown_once(
    blocking: Backend, each_legacy: Any, before: str
) -> None:
    wrong = []
    with open_store(blocking, each_legacy) as reader, open_store(blocking, each_legacy) as other:
        pair = Pair(reader, other, each_legacy)
        for name, event in EVENTS.items():
            number, is_met = 0, True
            while is_met:
                number += 1
                session_id = f"{name} {number}"
                other.set_phase(Phase.COEXISTENCE)
                reader._flows._known = None
                pair.say(session_id, 0, SAID)
                assert other.settle(30)
                pair.say(session_id, SAID, SAID + OWED)
                BEFORE[before](pair, session_id)
                effects = Meanwhile(reader, number, partial(event, pair, session_id))
                found = contents(reader.get_chat_history(session_id, LIMIT))
                effects.remove()
                is_met = len(effects.effects) >= number
                end = int(found[-1].split()[1]) + 1
                if end < SAID + OWED or found != talk(*range(end - LIMIT, end)):
                    wrong.append((session_id, found))
                end_leases(pair.reader)
                assert other.settle(30)
                kept = contents(each_legacy.get_chat_history(session_id))
                if kept != talk(*range(len(kept))) or len(kept) < end:
                    wrong.append((session_id, kept))
    assert wrong == []
