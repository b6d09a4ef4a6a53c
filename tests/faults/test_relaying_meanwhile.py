"""What others do between any two effects of a relay's round: the legacy store gets each message once, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from crash_matrix import DATABASE, Interposition
from dual_stores import contents, log_alone, open_store, say, talk
from legacy_stores import ListStore
from meanwhile import Meanwhile, end_leases
from memory_contract import Backend

from contract_engine.memory.legacy_store import LegacySwisperStore
from contract_engine.memory.migration import EnhancedSessionStore, Phase

pytest_plugins = ("memory_fixtures", "meanwhile_fixtures")

SAID, OWED = 3, 2
"""What both stores have of a session, and what the legacy one has not got yet."""

BESIDE = ("beside", "beside too")
"""Sessions that are relayed in the same round, with a message before and one that is owed."""


class Died(BaseException):
    """The relay is no more."""


class Pair:
    """An adapter that relays, and another one beside it that does the rest with one session."""

    def __init__(self, relaying: EnhancedSessionStore, other: EnhancedSessionStore, legacy: Any, name: str) -> None:
        self.relaying, self.other, self.legacy, self.name = relaying, other, legacy, name
        self.said = 0

    def say(self, count: int) -> None:
        for number in range(self.said, self.said + count):
            self.other.append(self.name, say(number))
        self.said += count

    def say_beside(self, number: int) -> None:
        for which in BESIDE:
            self.other.append(f"{self.name} {which}", say(number))

    def leave_in_doubt(self) -> None:
        """Have a relay die that had written the first of what is owed."""
        flows, runtime = self.other._flows, self.other.memory_manager._runtime
        runtime.run(flows.outbox.claim("one that dies", sessions=25, lease_seconds=0.0))
        first = runtime.run(flows.outbox.pending(self.name)).pending[0]
        keywords = {} if type(self.legacy) is ListStore else {"message_id": first.message_id}
        self.legacy.add_chat_message(self.name, first.message, **keywords)

    def wait(self, count: int) -> None:
        """Have messages wait in Redis, and behind them one that was logged by somebody who died then."""
        outage = Interposition(self.other.memory_manager, away=DATABASE)
        self.say(count)
        outage.remove()
        time.sleep(0.002)  # within one millisecond nobody can tell which of the two came first
        log_alone(self.other, self.name, say(self.said))
        self.said += 1

    def check_read(self) -> None:
        assert contents(self.other.get_chat_history(self.name)) == talk(*range(self.said))

    def check_kept(self) -> None:
        assert contents(self.legacy.get_chat_history(self.name)) == talk(*range(self.said))
        for which in BESIDE:
            assert contents(self.legacy.get_chat_history(f"{self.name} {which}")) == talk(0, 1)

    def overtake(self) -> None:
        end_leases(self.other)
        assert self.other.settle(30)


Event = Callable[[Pair], object]


def said(count: int, then: Event) -> Event:
    def happens(pair: Pair) -> None:
        pair.say(count)
        then(pair)

    return happens


def waited(count: int, then: Event) -> Event:
    def happens(pair: Pair) -> None:
        pair.wait(count)
        then(pair)

    return happens


def dies(_: Pair) -> None:
    raise Died


EVENTS: dict[str, Event] = {
    "said": lambda pair: pair.say(3),
    "much said": lambda pair: pair.say(30),
    "read": Pair.check_read,
    "said and read": said(2, Pair.check_read),
    "relayed beside": said(2, lambda pair: pair.other.relay_once()),
    "retried": said(2, lambda pair: pair.other.retry(pair.name)),
    "all is read in the new one": said(1, lambda pair: pair.other.set_phase(Phase.FULL)),
    "came to wait": lambda pair: pair.wait(2),
    "came to wait and read": waited(2, Pair.check_read),
    "came to wait and drained": waited(2, lambda pair: pair.other.memory_manager.drain(pair.name)),
    "came to wait and relayed beside": waited(2, lambda pair: pair.other.relay_once()),
    "came to wait and died": waited(2, dies),
    "died": dies,
    "said and died": said(3, dies),
    "much said and died": said(30, dies),
}
OVERTAKEN: dict[str, Event] = {
    "overtaken": Pair.overtake,
    "said and overtaken": said(3, Pair.overtake),
}
"""The relay stands still until its lease is over, and goes on; the table does not mind, for it keeps each id once."""


@pytest.mark.parametrize("is_in_doubt", [False, True], ids=["owed", "in doubt"])
def test_whatever_happens_in_a_round_each_message_is_relayed_once(
    blocking: Backend, each_legacy: Any, is_in_doubt: bool
) -> None:
    events = EVENTS | OVERTAKEN if isinstance(each_legacy, LegacySwisperStore) else EVENTS
    with open_store(blocking, each_legacy) as relaying, open_store(blocking, each_legacy) as other:
        for name, event in events.items():
            number, is_met = 0, True
            while is_met:
                number += 1
                other.set_phase(Phase.COEXISTENCE)
                pair = Pair(relaying, other, each_legacy, f"{name} {number}")
                pair.say(SAID)
                pair.say_beside(0)
                assert other.settle(30)
                pair.say(OWED)
                pair.say_beside(1)
                if is_in_doubt:
                    pair.leave_in_doubt()
                effects = Meanwhile(relaying, number, partial(event, pair))
                with suppress(Died):
                    relaying.relay_once()
                effects.remove()
                is_met = effects.is_met
                end_leases(other)
                pair.check_read()
                assert other.settle(30)
                pair.check_kept()
                pair.check_read()
            assert number > 3, "a round has effects, and it happened before each of them"
