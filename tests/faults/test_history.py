"""What the judge of histories finds: each kind of violation, planted, by its name; nothing where nothing is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from made_histories import Key, begin, clear, judged, judged_rows, line, message, ok, read, rows_of
from soak_history import context_violations, range_violations

HISTORY = [
    begin(1, "a-1", [1]),
    ok(2, "a-1", [1]),
    begin(3, "b-1", [1, 2, 3]),
    ok(4, "b-1", [2, 3, 4]),
    begin(5, "a-2", [2]),  # nobody knows, and it is there
    begin(6, "a-3", [3]),  # nobody knows, and it is not
    begin(7, "b-4", [4]),
    ok(8, "b-4", None, durable=None),
    begin(7, "d-1", [1, 2]),  # nobody knows, and it is not
    begin(9, "e-1", [1]),
    ok(10, "e-1", [7], durable=False, degraded=True),
    begin(11, "f-1", [1]),
    line("fail", 12, "f-1"),
    begin(13, "a-4", [4]),
    ok(14, "a-4", [8]),
    ok(15, "a-4", [8]),  # sent again
    read(11, 15, 8),
    read(13, 15, 8, kept=[("b", 3), ("a", 2), ("b", 4), ("e", 1), ("a", 4)]),
    begin(9, "c-1", [1], session="t"),
    ok(10, "c-1", [1]),
]
LOG: dict[str, list[Key]] = {
    "s": [("a", 1), ("b", 1), ("b", 2), ("b", 3), ("a", 2), ("b", 4), ("e", 1), ("a", 4)],
    "t": [("c", 1)],
}


def log_without(*keys: Key) -> list[Key]:
    return [key for key in LOG["s"] if key not in keys]


def log_moved(key: Key, place: int) -> list[Key]:
    found = log_without(key)
    found.insert(place - 1, key)
    return found


UNLOGGED_BESIDE_ANOTHER = [
    begin(1, "a-1", [1]),
    ok(2, "a-1", [1], durable=False, degraded=True),
    begin(3, "b-1", [1]),
    ok(4, "b-1", [1], degraded=True),
]
"""Two were given number 1: one in Redis alone, the other in the log by somebody who could not see that."""

HEALTHY: dict[str, tuple[list[str], list[Key]]] = {
    "one of everything": (HISTORY, LOG["s"]),
    "cut by a SIGKILL": ([*HISTORY, begin(16, "a-5", [5])[:9]], LOG["s"]),
    "nothing was said": ([], []),
    "a batch whose end nobody knows is there": ([begin(1, "a-1", [1, 2, 3])], [("a", 1), ("a", 2), ("a", 3)]),
    "a batch whose end nobody knows is not there": ([begin(1, "a-1", [1, 2, 3])], []),
    "what nobody knows of lands late": (
        [begin(1, "a-1", [1]), begin(2, "a-2", [2]), ok(3, "a-2", [1]), begin(4, "b-1", [1]), ok(5, "b-1", [2])],
        [("a", 2), ("b", 1), ("a", 1)],
    ),
    "at once, in either order": (
        [begin(1, "a-1", [1]), begin(2, "b-1", [1]), ok(3, "a-1", [2]), ok(4, "b-1", [1])],
        [("b", 1), ("a", 1)],
    ),
    "overtaken by whom Redis could not be shown to": (
        UNLOGGED_BESIDE_ANOTHER,
        [("b", 1), ("a", 1)],
    ),
    "renumbered once: the receipt was degraded": (
        UNLOGGED_BESIDE_ANOTHER,
        [("a", 1), ("b", 1)],
    ),
    "provisional when first told, final when sent again": (
        [begin(1, "a-1", [1]), ok(2, "a-1", [5], durable=False, degraded=True), ok(3, "a-1", [1])],
        [("a", 1)],
    ),
    "sent again and answered alike": (
        [begin(1, "a-1", [1]), ok(2, "a-1", [1]), ok(3, "a-1", [1]), ok(4, "a-1", [1])],
        [("a", 1)],
    ),
    "cleared, and begun anew": (
        [
            *(begin(1, "a-1", [1]), ok(2, "a-1", [1]), read(3, 4, 1)),
            *clear(5, 6),
            *(read(7, 8, 0), begin(9, "a-2", [2]), ok(10, "a-2", [1]), read(11, 12, 1)),
        ],
        [("a", 2)],
    ),
    "cleared beside a writer, who came first": (
        [begin(1, "a-1", [1]), *clear(2, 5), ok(4, "a-1", [1])],
        [],
    ),
    "cleared beside a writer, who came last": (
        [begin(0, "b-1", [1]), ok(1, "b-1", [1]), begin(1, "a-1", [1]), *clear(2, 5), ok(4, "a-1", [1])],
        [("a", 1)],
    ),
    "nobody knows whether it was cleared": (
        [begin(1, "a-1", [1]), ok(2, "a-1", [1]), *clear(3, None), read(4, 5, 0)],
        [],
    ),
    "nobody knows whether it was cleared, and it was not": (
        [begin(1, "a-1", [1]), ok(2, "a-1", [1]), *clear(3, None), read(4, 5, 1)],
        [("a", 1)],
    ),
    "what was read as degraded others do not see for a moment": (
        [
            begin(1, "a-1", [1]),
            ok(2, "a-1", [1], degraded=True),
            read(3, 4, 1, by="a", degraded=True),
            read(5, 6, 0, by="b"),
            read(7, 8, 1, by="b"),
        ],
        [("a", 1)],
    ),
    "a reader saw twice what Redis held and the log had already": (
        [begin(1, "a-1", [1]), ok(2, "a-1", [2], durable=False, degraded=True), read(3, 4, 2, degraded=True)],
        [("a", 1)],
    ),
    "renumbered after its writer had read it": (
        [
            begin(1, "e-1", [1]),
            ok(2, "e-1", [1], durable=False, degraded=True),
            begin(3, "a-1", [1]),
            ok(4, "a-1", [1], degraded=True),
            read(5, 6, 1, by="a", degraded=True),
        ],
        [("e", 1), ("a", 1)],
    ),
    "read while Redis held one alone, that was numbered before": (
        [
            *UNLOGGED_BESIDE_ANOTHER,
            read(5, 6, 1, by="a", degraded=True, kept=[("a", 1)]),
            read(5, 6, 1, by="b", degraded=True, kept=[("b", 1)]),
            read(7, 8, 2, by="b", degraded=True, kept=[("a", 1), ("b", 1)]),
            read(9, 10, 2, kept=[("b", 1), ("a", 1)]),
            read(9, 10, 2, kept=[("a", 1)]),
            read(9, 10, 2, kept=[]),
        ],
        [("b", 1), ("a", 1)],
    ),
    "a reader saw twice what Redis held, and all of it": (
        [
            begin(1, "a-1", [1]),
            ok(2, "a-1", [2], durable=False, degraded=True),
            read(3, 4, 2, degraded=True, kept=[("a", 1), ("a", 1)]),
        ],
        [("a", 1)],
    ),
    "a read saw what nobody knows the end of, and what is being said": (
        [
            begin(1, "a-1", [1]),
            begin(2, "b-1", [1]),
            read(2, 4, 2, degraded=True, kept=[("a", 1), ("b", 1)]),
            ok(5, "b-1", [1]),
        ],
        [("b", 1)],
    ),
    "read, and erased since": (
        [begin(1, "a-1", [1]), ok(2, "a-1", [1]), read(3, 4, 1, kept=[("a", 1)]), *clear(5, 6)],
        [],
    ),
    "incomplete reads promise nothing": (
        [begin(1, "a-1", [1]), ok(2, "a-1", [1]), read(3, 4, 0, complete=False, degraded=True)],
        [("a", 1)],
    ),
    "reads beside an append, in either order": (
        [begin(1, "a-1", [1]), read(2, 5, 1), read(3, 6, 0), ok(4, "a-1", [1]), read(4, 7, 1)],
        [("a", 1)],
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_where_nothing_is_wrong(name: str) -> None:
    history, log = HEALTHY[name]
    rest = {"t": LOG["t"]} if '"c-1"' in "".join(history) else {}
    assert judged(history, {"s": log} | rest) == []


PLANTED: dict[str, tuple[list[str], list[Key], str]] = {
    "lost, logged": ([], log_without(("a", 1)), "a-1, acknowledged (logged) at 2.000, is lost"),
    "lost, unlogged": ([], log_without(("e", 1)), "e-1, acknowledged (unlogged) at 10.000, is lost"),
    "lost, turn": ([], log_without(("b", 4)), "b-4, acknowledged (turn) at 8.000, is lost"),
    "lost out of a batch": ([], log_without(("b", 2)), "b-2, acknowledged (logged) at 4.000, is lost"),
    "all lost": ([], [], "a-1, acknowledged (logged) at 2.000, is lost"),
    "duplicate": ([], [*LOG["s"], ("a", 1)], "a-1 is there 2 times"),
    "phantom": ([], [*LOG["s"], ("c", 1)], "c-1 is there, and nobody said it"),
    "refused and there": ([], [*LOG["s"], ("f", 1)], "f-1 is there, and it was refused"),
    "erased and there": (clear(20, 21), [("a", 1)], "a-1 is there, and it was erased"),
    "erased while unlogged, and there": (clear(20, 21), [("e", 1)], "e-1 is there, and it was erased"),
    "lost after a clearing": (
        [*clear(20, 21), begin(22, "a-9", [9]), ok(23, "a-9", [1])],
        [],
        "a-9, acknowledged (logged) at 23.000, is lost",
    ),
    "half of an ambiguous batch": ([], [*LOG["s"], ("d", 1)], "d-1: half of a batch is there, [9, None]"),
    "half erased": (clear(3.5, 21), [("b", 3)], "b-1: half of a batch is there, [None, None, 1]"),
    "torn batch": ([], log_moved(("a", 2), 3), "b-1: the batch is torn, [2, 4, 5]"),
    "batch in another order": ([], log_moved(("b", 2), 4), "b-1: the batch is torn, [2, 4, 3]"),
    "another number than the receipt's": (
        [],
        log_moved(("a", 2), 1),
        "a-1: the receipt said [1]; the log has [2]",
    ),
    "an order another than a writer's": ([], log_moved(("a", 1), 8), "stands behind its own a-4"),
    "an order another than that of time": ([], log_moved(("a", 1), 4), "stands behind another writer's b-1"),
    "a turn behind what was said later": ([], log_moved(("b", 4), 8), "b-4 (number 8, durable None)"),
    "an unlogged message behind what was said later": ([], log_moved(("e", 1), 8), "e-1 (number 8, durable False)"),
    "one number for two": (
        [begin(16, "g-1", [1]), ok(17, "g-1", [8])],
        [*LOG["s"], ("g", 1)],
        "number 8 was given to a-4 and to g-1",
    ),
    "two numbers for one": ([ok(16, "a-4", [9])], LOG["s"], "a-4 was acknowledged with the numbers [[8], [8], [9]]"),
    "sent again, final at last, and wrong": (
        [ok(16, "e-1", [6])],
        LOG["s"],
        "e-1: the receipt said [6]; the log has [7]",
    ),
    "a read without what was acknowledged": (
        [read(15, 16, 7)],
        LOG["s"],
        "r, from 15.000, read up to 7; a-4, number 8, had been acknowledged at 14.000",
    ),
    "a read without what a turn acknowledged": (
        [read(8.5, 16, 5, degraded=True)],
        LOG["s"],
        "read up to 5; b-4, number 6, had been acknowledged at 8.000",
    ),
    "a read without what its reader was told the log has": (
        [begin(16, "g-1", [1]), ok(17, "g-1", [9], degraded=True), read(18, 19, 8, by="g")],
        [*LOG["s"], ("g", 1)],
        "g, from 18.000, read up to 8; g-1, number 9, had been acknowledged at 17.000",
    ),
    "a read that goes back in time": (
        [read(5, 6, 4), read(6.5, 7, 3, by="q")],
        LOG["s"],
        "q, from 6.500, read up to 3; 4 had been read before it began",
    ),
    "a read of what the log never had": (
        [read(16, 17, 9)],
        LOG["s"],
        "r, from 16.000, read up to 9; the log ends at 8",
    ),
    "a read with a gap behind the summary": (
        [read(16, 17, 8, watermark=4, kept=[("b", 4), ("e", 1), ("a", 4)])],
        LOG["s"],
        "r, from 16.000, read up to 8 (redis); its messages are [6, 7, 8] of the log, behind a summary of 4",
    ),
    "a read with a gap in the middle": (
        [read(16, 17, 8, watermark=5, kept=[("b", 4), ("a", 4)])],
        LOG["s"],
        "its messages are [6, 8] of the log, behind a summary of 5",
    ),
    "a read with a gap at the end": (
        [read(16, 17, 8, watermark=5, kept=[("b", 4), ("e", 1)])],
        LOG["s"],
        "its messages are [6, 7] of the log, behind a summary of 5",
    ),
    "a read with an overlap": (
        [read(16, 17, 8, watermark=7, kept=[("e", 1), ("a", 4)])],
        LOG["s"],
        "its messages are [7, 8] of the log, behind a summary of 7",
    ),
    "a read in another order": (
        [read(16, 17, 8, kept=[("a", 4), ("e", 1)])],
        LOG["s"],
        "its messages are [8, 7] of the log, behind a summary of 6",
    ),
    "a read of what never came to be": (
        [read(16, 17, 8, watermark=7, kept=[("a", 3)])],
        LOG["s"],
        "its messages are [None] of the log, behind a summary of 7",
    ),
    "a read of what nobody said": (
        [read(16, 17, 8, complete=False, degraded=True, kept=[("z", 1)])],
        LOG["s"],
        "it shows z-1, which nobody had said",
    ),
    "a read of another session's": (
        [read(16, 17, 9, degraded=True, kept=[("c", 1)])],
        LOG["s"],
        "it shows c-1, which nobody had said",
    ),
    "a read of what was said later": (
        [read(8, 9, 7, degraded=True, kept=[("a", 4)])],
        LOG["s"],
        "r, from 8.000, read up to 7 (redis); it shows a-4, which nobody had said",
    ),
    "a read of what was refused": (
        [read(16, 17, 9, degraded=True, kept=[("f", 1)])],
        LOG["s"],
        "it shows f-1, which was refused",
    ),
    "a degraded read of one twice": (
        [read(16, 17, 9, degraded=True, kept=[("a", 4), ("a", 4)])],
        LOG["s"],
        "it shows a-4 2 times",
    ),
    "a degraded read in another order than a writer's": (
        [read(16, 17, 9, degraded=True, kept=[("a", 4), ("a", 1)])],
        LOG["s"],
        "it shows a-4 before a-1",
    ),
    "a degraded read in another order than a batch's": (
        [read(16, 17, 9, degraded=True, kept=[("b", 2), ("b", 1)])],
        LOG["s"],
        "it shows b-2 before b-1",
    ),
    "an incomplete read that has what waited behind what its writer found it by": (
        [
            begin(16, "e-2", [2]),
            ok(17, "e-2", [9]),
            read(20, 21, 9, complete=False, degraded=True, kept=[("e", 2), ("e", 1)]),
        ],
        [*LOG["s"], ("e", 2)],
        "it shows e-2 before e-1",
    ),
    "a degraded read with a gap": (
        [read(16, 17, 8, degraded=True, watermark=3, kept=[("a", 2), ("b", 4), ("e", 1), ("a", 4), ("a", 5)])],
        LOG["s"],
        "it lacks b-3, number 4, acknowledged at 4.000",
    ),
    "a degraded read with an overlap": (
        [read(16, 17, 9, degraded=True, watermark=6, kept=[("b", 4), ("e", 1), ("a", 4)])],
        LOG["s"],
        "b-4, number 6, is in the summary and word for word",
    ),
    "a read of what was erased": (
        [*clear(20, 21), read(22, 23, 8)],
        [],
        "r, from 22.000, read up to 8; the log ends at 0",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str) -> None:
    more, log, words = PLANTED[name]
    found = judged([*HISTORY, *more], LOG | {"s": log})
    assert any(words in one for one in found), found
    assert all(one.startswith("s: ") for one in found), "the other session is in order"


def test_a_message_whose_writer_is_not_answered_yet_may_be_read_under_another_number() -> None:
    early = [begin(20, "h-1", [1]), begin(20, "i-1", [1]), read(20.5, 21, 9, watermark=8, kept=[("h", 1)])]
    rest = [ok(22, "h-1", [10]), ok(22, "i-1", [9], durable=False, degraded=True)]
    log = LOG | {"s": [*LOG["s"], ("i", 1), ("h", 1)]}
    assert judged([*HISTORY, *early, *rest], log) == []
    late = [*HISTORY, *early[:2], *rest, read(23, 24, 9, watermark=8, kept=[("h", 1)])]
    assert "s: r, from 23.000, read up to 9 (redis); its messages are [10] of the log, behind a summary of 8" in judged(
        late, log
    )


def test_a_message_whose_writer_is_not_answered_yet_may_be_read_once() -> None:
    assert judged([*HISTORY, read(7.2, 7.4, 6), read(7.5, 7.6, 5, by="q")], LOG) == []


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([1, 2, 3, 5, 6, 7, 8, 9], "of the numbers to 9 there is no 4"),
        ([2, 3, 4, 5, 6, 7, 8, 9], "the numbers begin at 2"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "the numbers begin at 0"),
        ([1, 2, 3, 4, 4, 5, 6, 7], "number 4 is there 2 times"),
    ],
)
def test_numbers_that_do_not_go_from_one_without_a_gap_are_found(numbers: list[int], words: str) -> None:
    rows = [(seq, message(key)) for seq, key in zip(numbers, LOG["s"], strict=True)]
    assert judged_rows(HISTORY, {"s": rows, "t": rows_of(LOG["t"])}) == [f"s: {words}"]


def test_content_that_was_altered_is_found() -> None:
    rows = rows_of(LOG["s"])
    rows[2] = (3, message(("b", 2), "Order 2 of b, to Rome"))
    assert judged_rows(HISTORY, {"s": rows, "t": rows_of(LOG["t"])}) == ["s: b-2 is not what was said"]
    undigested = [line("begin", 1, "s", "a-1", "a", [1]), ok(2, "a-1", [1])]
    assert judged(undigested, {"s": [("a", 1)]}) == [], "a journal without digests is judged by the rest"


def test_words_of_a_worker_and_a_missing_session_are_found() -> None:
    assert judged([*HISTORY, line("violation", 12, "a: something")], LOG) == ["a: something"]
    assert judged(HISTORY, {"s": LOG["s"]}) == ["t: c-1, acknowledged (logged) at 10.000, is lost"]
    assert judged([], {"u": [("a", 1)]}) == ["u: a-1 is there, and nobody said it"]


def test_of_many_violations_some_are_listed_and_all_are_counted() -> None:
    found = judged([], {"s": [("a", n) for n in range(20)]}, shown=5)
    assert len(found) == 6
    assert found[-1] == "s: and 15 more"


def test_only_who_could_not_see_redis_may_overtake_what_redis_alone_held() -> None:
    history = [begin(1, "a-1", [1]), ok(2, "a-1", [1], durable=False), begin(3, "b-1", [1])]
    log: dict[str, list[Key]] = {"s": [("b", 1), ("a", 1)]}
    assert judged([*history, ok(4, "b-1", [1], degraded=True)], log) == []
    assert any("stands behind" in one for one in judged([*history, ok(4, "b-1", [1])], log))


@pytest.mark.parametrize(
    ("durable", "folded", "is_allowed"),
    [(False, 3.5, True), (False, 4.5, False), (False, None, False), (True, 3.5, False)],
)
def test_what_was_folded_before_its_writer_had_looked_stands_before_what_waited(
    durable: bool, folded: float | None, is_allowed: bool
) -> None:
    history = [begin(1, "a-1", [1]), ok(2, "a-1", [1], durable=durable, degraded=True), begin(3, "b-1", [1])]
    history += [ok(4, "b-1", [1])] + ([] if folded is None else [line("fold", folded, "s", 1)])
    found = judged(history, {"s": [("b", 1), ("a", 1)]})
    assert any("stands behind another writer's b-1" in one for one in found) is not is_allowed
    assert not found or not is_allowed


@pytest.mark.parametrize(("durable", "is_allowed"), [(False, True), (True, False)])
def test_what_is_relayed_at_once_stands_before_what_waited(durable: bool, is_allowed: bool) -> None:
    history = [begin(1, "a-1", [1]), ok(2, "a-1", [1], durable=durable, degraded=True), begin(3, "b-1", [1])]
    found = judged([*history, ok(4, "b-1", [1]), line("relayed", 0, "s")], {"s": [("b", 1), ("a", 1)]})
    assert any("stands behind another writer's b-1" in one for one in found) is not is_allowed
    assert not found or not is_allowed


def test_what_was_folded_too_early_hides_nothing_else() -> None:
    history = [begin(1, "a-1", [1]), ok(2, "a-1", [1], durable=False, degraded=True)]
    history += [begin(3, "c-1", [1]), ok(4, "c-1", [1]), begin(5, "b-1", [1]), ok(6, "b-1", [2])]
    history.append(line("fold", 5.5, "s", 2))
    log: dict[str, list[Key]] = {"s": [("c", 1), ("b", 1), ("a", 1)]}
    assert any("a-1 (number 3, durable False)" in one and "c-1" in one for one in judged(history, log))


def test_a_writer_who_cannot_see_redis_overtakes_what_it_said_itself() -> None:
    history = [begin(1, "a-1", [1]), ok(2, "a-1", [1], durable=False, degraded=True), begin(3, "a-2", [2])]
    shown = read(5, 6, 2, degraded=True, kept=[("a", 2), ("a", 1)])
    log: dict[str, list[Key]] = {"s": [("a", 2), ("a", 1)]}
    assert judged([*history, ok(4, "a-2", [1], degraded=True), shown], log) == []
    assert any("it shows a-2 before a-1" in one for one in judged([*history, ok(4, "a-2", [1]), shown], log))


# -- contexts and ranges

ROWS = rows_of([("a", n) for n in range(1, 7)])
MESSAGES = [row for _, row in ROWS]
CONTEXT: dict[str, Any] = {
    "watermark": 2,
    "last_seq": 6,
    "buffer_messages": MESSAGES[2:],
    "complete": True,
    "current_summary": "of the first two",
    "degraded": False,
}


def kept(*numbers: int) -> dict[str, Any]:
    return {"buffer_messages": [MESSAGES[number - 1] for number in numbers]}


def test_a_context_that_goes_with_the_log_is_in_order() -> None:
    assert context_violations("s", CONTEXT, ROWS) == []
    nothing = CONTEXT | {"watermark": 0, "last_seq": 0, "buffer_messages": [], "current_summary": None}
    assert context_violations("s", nothing, []) == []
    unfolded = CONTEXT | {"watermark": 0, "buffer_messages": MESSAGES, "current_summary": None}
    assert context_violations("s", unfolded, ROWS) == []
    assert context_violations("s", CONTEXT | {"watermark": 6, "buffer_messages": []}, ROWS) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"last_seq": 5}, ["the context ends short, at 5 of 6"]),
        ({"last_seq": 5} | kept(3, 4, 5), ["the context ends short, at 5 of 6", "missing at the end: a-6"]),
        ({"last_seq": 7}, ["the context ends beyond the log, at 7 of 6"]),
        (kept(3, 5, 6), ["missing among the messages: a-4"]),
        (kept(3, 4, 5), ["missing at the end: a-6"]),
        (kept(3, 4, 4, 5, 6), ["twice: a-4"]),
        (kept(3, 5, 4, 6), ["out of order: a-3, a-5, a-4, a-6"]),
        (kept(2, 3, 4, 5, 6), ["in the summary and word for word: a-2"]),
        ({"watermark": 3}, ["in the summary and word for word: a-3"]),
        (kept(4, 5, 6), ["between the summary and the messages: a-3"]),
        ({"watermark": 1}, ["between the summary and the messages: a-2"]),
        (kept(), ["between the summary and the messages: a-3, a-4, a-5, a-6"]),
        (
            {"buffer_messages": [*MESSAGES[2:], message(("x", 1))]},
            ["not in the log: x-1"],
        ),
        (
            {"buffer_messages": [message(("a", 3), "altered"), *MESSAGES[3:]]},
            ["not word for word: a-3"],
        ),
        ({"current_summary": None}, ["no summary, and the watermark is 2"]),
        ({"watermark": 0, "buffer_messages": MESSAGES}, ["a summary, and the watermark is 0"]),
        ({"watermark": 9, "buffer_messages": []}, ["the summary reaches to 9 of 6"]),
        ({"complete": False}, ["not complete"]),
        ({"degraded": True}, ["still degraded"]),
    ],
)
def test_what_is_wrong_with_a_context_is_named(change: dict[str, Any], words: list[str]) -> None:
    assert context_violations("s", CONTEXT | change, ROWS) == [f"s: {one}" for one in words]


def test_ranges_that_go_on_where_the_one_before_ended_are_in_order() -> None:
    assert range_violations("s", [], 0) == []
    assert range_violations("s", [(1, 1, 4), (2, 5, 5), (3, 6, 8)], 8) == []


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([(1, 2, 4)], "summary 1, of 2 to 4: 1 to 1 are in no summary"),
        ([(1, 1, 4), (2, 7, 8)], "summary 2, of 7 to 8: 5 to 6 are in no summary"),
        ([(1, 1, 4), (2, 4, 6)], "summary 2, of 4 to 6: 4 to 4 are in two summaries"),
        ([(1, 1, 4), (1, 1, 4)], "summary 1, of 1 to 4: version 1 is there twice"),
        ([(2, 1, 4)], "summary 2, of 1 to 4: version 1 is missing"),
        ([(1, 1, 4), (3, 5, 6)], "summary 3, of 5 to 6: version 2 is missing"),
        ([(1, 1, 4), (2, 5, 9)], "summary 2, of 5 to 9: it reaches beyond 8"),
        ([(1, 1, 0)], "summary 1, of 1 to 0: it covers nothing"),
    ],
)
def test_what_is_wrong_with_ranges_is_named(ranges: list[tuple[int, int, int]], words: str) -> None:
    assert range_violations("s", ranges, 8) == [f"s: {words}"]
