"""Places for connections: none is lost or lent twice, and who asked first is served first."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Full
from typing import Any

import pytest
from server_faults import waited_for

from contract_engine.memory._runtime.places import Places

PATIENCE_SECONDS = 60


def test_what_came_back_last_is_taken_first_and_an_empty_place_last() -> None:
    places = Places[str](3)
    assert [places.get(timeout=0) for _ in range(3)] == [None] * 3
    for thing in ("one", None, "two"):
        places.put_nowait(thing)
    with pytest.raises(Full):
        places.put_nowait("three")
    assert [places.get(timeout=0) for _ in range(3)] == ["two", "one", None]
    with pytest.raises(Empty):
        places.get(timeout=0.01)


def test_who_gives_a_place_back_and_wants_one_again_does_not_overtake() -> None:
    places, order = Places[str](1), list[int]()
    places.put_nowait(places.get(timeout=0) or "thing")

    def work(worker: int) -> None:
        thing = places.get(timeout=PATIENCE_SECONDS)
        order.append(worker)
        places.put_nowait(thing)

    taken = places.get(timeout=0)
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for number, thread in enumerate(threads):
        thread.start()
        assert waited_for(lambda number=number: len(places._line) == number + 1)  # type: ignore[misc]  # bound as a default
    places.put_nowait(taken)
    work(8)
    for thread in threads:
        thread.join()
    assert order == list(range(9))
    assert places.get(timeout=0) == "thing"


def test_who_comes_while_a_place_is_on_its_way_to_the_line_does_not_take_it() -> None:
    places, order = Places[str](1), list[str]()

    def work(name: str) -> None:
        order.append(f"{name} {places.get(timeout=PATIENCE_SECONDS)}")
        places.put_nowait(None)

    def start(target: Callable[..., object], *args: object) -> threading.Thread:
        threads.append(threading.Thread(target=target, args=args))
        threads[-1].start()
        return threads[-1]

    threads: list[threading.Thread] = []
    assert places.get(timeout=0) is None
    start(work, "first")
    assert waited_for(lambda: len(places._line) == 1)
    with places._line_moves:
        start(places.put_nowait, "thing")
        assert waited_for(lambda: len(places.queue) == 1)
        start(work, "second").join(0.05)
    for thread in threads:
        thread.join()
    assert order == ["first thing", "second None"]


def test_what_comes_back_between_a_look_and_the_line_is_found() -> None:
    class Late(deque[Any]):
        def pop(self) -> Any:  # type: ignore[override]  # a deque has no index to pop either
            try:
                return super().pop()
            except IndexError:
                if not places._line:
                    places.put_nowait("thing")
                raise

    places = Places[str](1)
    places.queue = Late()
    assert places.get(timeout=0) == "thing"


def test_who_gives_up_waiting_takes_no_place_along() -> None:
    """Threads that wait for next to no time, so that many are given a place in the moment in which they leave."""
    places, lent, served = Places[int](2), set[int](), list[int]()
    assert [places.get(timeout=0) for _ in range(2)] == [None] * 2
    places.put_nowait(1)
    places.put_nowait(2)

    def work(worker: int) -> None:
        chance = random.Random(worker)
        for _ in range(300):
            try:
                thing = places.get(timeout=chance.choice((0, 1e-6, 1e-5, 1e-4)))
            except Empty:
                continue
            assert thing is not None
            assert thing not in lent, "lent twice"
            lent.add(thing)
            served.append(thing)
            threading.Event().wait(1e-5)
            lent.remove(thing)
            places.put_nowait(thing)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [None] * 16
    assert 0 < len(served) < 16 * 300, "all of them were served, or none"
    assert {places.get(timeout=0), places.get(timeout=0)} == {1, 2}
    assert not places._line
