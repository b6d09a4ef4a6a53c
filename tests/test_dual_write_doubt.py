"""A relay has died, or its answer was lost: what the legacy store shows decides, and it is never believed too much."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from dual_stores import contents, open_store, plain_url, say, talk
from hypothesis import given
from hypothesis import strategies as st
from legacy_stores import KnowingStore, ListStore, Messages
from memory_contract import Backend

from contract_engine.memory.legacy import overlap
from contract_engine.memory.migration import EnhancedSessionStore, RelaySettings
from contract_engine.memory.relaying import BYTES

pytest_plugins = ("memory_fixtures", "dual_write_fixtures")

SHORT = RelaySettings(lease_seconds=0.3, first_delay_seconds=0.01, max_delay_seconds=0.1, poll_seconds=0.05)
WORDS = st.text("ab", max_size=6)


@pytest.fixture
def store(blocking: Backend, legacy: ListStore) -> Iterator[EnhancedSessionStore]:
    with open_store(blocking, legacy, relay=SHORT) as found:
        yield found


def messages(text: str) -> list[dict[str, Any]]:
    return [{"content": one} for one in text]


def die_before_writing(store: EnhancedSessionStore) -> None:
    """Take every lease that is due, as a relay that is dead before it has written anything."""
    claimed = store._flows.outbox.claim("the dead", sessions=5, lease_seconds=0.3)
    assert store.memory_manager._runtime.run(claimed)


@given(older=WORDS, imported=st.booleans(), relayed=WORDS, pending=WORDS, data=st.data())
def test_never_more_is_believed_than_was_written(
    older: str, imported: bool, relayed: str, pending: str, data: st.DataObject
) -> None:
    written = data.draw(st.integers(0, len(pending)))
    held = older + relayed + pending[:written]
    log = (older if imported else "") + relayed
    assert overlap(messages(held), messages(log), messages(pending)) <= written


@given(relayed=st.text("ab", min_size=1, max_size=6), number=st.integers(0, 4))
def test_what_repeats_nothing_is_placed_exactly(relayed: str, number: int) -> None:
    pending = "vwxy"
    assert overlap(messages(relayed + pending[:number]), messages(relayed), messages(pending)) == number


@pytest.mark.parametrize(("older", "before"), [((7,), ()), ((5, 7), ()), ((5,), (6,))])
def test_a_message_that_was_not_written_is_not_taken_for_an_older_one(
    store: EnhancedSessionStore, legacy: ListStore, older: tuple[int, ...], before: tuple[int, ...]
) -> None:
    legacy.sessions["s"] = [say(number) for number in older]
    for number in before:
        store.add_chat_message("s", say(number))
    assert store.settle()
    if before:
        legacy.sessions["s"] += [say(8), say(7)]  # by a program that has no adapter yet
    held = legacy.contents("s")
    store.add_chat_message("s", say(7))
    die_before_writing(store)
    found = contents(store.get_chat_history("s"))
    if (older, before) != ((7,), ()):  # that one looks like a session which is just being relayed
        assert found == [*held, "message 7"]
    assert store.settle()
    assert legacy.contents("s") == [*held, "message 7"]
    assert contents(store.get_chat_history("s")) == [*held, "message 7"]


@pytest.mark.parametrize("make", [ListStore, KnowingStore])
def test_a_session_that_begins_while_it_is_relayed_is_read_once(blocking: Backend, make: type[ListStore]) -> None:
    legacy = make()
    with open_store(blocking, legacy) as store:
        sent = [store.append("s", say(number)).message_id for number in range(3)]
        claimed = store._flows.outbox.claim("somebody slow", sessions=5, lease_seconds=30)
        assert store.memory_manager._runtime.run(claimed)
        for number in range(3):
            keywords = {"message_id": sent[number]} if make is KnowingStore else {}
            legacy.add_chat_message("s", say(number), **keywords)
            assert contents(store.get_chat_history("s")) == talk(0, 1, 2)
            assert contents(store.get_chat_history("s", 2)) == talk(1, 2)


def test_ids_tell_what_is_there_behind_a_history_that_was_not_imported(blocking: Backend) -> None:
    legacy = KnowingStore()
    legacy.sessions["s"] = [say(5), say(7)]
    with open_store(blocking, legacy, relay=SHORT) as store:
        sent = store.append("s", say(7)).message_id
        die_before_writing(store)
        assert contents(store.get_chat_history("s")) == talk(5, 7, 7)
        legacy.add_chat_message("s", say(7), message_id=sent)
        assert contents(store.get_chat_history("s")) == talk(5, 7, 7)
        assert store.settle()
        assert legacy.contents("s") == talk(5, 7, 7)


class Busy(ListStore):
    """Has ``meanwhile`` happen once, just before it is read."""

    meanwhile: Callable[[], None] | None = None

    def get_chat_history(self, session_id: str) -> Messages:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().get_chat_history(session_id)


class BusyKnowing(Busy, KnowingStore):
    """The same, and it knows ids."""


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize(("more", "relayed"), [(3, 5), (3, 4), (3, 3), (3, 2), (60, 62)])
@pytest.mark.parametrize("make", [Busy, BusyKnowing])
def test_what_is_said_and_relayed_while_somebody_reads_is_read_once(
    blocking: Backend, make: type[Busy], more: int, relayed: int, limit: int | None
) -> None:
    legacy = make()
    with open_store(blocking, legacy) as store:
        for number in range(3):
            store.append("s", say(number))
        assert store.settle()
        sent = [store.append("s", say(number)).message_id for number in (3, 4)]
        claimed = store._flows.outbox.claim("somebody slow", sessions=5, lease_seconds=30)
        assert store.memory_manager._runtime.run(claimed)

        def meanwhile() -> None:
            sent.extend(store.append("s", say(number)).message_id for number in range(5, 5 + more))
            for number in range(3, 3 + relayed):
                keywords = {"message_id": sent[number - 3]} if isinstance(legacy, KnowingStore) else {}
                legacy.add_chat_message("s", say(number), **keywords)

        legacy.meanwhile = meanwhile
        found = contents(store.get_chat_history("s", limit))
        assert len(sent) == 2 + more, "it happened while it was read"
        shown = talk(*range(max(5, 3 + relayed)))
        assert found == (shown if limit is None else shown[-limit:])


def test_what_a_relay_wrote_is_found_behind_what_fits_in_beside_other_sessions(
    blocking: Backend, legacy: ListStore
) -> None:
    with open_store(blocking, legacy, relay=SHORT) as store:
        store.append("s", say(0))
        assert store.settle()
        for number in range(1, 6):
            store.append("s", say(number))
        die_before_writing(store)
        for number in range(1, 5):  # the relay had written these when it died
            legacy.add_chat_message("s", say(number))
        long = {"role": "user", "content": "x" * (BYTES // 5 - 45)}  # leaves room for some of the others
        time.sleep(SHORT.lease_seconds)
        with psycopg.connect(plain_url(store.memory_manager.config)) as connection:
            connection.execute(
                "UPDATE memory_relays SET due_at = now() + interval '1 second' WHERE tenant = %s", (blocking.tenant,)
            )
        for _ in range(5):
            store.append("long", long)
        time.sleep(1.0)
        assert store.settle()
        assert legacy.contents("s") == talk(*range(6))
        assert len(legacy.contents("long")) == 5


def test_ids_tell_so_too_where_the_doubt_arises_while_it_is_read(blocking: Backend) -> None:
    legacy = BusyKnowing()
    legacy.sessions["s"] = [say(5), say(7)]
    with open_store(blocking, legacy) as store:
        sent = store.append("s", say(7)).message_id

        def meanwhile() -> None:
            claimed = store._flows.outbox.claim("one that dies", sessions=5, lease_seconds=0.0)
            assert store.memory_manager._runtime.run(claimed)
            legacy.add_chat_message("s", say(7), message_id=sent)

        legacy.meanwhile = meanwhile
        assert contents(store.get_chat_history("s")) == talk(5, 7, 7)
        assert legacy.contents("s") == talk(5, 7, 7)
