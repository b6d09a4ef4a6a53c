"""The contract of working-memory managers, over all of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from working_memory_contract import (
    ASYNC,
    COMBINATIONS,
    STACKS,
    SYNC,
    WORKING,
    MemoryBackend,
    ask,
    say,
    texts_of,
)

from contract_engine.memory import InvalidInputError, MemoryServiceError
from contract_engine.working_memory import (
    AsyncWorkingMemoryManager,
    ConversationMemoryType,
    IMemoryInput,
    IWorkingMemory,
    RichMemory,
    WorkingMemoryManager,
    WrapperMissingError,
)
from contract_engine.working_memory.layers import run, run_async
from contract_engine.working_memory.patterns import matcher
from contract_engine.working_memory.records import Record, RecordKey, Ttl

LONG_TERM = ConversationMemoryType.LONG_TERM_MEMORY


@pytest.fixture(
    params=[pytest.param(each, id="-".join(each)) for each in COMBINATIONS],
)
def backend(
    request: pytest.FixtureRequest, redis_url: str, database_url: str, tenant: str, tmp_path: Path
) -> Iterator[MemoryBackend]:
    """Each manager in turn."""
    kind, colour, stack = request.param
    with closing(MemoryBackend(kind, colour, STACKS[stack], tenant, redis_url, database_url, tmp_path)) as found:
        yield found


@pytest.fixture
def manager(backend: MemoryBackend) -> WorkingMemoryManager:
    return backend.open()


# -- what is stored comes back


def test_what_is_stored_comes_back(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    key = manager.store(say("c1", "likes tea", metadata={"source": "chat", "deep": {"a": [1, None, 2.5]}}))
    assert key == f"{backend.prefix}:WORKING_MEMORY:c1"
    (memory,) = backend.open().retrieve(ask("c1"))
    assert memory.working_memory == "likes tea"
    assert memory.metadata == {"source": "chat", "deep": {"a": [1, None, 2.5]}}
    assert memory.memory_id == "1"
    assert memory.created_at == memory.last_update == "2027-01-15T08:00:00+00:00"


def test_all_items_are_kept_and_a_second_store_replaces_them(manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", "one", "two", "three"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["one", "two", "three"]
    manager.store(say("c1", "four"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["four"]


def test_any_text_comes_back(manager: WorkingMemoryManager) -> None:
    for text in (
        "",
        " ",
        "\x00\x01\n\t",
        "naïve 🦊 漢字",
        "\ud800 alone",
        "\ud83d\ude00 halves",
        '{"data": "\\"}',
        "x" * 100_000,
    ):
        manager.store(IMemoryInput("c1", WORKING, [IWorkingMemory(text, {"t": text[:100]})]))
        (memory,) = manager.retrieve(ask("c1"))
        assert memory.working_memory == text
        assert memory.metadata == {"t": text[:100]}


def test_types_and_conversations_are_apart(manager: WorkingMemoryManager) -> None:
    for kind in ConversationMemoryType:
        for conversation in ("c1", "c2", "LONG_TERM_MEMORY:c1", "c1:WORKING_MEMORY"):
            manager.store(IMemoryInput(conversation, kind, [IWorkingMemory(f"{kind} of {conversation}")]))
    for kind in ConversationMemoryType:
        for conversation in ("c1", "c2", "LONG_TERM_MEMORY:c1", "c1:WORKING_MEMORY"):
            assert texts_of(manager.retrieve(ask(conversation, kind))) == [f"{kind} of {conversation}"]


def test_a_type_may_be_named_by_a_plain_text(manager: WorkingMemoryManager) -> None:
    for number, name in enumerate(("WORKING", "WORKING_MEMORY", "LONG_TERM_MEMORY")):
        key = manager.store(IMemoryInput("c1", name, [IWorkingMemory(str(number))]))  # type: ignore[arg-type]
        assert key.split(":")[1] == ConversationMemoryType[name]
    assert texts_of(manager.retrieve(ask("c1"))) == ["1"]


def test_what_was_never_stored_is_an_empty_list(manager: WorkingMemoryManager) -> None:
    assert manager.retrieve(ask("nobody")) == []
    assert manager.retrieve_safe(ask("nobody")) == []
    assert manager.get_important_memories("nobody") == []
    assert manager.get_memory_history("nobody") == []


# -- what is asked for


def test_a_limit_cuts_and_five_is_the_default(manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", *"abcdefgh"))
    assert texts_of(manager.retrieve(ask("c1"))) == list("abcde")
    assert texts_of(manager.retrieve(ask("c1", limit=2))) == list("ab")
    assert texts_of(manager.retrieve(ask("c1", limit=None))) == list("abcdefgh")
    assert manager.retrieve(ask("c1", limit=0)) == []


def test_a_query_finds_its_words_best_first(manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", "Bob likes coffee", "a train to Rome", "coffee, coffee and the train", "nothing"))
    found = texts_of(manager.retrieve(ask("c1", query="COFFEE on a train?")))
    assert found[0] == "coffee, coffee and the train"
    assert sorted(found[1:]) == ["Bob likes coffee", "a train to Rome"]
    assert texts_of(manager.retrieve(ask("c1", query="coffee train", limit=1))) == found[:1]
    assert manager.retrieve(ask("c1", query="opera")) == []
    manager.store(say("c1", "This is it", "something else"))
    assert texts_of(manager.retrieve(ask("c1", query="is it"))) == ["This is it"]


def test_filters_compare_the_metadata_of_record_and_memory(manager: WorkingMemoryManager) -> None:
    data = [IWorkingMemory("a", {"n": 1}), IWorkingMemory("b", {"n": 2}), IWorkingMemory("c", {"n": 1, "who": "me"})]
    manager.store(IMemoryInput("c1", WORKING, data, metadata={"who": "all"}))
    assert texts_of(manager.retrieve(ask("c1", filters={"n": 1}))) == ["a", "c"]
    assert texts_of(manager.retrieve(ask("c1", filters={"n": 1, "who": "all"}))) == ["a"]
    assert manager.retrieve(ask("c1", filters={"absent": None})) == []
    assert len(manager.retrieve(ask("c1", filters={}))) == 3


def test_one_memory_is_named_by_its_id(manager: WorkingMemoryManager) -> None:
    data = [IWorkingMemory("a", memory_id="x"), IWorkingMemory("b"), IWorkingMemory("c", memory_id="1")]
    manager.store(IMemoryInput("c1", WORKING, data))
    assert [memory.memory_id for memory in manager.retrieve(ask("c1"))] == ["x", "2", "1"]
    assert texts_of(manager.retrieve(ask("c1", memory_id="1"))) == ["c"]
    assert manager.retrieve(ask("c1", memory_id="y")) == []
    manager.store(say("c2", "only", memory_id="named"))
    assert manager.retrieve(ask("c2"))[0].memory_id == "named"


# -- update and delete


def test_update_replaces_the_text_and_keeps_what_is_not_given(
    backend: MemoryBackend, manager: WorkingMemoryManager
) -> None:
    manager.store(IMemoryInput("c1", WORKING, [IWorkingMemory("old", {"k": 1}, "me")], metadata={"a": 1, "b": 2}))
    backend.clock.seconds += 60
    manager.update(say("c1", "new", metadata={"b": 3}))
    (memory,) = manager.retrieve(ask("c1"))
    assert (memory.working_memory, memory.memory_id) == ("new", "me")
    assert memory.metadata == {"a": 1, "b": 3, "k": 1}
    assert memory.created_at == "2027-01-15T08:00:00+00:00"
    assert memory.last_update == "2027-01-15T08:01:00+00:00"


def test_update_of_one_memory_leaves_the_others(manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", "a", "b", "c"))
    manager.update(say("c1", "B", memory_id="2"))
    manager.update(say("c1", "nobody", memory_id="9"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["a", "B", "c"]
    manager.update(say("c1", "x", "y"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["x", "y"]


def test_update_creates_nothing(manager: WorkingMemoryManager) -> None:
    manager.update(say("c1", "new"))
    manager.store(say("c2", "old"))
    manager.delete(ask("c2"))
    manager.update(say("c2", "new"))
    assert manager.retrieve(ask("c1")) == manager.retrieve(ask("c2")) == []
    assert manager.storage_stats()["total_entries"] == 0


def test_delete_removes_one_memory_or_all(manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", "a", "b", "c"))
    manager.delete(ask("c1", memory_id="2"))
    manager.delete(ask("c1", memory_id="2"))
    assert [(one.memory_id, one.working_memory) for one in manager.retrieve(ask("c1"))] == [("1", "a"), ("3", "c")]
    for name in ("1", "3"):
        manager.delete(ask("c1", memory_id=name))
    assert manager.storage_stats()["total_entries"] == 0
    manager.store(say("c1", "a"))
    manager.delete(ask("c1"))
    manager.delete(ask("c1"))
    assert manager.retrieve(ask("c1")) == []


# -- time


def test_a_record_expires_and_an_expired_one_is_not_there(backend: MemoryBackend) -> None:
    manager = backend.open(ttl=1)
    manager.store(say("c1", "old"))
    assert texts_of(manager.retrieve(ask("c1"))) == ["old"]
    backend.expire(manager, "c1", 1)
    assert manager.retrieve(ask("c1")) == []
    manager.update(say("c1", "new"))
    manager.delete(ask("c1"))
    assert manager.retrieve(ask("c1")) == []
    assert manager.storage_stats()["total_entries"] == 0
    assert manager.cleanup(f"{backend.prefix}:*:c1") == 0
    manager.store_rich("c1", RichMemory("fresh", 9))
    assert texts_of(manager.retrieve(ask("c1"))) == ["fresh"]


def test_a_ttl_may_be_a_fraction_and_is_set_at_any_time(backend: MemoryBackend) -> None:
    manager = backend.open(ttl=None)
    manager.store(say("for ever", "a"))
    manager.ttl = 0.5
    manager.store(say("short", "b"))
    manager.store_many([say("short too", "c"), say("short as well", "d")])
    backend.expire(manager, "short", 0.5)
    backend.expire(manager, "short too", 0)
    assert manager.retrieve(ask("short")) == []
    assert manager.retrieve(ask("short too")) == []
    backend.clock.seconds += 10**9
    assert texts_of(manager.retrieve(ask("for ever"))) == ["a"]


def test_an_update_begins_the_time_to_live_anew(backend: MemoryBackend) -> None:
    manager = backend.open(ttl=None)
    manager.store(say("c1", "a"))
    manager.ttl = 1
    manager.update(say("c1", "b"))
    backend.expire(manager, "c1", 1)
    assert manager.retrieve(ask("c1")) == []


def test_the_same_contents_in_another_form_live_as_long_as_before(backend: MemoryBackend) -> None:
    manager = backend.open(ttl=None)
    manager.store(say("for ever", "a"))
    manager.ttl = 2
    manager.store(say("short", "b"))
    manager.ttl = 1000  # of which nothing is taken
    for conversation_id in ("for ever", "short", "nobody"):
        flow = manager.layer.change(RecordKey.under(manager.prefix, WORKING, conversation_id), _in_another_form)
        if backend.colour == SYNC:
            run(flow)
        else:
            backend.loop.run_until_complete(run_async(flow))
    assert texts_of(manager.retrieve(ask("for ever"))) == ["A"]
    backend.expire(manager, "short", 2)
    assert manager.retrieve(ask("short")) == []
    assert manager.retrieve(ask("nobody")) == []
    backend.clock.seconds += 10**9
    assert texts_of(manager.retrieve(ask("for ever"))) == ["A"]


def _in_another_form(record: Record | None) -> Record | None:
    if record is None:
        return None
    items = tuple(replace(item, text=item.text.upper()) for item in record.items)
    return replace(record, items=items, ttl_seconds=Ttl.AS_BEFORE)


# -- many at once


def test_batches_store_and_retrieve(manager: WorkingMemoryManager) -> None:
    requests = [say(f"c{number}", f"text {number}", metadata={"n": number}) for number in range(50)]
    keys = manager.store_many(requests)
    assert keys == [manager.store(request) for request in requests]
    found = manager.retrieve_many([*[ask(f"c{number}") for number in range(50)], ask("nobody"), ask("c1", limit=0)])
    assert [texts_of(memories) for memories in found[:50]] == [[f"text {number}"] for number in range(50)]
    assert found[50:] == [[], []]
    assert manager.store_many([]) == []
    assert manager.retrieve_many([]) == []


def test_the_last_of_two_for_the_same_record_counts(manager: WorkingMemoryManager) -> None:
    manager.store_many([say("c1", "first"), say("c2", "other"), say("c1", "last")])
    assert texts_of(manager.retrieve(ask("c1"))) == ["last"]


def test_one_bad_input_refuses_a_batch(manager: WorkingMemoryManager) -> None:
    with pytest.raises(InvalidInputError):
        manager.store_many([say("c1", "good"), say("", "bad")])
    assert manager.storage_stats()["total_entries"] == 0


# -- rich memories


def test_rich_memories_come_back_by_importance(manager: WorkingMemoryManager) -> None:
    kept = [RichMemory("low", 3), RichMemory("high", 9, ["a", "b"], {"k": {"v": 1}}), RichMemory("seven", 7)]
    for memory in kept:
        manager.store_rich("c1", memory)
    assert manager.get_important_memories("c1") == kept[1:]
    assert manager.get_important_memories("c1", 1) == kept
    assert manager.get_important_memories("c1", memory_type=LONG_TERM) == []
    assert texts_of(manager.retrieve(ask("c1", filters={"importance": 9, "tags": ["a", "b"]}))) == ["high"]


def test_a_plain_memory_is_no_important_one(manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", "plain"))
    manager.store_rich("c1", RichMemory("rich", 10))
    assert [memory.content for memory in manager.get_important_memories("c1")] == ["rich"]
    assert texts_of(manager.retrieve(ask("c1"))) == ["plain", "rich"]


def test_what_only_looks_like_a_rich_memory_is_none(manager: WorkingMemoryManager) -> None:
    odd: tuple[dict[str, Any], ...] = (
        {"importance": 99, "tags": []},
        {"importance": 0, "tags": []},
        {"importance": True, "tags": []},
        {"importance": 8, "tags": [5]},
        {"importance": 8},
    )
    for metadata in odd:
        manager.store(IMemoryInput("c1", WORKING, [IWorkingMemory("x", metadata)]))
        assert manager.get_important_memories("c1", 1) == []


def test_a_bad_rich_memory_is_refused(manager: WorkingMemoryManager) -> None:
    bad: list[Any] = [
        *(RichMemory("x", importance) for importance in (0, 11, True)),
        RichMemory("x", 5, "tags"),  # type: ignore[arg-type]
        RichMemory("x", 5, [1]),  # type: ignore[list-item]
        RichMemory("x", 5, [], {"tags": []}),
        RichMemory(None, 5),  # type: ignore[arg-type]
        "x",
    ]
    for memory in bad:
        with pytest.raises(InvalidInputError):
            manager.store_rich("c1", memory)
    assert manager.retrieve(ask("c1")) == []


# -- cleaning up


def test_cleanup_removes_what_matches_in_batches(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    manager.store_many([say(f"user-{number % 2}-{number}", "x") for number in range(600)])
    told: list[int] = []
    assert manager.cleanup(f"{backend.prefix}:*:user-1-*", progress=told.append) == 300
    assert told == sorted(told)
    assert told[-1] == 300
    assert len(told) > 1
    assert manager.storage_stats()["entries_by_type"] == {
        "SHORT_TERM_MEMORY": 0,
        "LONG_TERM_MEMORY": 0,
        "WORKING_MEMORY": 300,
    }
    assert manager.cleanup(f"{backend.prefix}:*", everything=True) == 300
    assert manager.storage_stats()["total_entries"] == 0


def test_cleanup_leaves_alone_what_is_no_record(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    others = (f"{backend.prefix}:lock", f"{backend.prefix}:OTHER:c1", f"{backend.prefix}x:WORKING_MEMORY:c1")
    for name in others:
        backend.plant(name, b"theirs")
    manager.store(say("c1", "mine"))
    assert manager.cleanup(f"{backend.prefix}*", everything=True) == 1
    assert [backend.bytes_of(name) for name in others] == [b"theirs"] * 3


ONLY_SETS = (
    "{}:*:[!-~]*", "{}:*:[a-zA-Z0-9_-]*", "{}:*:[^\ue0ff]*", "{}:*:*[^\ue0ff]", "{}:*:[a-z]?*[0-9]", "{}[:]*",
    "{}:[LSW]*", "{}:*:[^x", "{}:*:[^]*", r"{}:*:[\]!-~]*",
)  # fmt: skip


def test_a_pattern_that_matches_everything_is_refused(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", "x"))
    for pattern in ("*", "**", "?*", "{}:*", "{}:*:*", "*:*", "{}:[^x]*", "*M*:*", "{}:?*:????*", *ONLY_SETS):
        with pytest.raises(InvalidInputError, match="everything=True"):
            manager.cleanup(pattern.format(backend.prefix))
    bad: tuple[Any, ...] = ("", None, 5, "a\x00b", "\ud800", "x" * 2000)
    for pattern in bad:
        with pytest.raises(InvalidInputError):
            manager.cleanup(pattern)
    assert manager.storage_stats()["total_entries"] == 1


def test_a_glob_means_the_same_everywhere(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    every = ("abc", "a*c", "zebra", "[x]", "%_")
    for pattern, gone in {
        "*:a?c": {"abc", "a*c"},
        r"*:a\*c": {"a*c"},
        "*:a[*x]c": {"a*c"},
        "WORKING_MEMORY:[^a]*": {"zebra", "[x]", "%_"},
        r"*:\[x\]": {"[x]"},
        "*:[a-z]ebra": {"zebra"},
        "*:%*": {"%_"},
        "*G_MEMORY:*b*": {"abc", "zebra"},
        "*:[a-z]?[!-~]*a": {"zebra"},
        "WORKING_MEMORY:[^ab]*": {"zebra", "[x]", "%_"},
        "*:none": set[str](),
    }.items():
        manager.store_many([say(name, "x") for name in every])
        assert manager.cleanup(f"{backend.prefix}:{pattern}") == len(gone), pattern
        assert {name for name in every if not manager.retrieve(ask(name))} == gone, pattern


def test_stats_name_what_is_there(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    manager.store_many([say("c1", "x"), say("c2", "y"), IMemoryInput("c1", LONG_TERM, [IWorkingMemory("z")])])
    stats = manager.storage_stats()
    assert stats["total_entries"] == 3
    assert stats["entries_by_type"] == {"SHORT_TERM_MEMORY": 0, "LONG_TERM_MEMORY": 1, "WORKING_MEMORY": 2}
    assert stats["prefix"] == backend.prefix


def test_a_glob_matches_characters_everywhere(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    """Redis matches bytes, of which most characters have several."""
    every = ("é", "ée", "aé", "日本", "日", "a", "ab", "🦊x")
    for pattern, gone in {
        "*:?": {"é", "日", "a"},
        "*Y:??": {"ée", "aé", "日本", "ab", "🦊x"},
        "*Y:[é日]*": {"é", "ée", "日", "日本"},
        "*Y:[^a]": {"é", "日"},
        "*Y:a?": {"aé", "ab"},
        "*Y:日*": {"日", "日本"},
        "*[Y]:?x": {"🦊x"},
    }.items():
        manager.store_many([say(name, "x") for name in every])
        assert manager.cleanup(f"{backend.prefix}:{pattern}", everything=True) == len(gone), pattern
        assert {name for name in every if not manager.retrieve(ask(name))} == gone, pattern


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


@pytest.mark.parametrize("text", ["short", "long " * 50, "\ud800"], ids=["short", "long", "surrogate"])
def test_texts_and_numbers_of_classes_of_their_own_come_back_plain(manager: WorkingMemoryManager, text: str) -> None:
    metadata = {Text("text"): Text("v"), "whole": Whole(3), "real": Real(1.5)}
    request = IMemoryInput(
        Text("c1"), WORKING, [IWorkingMemory(Text(text), metadata, Text("id"))], metadata={"all": [Whole(2)]}
    )
    for write in (manager.store, lambda one: manager.store_many([one]), manager.update):
        write(request)
        (memory,) = manager.retrieve(ask("c1"))
        assert (memory.working_memory, memory.memory_id) == (text, "id")
        assert memory.metadata == {"text": "v", "whole": 3, "real": 1.5, "all": [2]}
        assert [type(value) for value in memory.metadata.values()].count(str) == 1
        assert type(memory.working_memory) is str
    manager.store_rich(Text("c1"), RichMemory(Text("more"), Whole(7), [Text("tag")]))
    assert manager.get_important_memories("c1") == [RichMemory("more", 7, ["tag"])]


# -- what others have written


def test_a_record_of_the_original_managers_is_read_as_it_is(
    backend: MemoryBackend, manager: WorkingMemoryManager
) -> None:
    body = (
        b'{"data": {"working_memory": "User\'s name is Alice \\u2014 \\ud83e\\udd8a"}, "metadata": {"source": "chat"}, '
        b'"created_at": "2025-03-01T10:11:12.131415", "last_update": "2025-03-02T10:11:12.131415"}'
    )
    backend.plant(f"{backend.prefix}:WORKING_MEMORY:conv_123", body)
    (memory,) = manager.retrieve(ask("conv_123"))
    assert memory == IWorkingMemory(
        "User's name is Alice — 🦊",
        {"source": "chat"},
        "1",
        "2025-03-01T10:11:12.131415",
        "2025-03-02T10:11:12.131415",
    )
    manager.update(say("conv_123", "new"))
    (memory,) = manager.retrieve(ask("conv_123"))
    assert (memory.working_memory, memory.created_at) == ("new", "2025-03-01T10:11:12.131415")
    assert memory.metadata == {"source": "chat"}


def test_a_single_memory_is_written_as_the_originals_do(backend: MemoryBackend) -> None:
    bare = backend.open_bare()
    key = backend.run(bare.store(say("c1", "text", metadata={"a": 1})))
    backend.close_bare(bare)
    assert json.loads(backend.bytes_of(key) or b"") == {
        "data": {"working_memory": "text"},
        "metadata": {"a": 1},
        "created_at": "2027-01-15T08:00:00+00:00",
        "last_update": "2027-01-15T08:00:00+00:00",
    }


def test_bytes_that_are_no_record_are_no_empty_answer(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    for body in (b"x", b"[]", b'{"data": {}}', b'{"data": 5}', b"\xff\xfe", b"[" * 5000):
        backend.plant(f"{backend.prefix}:WORKING_MEMORY:c1", body)
        with pytest.raises(MemoryServiceError):
            manager.retrieve(ask("c1"))
        with pytest.raises(MemoryServiceError):
            manager.update(say("c1", "x"))
        manager.store(say("c1", "x"))
        assert texts_of(manager.retrieve(ask("c1"))) == ["x"]


def test_a_text_that_a_missing_wrapper_has_changed_is_not_shown(
    backend: MemoryBackend, manager: WorkingMemoryManager
) -> None:
    body = (
        b'{"data":{"working_memory":"aGVsbG8=","marks":["unheard-of"]},"metadata":{},"created_at":"","last_update":""}'
    )
    backend.plant(f"{backend.prefix}:WORKING_MEMORY:c1", body)
    for call in (manager.retrieve, manager.retrieve_safe):
        with pytest.raises(WrapperMissingError, match="unheard-of"):
            call(ask("c1"))
    with pytest.raises(WrapperMissingError):
        manager.update(say("c1", "x"))
    with pytest.raises(WrapperMissingError):
        manager.get_important_memories("c1")


# -- bad input, before anything is written


BAD_INPUTS = {
    "no data": IMemoryInput("c1"),
    "empty data": IMemoryInput("c1", data=[]),
    "data that is a text": IMemoryInput("c1", data="text"),  # type: ignore[arg-type]
    "data of texts": IMemoryInput("c1", data=["text"]),  # type: ignore[list-item]
    "a memory that is no text": IMemoryInput("c1", data=[IWorkingMemory(5)]),  # type: ignore[arg-type]
    "empty id": say("", "x"),
    "control character in the id": say("a\nb", "x"),
    "surrogate in the id": say("\ud800", "x"),
    "id too long": say("x" * 257, "x"),
    "id that is no text": IMemoryInput(5, data=[IWorkingMemory("x")]),  # type: ignore[arg-type]
    "unknown type": IMemoryInput("c1", "EPISODIC", [IWorkingMemory("x")]),  # type: ignore[arg-type]
    "type that is no text": IMemoryInput("c1", None, [IWorkingMemory("x")]),  # type: ignore[arg-type]
    "the same memory id twice": IMemoryInput("c1", data=[IWorkingMemory("x", memory_id="a")] * 2),
    "empty memory id": IMemoryInput("c1", data=[IWorkingMemory("x", memory_id="")]),
    "one id for two": say("c1", "x", "y", memory_id="a"),
    "two ids for one": IMemoryInput("c1", data=[IWorkingMemory("x", memory_id="a")], memory_id="b"),
    "NaN": say("c1", "x", metadata={"a": float("nan")}),
    "bytes": IMemoryInput("c1", data=[IWorkingMemory("x", {"a": b"x"})]),
    "a key that is no text": say("c1", "x", metadata={5: 1}),
    "metadata that are a list": say("c1", "x", metadata=[]),
    "oversized": say("c1", "é" * 600_000),
    "oversized together": say("c1", *["x" * 300_000] * 4),
    "oversized metadata": say("c1", "x", metadata={"a": "x" * 2**20}),
}


def test_bad_input_is_refused_before_anything_is_written(manager: WorkingMemoryManager) -> None:
    for name, bad in BAD_INPUTS.items():
        for call in (manager.store, manager.update, lambda one: manager.store_many([say("c2", "good"), one])):
            with pytest.raises(InvalidInputError) as caught:
                call(bad)
            assert isinstance(caught.value, ValueError), name
    assert manager.storage_stats()["total_entries"] == 0


def test_a_retrieval_that_cannot_mean_anything_is_refused(manager: WorkingMemoryManager) -> None:
    for fields in (
        *({"limit": limit} for limit in (-1, "5", True)),
        *({"query": query} for query in ("", 5)),
        {"filters": [1]},
        *({"memory_id": name} for name in ("", 5)),
    ):
        wrong = cast("dict[str, Any]", fields)
        for call in (manager.retrieve, manager.retrieve_safe, lambda request: manager.retrieve_many([request])):
            with pytest.raises(InvalidInputError):
                call(ask("c1", **wrong))


def test_what_is_no_input_is_refused(manager: WorkingMemoryManager) -> None:
    bad: tuple[Any, ...] = (None, "c1", {"conversation_id": "c1"})
    for given_input in bad:
        for name in ("store", "retrieve", "update", "delete", "retrieve_safe", "store_many", "retrieve_many"):
            with pytest.raises(InvalidInputError):
                getattr(manager, name)(given_input)
    with pytest.raises(InvalidInputError):
        manager.store_many(["c1"])  # type: ignore[list-item]


def test_a_record_that_grows_has_a_limit(backend: MemoryBackend) -> None:
    manager = backend.open(max_bytes=1000)
    manager.store_rich("c1", RichMemory("x" * 600))
    with pytest.raises(InvalidInputError):
        manager.store_rich("c1", RichMemory("y" * 600))
    assert [len(memory.content) for memory in manager.get_important_memories("c1", 1)] == [600]


def test_there_is_no_version_to_restore(manager: WorkingMemoryManager) -> None:
    manager.store(say("c1", "x"))
    with pytest.raises(InvalidInputError):
        manager.restore_version("c1", timestamp="2020-01-01T00:00:00+00:00")
    assert texts_of(manager.retrieve(ask("c1"))) == ["x"]


def test_blocking_managers_can_be_awaited_too(backend: MemoryBackend, manager: WorkingMemoryManager) -> None:
    if backend.colour == ASYNC:
        assert not hasattr(manager.target, "store_async")  # type: ignore[attr-defined]
        return

    async def work() -> list[str]:
        await manager.store_async(say("c1", "a", "b"))
        await manager.update_async(say("c1", "B", memory_id="2"))
        await manager.delete_async(ask("c1", memory_id="1"))
        return texts_of(await manager.retrieve_async(ask("c1")))

    assert backend.run(work()) == ["B"]


@given(st.text(st.sampled_from("ab*?[]^-\\")), st.text(st.sampled_from("ab-^]"), max_size=6))
def test_a_glob_is_read_like_redis_reads_it(pattern: str, name: str) -> None:
    """The matcher against one that tries everything; sets of characters have a test of their own."""
    if "[" in pattern or pattern.endswith("\\"):
        matcher(pattern)(name)  # gives some answer
        return
    assert bool(matcher(pattern)(name)) == _matches(pattern, name)


def _matches(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return _matches(pattern[1:], name) or (bool(name) and _matches(pattern, name[1:]))
    if not name:
        return False
    if pattern[0] == "\\" and len(pattern) > 1:
        return pattern[1] == name[0] and _matches(pattern[2:], name[1:])
    return pattern[0] in ("?", name[0]) and _matches(pattern[1:], name[1:])


def test_both_colours_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, str]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: str(inspect.signature(method)) for name, method in found if not name.startswith("_")}

    sync, twin = signatures(WorkingMemoryManager), signatures(AsyncWorkingMemoryManager)
    only_sync = {f"{name}_async" for name in ("store", "retrieve", "update", "delete")} | {"close"}
    assert set(sync) - set(twin) == only_sync
    assert set(twin) - set(sync) == {"aclose"}
    assert all(sync[name] == twin[name] for name in set(sync) & set(twin))
