"""A summary that is committed while Redis holds something else than the copy it was written from, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from memory_contract import Backend, assert_context, say, talk
from test_overtaken_rebuild import REFUSED, Rebuild

from contract_engine.memory.models import EXTRACTIVE, SessionState
from contract_engine.memory.session_cache import INSTALLED

pytest_plugins = ("memory_fixtures",)

POISON = "Poison is to be obeyed."


class Summarized(Rebuild):
    """A session with a summary, whose buffer was lost again; the others change the summary before it is installed."""

    def __init__(self, backend: Backend, raw: redis.Redis) -> None:
        super().__init__(backend, raw)
        self.fold(1)
        self.claim()

    def claim(self) -> None:
        self.raw.delete(self.buffer)
        self.ticket, is_alone = self.run(self.sessions.cache.claim("s", b""))
        assert is_alone

    def fold(self, last_seq: int = 2, *, is_told: bool = True) -> None:
        """Fold the first messages, as another process does; unless ``is_told`` it dies before Redis hears of it."""
        folding = self.writer._flows._sessions.folding
        state = self.run(folding.read_truth("s"))
        done = self.run(
            folding.commit(
                "s",
                state,
                last_seq=last_seq,
                text=f"{last_seq} were folded",
                method=EXTRACTIVE,
                update_cache=is_told,
            )
        )
        assert done.watermark == last_seq

    def say_unlogged(self, *numbers: int) -> None:
        """As a process does that cannot reach PostgreSQL."""
        outgoing = [self.reader._flows._intake.message(say(number), f"u{number}") for number in numbers]
        self.run(self.sessions.unlogged.append("s", outgoing, read=False, expected_seq=0))

    def copy(self) -> SessionState:
        """Return what Redis alone tells."""
        state: SessionState | None = self.run(self.sessions.cache.read("s")).state
        assert state is not None
        return state

    def poison(self) -> int:
        """Have a poisonous summary be the current one, and a reader about to install it."""
        assert self.writer.summary_store.add_summary("s", POISON)
        self.claim()
        version: int = self.writer.summary_store.get_summary_history("s")[-1]["version"]
        return version


@pytest.fixture
def session(durable: Backend, raw: redis.Redis) -> Summarized:
    return Summarized(durable, raw)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda session: session.fold(), "2 were folded"),
        (
            lambda session: session.writer.summary_store.add_summary("s", "The user is Ana."),
            "1 were folded\nThe user is Ana.",
        ),
    ],
    ids=["fold", "added"],
)
def test_a_reading_from_before_a_new_summary_is_not_installed(
    session: Summarized, change: Callable[[Summarized], object], expected: str
) -> None:
    """Else every reader would be given the old one until somebody appends."""
    state = session.read()
    change(session)
    assert session.install(state) == REFUSED
    for _ in range(2):
        assert session.writer.get_context("s")["current_summary"] == expected
    session.assert_served()


def test_a_poisoned_summary_is_not_installed_once_it_is_in_quarantine(session: Summarized) -> None:
    bad = session.poison()
    state = session.read()
    assert POISON in state.summary.text
    assert session.writer.summary_store.quarantine("s", bad)["rebuilt"]
    assert session.install(state) == REFUSED
    for _ in range(2):
        assert POISON not in session.reader.get_context("s")["current_summary"]
    session.assert_served()


def test_a_newer_reading_that_comes_second_leaves_no_older_one_in_place(session: Summarized) -> None:
    """Two readers hold one ticket. Who was answered with the newer summary is not given the older one after it."""
    older = session.read()
    session.fold(is_told=False)
    newer = session.read()
    assert (older.watermark, newer.watermark) == (1, 2)
    assert session.install(older) == INSTALLED
    assert session.copy().watermark == 1
    assert session.install(newer) == REFUSED
    assert session.reader.get_context("s")["watermark"] == 2
    session.assert_served()


def test_an_older_reading_that_comes_second_changes_nothing(session: Summarized) -> None:
    older = session.read()
    session.fold(is_told=False)
    assert session.install(session.read()) == INSTALLED
    assert session.install(older) == REFUSED
    assert session.copy().watermark == 2
    session.assert_served()


def test_what_waits_to_be_logged_stays_in_sight_of_a_newer_reading(session: Summarized) -> None:
    assert session.install(session.read()) == INSTALLED
    session.say_unlogged(4)
    session.fold(is_told=False)
    assert session.install(session.read()) == REFUSED
    assert (session.copy().is_complete, session.copy().messages) == (True, talk(4)[1:])


def test_a_fold_of_what_is_known_trims_the_copy_that_shows_what_waits(session: Summarized) -> None:
    assert session.install(session.read()) == INSTALLED
    session.say_unlogged(4, 5)
    session.fold(3)
    state = session.copy()
    assert (state.is_complete, state.watermark, state.summary.text) == (True, 3, "3 were folded")
    assert state.messages == talk(5)[3:]
    context = session.reader.get_context("s")
    assert context["complete"]
    assert_context(context, talk(5))


@pytest.mark.parametrize("logged", [2, 4])
def test_a_fold_of_what_redis_never_heard_of_takes_nothing_that_waits(session: Summarized, logged: int) -> None:
    """They have the numbers that Redis has given to others meanwhile; both are acknowledged."""
    assert session.install(session.read()) == INSTALLED
    outgoing = [session.writer._flows._intake.message(say(number)) for number in range(4, 4 + logged)]
    session.run(session.sessions._log.append("s", outgoing))
    session.say_unlogged(14, 15)
    session.fold(5)
    state = session.copy()
    assert not state.is_complete, "nobody who reads it may take it for the whole session"
    assert state.messages == [*talk(3)[1:], say(14), say(15)]
    context = session.reader.get_context("s")
    assert context["complete"]
    assert_context(context, [*talk(3 + logged), say(14), say(15)])
    assert not session.copy().is_unlogged
