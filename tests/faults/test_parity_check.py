"""Parity: every kind of difference is found and named, and nothing else is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from legacy_tables import Older, said
from typer.testing import CliRunner

from contract_engine.cli.app import app
from contract_engine.cli.servers import ADDRESS_VARIABLES
from contract_engine.memory import MemoryManager
from contract_engine.memory.legacy_messages import content_digest
from contract_engine.memory.parity import MOST_ALIGNED, Difference, Kind, compare, mark, summed

pytest_plugins = ("legacy_fixtures",)

Messages = list[dict[str, Any]]


def differences(legacy: Messages | None, new: Messages | None) -> list[Difference]:
    marks = [None if side is None else [mark(message) for message in side] for side in (legacy, new)]
    return compare("s", *marks)


def kinds(legacy: Messages | None, new: Messages | None) -> list[str]:
    return [str(item.kind) for item in differences(legacy, new)]


def other_words(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"content": message["content"] + " indeed"}


def other_role(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"role": "system"}


# Each makes one difference at a place of a history whose messages all differ.
PLANTED: dict[str, Callable[[Messages, int], Messages]] = {
    Kind.MISSING_IN_NEW: lambda h, at: h[:at] + h[at + 1 :],
    Kind.MISSING_IN_LEGACY: lambda h, at: [*h[:at], said(10_000), *h[at:]],
    Kind.DUPLICATED_IN_NEW: lambda h, at: [*h[: at + 1], *h[at:]],
    Kind.CONTENT_CHANGED: lambda h, at: [*h[:at], other_words(h[at]), *h[at + 1 :]],
    Kind.ROLE_CHANGED: lambda h, at: [*h[:at], other_role(h[at]), *h[at + 1 :]],
    Kind.REORDERED: lambda h, at: [*h[:at], *h[at + 1 : at + 3], h[at], *h[at + 3 :]],
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_each_planted_difference_is_found_at_every_place(kind: str, length: int) -> None:
    history = [said(number) for number in range(length)]
    planted = 0
    for at in range(length):
        changed = PLANTED[kind](history, at)
        if changed == history or not changed:
            continue
        planted += 1
        (found,) = differences(history, changed)
        assert found.kind == kind, (at, found)
        if kind not in {Kind.MISSING_IN_LEGACY, Kind.DUPLICATED_IN_NEW, Kind.REORDERED}:
            assert found.legacy_place == at + 1
        mirrored = {
            Kind.MISSING_IN_NEW: Kind.MISSING_IN_LEGACY,
            Kind.MISSING_IN_LEGACY: Kind.MISSING_IN_NEW,
            Kind.DUPLICATED_IN_NEW: Kind.DUPLICATED_IN_LEGACY,
        }
        assert kinds(changed, history) == [mirrored.get(Kind(kind), kind)]
    assert planted or length == 1


def test_leading_middle_and_trailing_are_told_apart() -> None:
    history = [said(number) for number in range(5)]
    for legacy, new, position in (
        (history, history[1:], "leading"),
        (history, [*history[:2], *history[3:]], "middle"),
        (history, history[:-1], "trailing"),
        (history[1:], history, "leading"),
        (history[:-2], history, "trailing"),
    ):
        assert {item.position for item in differences(legacy, new)} == {position}


def test_whole_sessions() -> None:
    history = [said(1), said(2)]
    assert kinds(history, None) == ["session_missing_in_new"]
    assert kinds(None, history) == ["session_missing_in_legacy"]
    assert kinds(history, []) == ["session_empty_in_new"]
    assert kinds([], history) == ["session_empty_in_legacy"]
    assert differences(history, [])[0].count == 2
    assert [kinds([], []), kinds([], None), kinds(None, []), kinds(None, None)] == [[]] * 4


def test_what_is_the_same_json_is_the_same() -> None:
    one = json.loads('{"role": "user", "content": "\\u00e9", "n": [1, 2.50, 1e3, 1e22], "t": true}')
    other = json.loads('{"n": [1.0, 2.5, 1000, 10000000000000000000000], "t": true, "content": "é", "role": "user"}')
    assert kinds([one], [other]) == []
    assert content_digest({"a": 1}) != content_digest({"a": True})
    assert content_digest({"a": "1"}) != content_digest({"a": 1})
    assert content_digest({"a": None}) != content_digest({})
    assert content_digest({"a": "1.0 e+"}) != content_digest({"a": "1 e+"})


@given(st.lists(st.integers(0, 6), max_size=30))
def test_equal_histories_have_no_difference(numbers: list[int]) -> None:
    history = [said(number) for number in numbers]
    assert kinds(history, [dict(reversed(message.items())) for message in history]) == []


@given(st.lists(st.integers(0, 400), min_size=3, max_size=40, unique=True), st.data())
def test_any_planted_difference_is_found_and_named(numbers: list[int], data: st.DataObject) -> None:
    history = [said(number) for number in numbers]
    kind = data.draw(st.sampled_from(sorted(PLANTED)))
    at = data.draw(st.integers(0, len(history) - 3))
    assert kinds(history, PLANTED[kind](history, at)) == [kind]


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_two_histories_differ_exactly_when_something_is_told(one: list[int], other: list[int]) -> None:
    """With few messages that are often said again: what kind it is may then be open, that it is there is not."""
    legacy, new = [said(number) for number in one], [said(number) for number in other]
    found = differences(legacy, new)
    assert bool(found) == (legacy != new)
    if legacy and new:
        sides = summed(found)
        more = sides.get("missing_in_legacy", 0) + sides.get("duplicated_in_new", 0)
        less = sides.get("missing_in_new", 0) + sides.get("duplicated_in_legacy", 0)
        assert len(new) - len(legacy) == more - less


def test_long_histories_that_differ_in_many_places() -> None:
    count = MOST_ALIGNED * 3
    history = [said(number) for number in range(count)]
    changed = list(history)
    changed[10], changed[-10] = other_role(history[10]), other_words(history[-10])
    del changed[count // 2 : count // 2 + 3]
    assert summed(differences(history, changed)) == {"role_changed": 1, "content_changed": 1, "missing_in_new": 3}
    assert summed(differences(history, [said(count + number) for number in range(count)]))["content_changed"] == count


def test_many_planted_at_once_are_all_found() -> None:
    rng = random.Random(7)
    history = [said(number) for number in range(400)]
    places = rng.sample(range(0, 396, 6), 24)
    changed, expected = list(history), []
    for at in sorted(places, reverse=True):  # from the end, so that places stay what they are
        kind = rng.choice(sorted(PLANTED))
        expected.append(kind)
        changed = PLANTED[kind](changed, at)
        if kind == Kind.MISSING_IN_LEGACY:
            changed[at] = said(20_000 + at)
    found = summed(differences(history, changed))
    assert found == {kind: expected.count(kind) for kind in expected}


# -- the command, on real servers


class Stores:
    """Both stores filled alike, and the command that compares them."""

    def __init__(self, older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ADDRESS_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("COLUMNS", "160")
        self.older = older

    def write(self, session_id: str, legacy: list[Any] | None, new: Messages | None) -> None:
        if legacy is not None:
            self.older.fill(session_id, legacy)
        if new is not None:
            with MemoryManager(config=self.older.config) as manager:
                manager.set_session_config(session_id, {"max_buffer_messages": 30})
                manager.add_messages(session_id, new)

    def parity(self, *arguments: str) -> tuple[int, str]:
        older = self.older
        given = ["parity", "--legacy-url", older.url, "--table", older.table, "--database-url", older.url]
        given += ["--tenant", older.config.tenant, *arguments]
        result = CliRunner().invoke(app, given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout + result.stderr * ("--json" not in arguments)


@pytest.fixture
def stores(older: Older, monkeypatch: pytest.MonkeyPatch) -> Stores:
    return Stores(older, monkeypatch)


ODD: Messages = [
    {"role": "user", "content": "é\U0001f600 \\u0000", "n": [1.0, 1e22, -0.0, 0.1, 2**60], "z": 1, "a": {"b": []}},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
]


def test_the_command_finds_no_difference_where_there_is_none(stores: Stores) -> None:
    stores.write("a", [said(1), said(2), *ODD], [said(1), said(2), *ODD])
    stores.write("nul", None, [{"role": "user", "content": "a\x00\ud800"}])
    stores.older.store.add_chat_message("nul", {"role": "user", "content": "a\x00\ud800"}, message_id="m")
    stores.write("empty on one side", [], None)
    stores.older.execute("ALTER TABLE {table} ALTER chat_history DROP NOT NULL")
    stores.write("null", [], None)
    stores.older.execute("UPDATE {table} SET chat_history = NULL WHERE session_id = 'null'")
    code, text = stores.parity()
    assert code == 0, text
    assert "No difference: 5 messages of 4 sessions." in text
    code, text = stores.parity("--session", "a", "--session", "mistyped")
    assert code == 2
    assert "'mistyped' is in neither store" in text


def test_a_row_whose_id_is_empty_is_named(stores: Stores) -> None:
    stores.write("", [said(1), said(2)], None)
    stores.write("a", [said(1)], [said(1)])
    for more in ((), ("--session", "")):
        code, text = stores.parity(*more)
        assert code == 1
        assert "''" in text
        assert "session missing in new" in text
        assert "must not be empty" in text
    (found,) = json.loads(stores.parity("--json")[1])["differences"]
    assert (found["session_id"], found["kind"], found["count"]) == ("", "session_missing_in_new", 2)


def test_the_command_names_exports_and_counts_every_kind(stores: Stores, tmp_path: Path) -> None:
    history = [said(number) for number in range(12)]
    for kind, plant in PLANTED.items():
        stores.write(kind, history, plant(history, 5))
    stores.write("duplicated_in_legacy", PLANTED[Kind.DUPLICATED_IN_NEW](history, 5), history)
    stores.write("session_missing_in_new", history, None)
    stores.write("session_missing_in_legacy", None, history)
    stores.write("session_empty_in_new", history, [])
    stores.write("session_empty_in_legacy", [], history)
    stores.write("unreadable_in_legacy", [*history, "a text"], history)
    stores.write("same", history, history)
    export = tmp_path / "differences.jsonl"
    code, text = stores.parity("--json", "--export", str(export))
    answer = json.loads(text)
    assert code == 1
    assert {item["session_id"]: item["kind"] for item in answer["differences"]} == {
        kind: kind for kind in map(str, Kind)
    }
    assert answer["kinds"] == dict.fromkeys(map(str, Kind), 1)
    assert [json.loads(line) for line in export.read_text().splitlines()] == answer["differences"]
    assert (answer["sessions"], answer["sessions_with_differences"]) == (len(Kind) + 1, len(Kind))
    code, text = stores.parity()
    assert code == 1
    assert f"{len(Kind)} differences in {len(Kind) + 1} sessions" in text
    assert stores.parity("--session", "same")[0] == 0
    assert stores.parity("--session", "reordered", "--session", "same")[0] == 1
    assert json.loads(stores.parity("--json", "--sample", "3")[1])["sessions"] == 3


def test_a_sample_finds_what_is_planted_in_it_and_nothing_else(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [said(number) for number in range(8)]
    names = [f"s{number}" for number in range(10)]
    planted = dict(zip(names[::2], PLANTED, strict=False))
    for name in names:
        stores.write(name, history, PLANTED[planted[name]](history, 3) if name in planted else history)
    picked: list[list[str]] = []

    class Recorded(random.Random):
        def sample(self, *given: Any, **named: Any) -> Any:
            picked.append(super().sample(*given, **named))
            return picked[-1]

    monkeypatch.setattr("contract_engine.cli.parity.random", Recorded(6))
    for _ in range(4):
        code, text = stores.parity("--json", "--sample", "4")
        answer = json.loads(text)
        sample = picked[-1]
        expected = {name: str(planted[name]) for name in sample if name in planted}
        assert (answer["sessions"], len(set(sample)), set(sample) <= set(names)) == (4, 4, True)
        assert {item["session_id"]: item["kind"] for item in answer["differences"]} == expected
        assert (answer["sessions_with_differences"], code) == (len(expected), int(bool(expected)))
    assert len(picked) == 4
    assert len(set(map(frozenset, picked))) > 1, "always the same sample"
    assert any(set(sample) - set(planted) for sample in picked)
    assert json.loads(stores.parity("--json", "--sample", "10")[1])["sessions_with_differences"] == len(planted)


def test_what_is_exported_leads_to_the_messages(stores: Stores, tmp_path: Path) -> None:
    """Each line says where in which store to look, also behind elements that are no messages."""
    history = [said(number) for number in range(12)]
    legacy: list[Any] = ["no message", *history]
    new = [*history[:4], other_words(history[4]), *history[5:7], other_role(history[7]), *history[9:], said(99)]
    stores.write("s", legacy, new)
    export = tmp_path / "differences.jsonl"
    assert stores.parity("--export", str(export))[0] == 1
    found = {line["kind"]: line for line in map(json.loads, export.read_text("utf-8").splitlines())}
    logged = stores.older.logged("s")
    assert {line["session_id"] for line in found.values()} == {"s"}
    looked_at = {
        kind: tuple(
            None if place is None else side[place - 1]
            for side, place in ((legacy, line["legacy_place"]), (logged, line["new_place"]))
        )
        for kind, line in found.items()
    }
    assert looked_at == {
        "unreadable_in_legacy": ("no message", None),
        "content_changed": (history[4], other_words(history[4])),
        "role_changed": (history[7], other_role(history[7])),
        "missing_in_new": (history[8], None),
        "missing_in_legacy": (None, said(99)),
    }


def test_what_cannot_be_compared_is_no_parity(stores: Stores, tmp_path: Path) -> None:
    older = stores.older
    code, text = stores.parity("--export", str(tmp_path / "none" / "file"))
    assert (code, "cannot be written" in text) == (2, True)
    kept = tmp_path / "kept"
    kept.write_text("of the last time")
    assert stores.parity("--export", str(kept), "--session", "nobody has it")[0] == 2
    assert kept.read_text() == "of the last time", "what could not be compared looks like no difference"
    result = CliRunner().invoke(
        app, ["parity", "--legacy-url", "postgresql://nobody@127.0.0.1:1/x", "--database-url", older.url]
    )
    assert result.exit_code == 2
    assert "postgres unavailable" in result.stderr
    assert "correct --legacy-url, --database-url" in result.stderr
