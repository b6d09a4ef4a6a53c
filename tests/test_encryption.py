"""Encrypted: only who has the key reads, and nothing that was altered or moved is taken for a memory."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from contract_engine.memory.errors import ConfigurationError, CorruptDataError, InvalidInputError
from contract_engine.working_memory import (
    ConversationMemoryType,
    IMemoryInput,
    InMemoryManager,
    IWorkingMemory,
    SQLMemoryManager,
    WrapperMissingError,
)
from contract_engine.working_memory.compression import Compressed
from contract_engine.working_memory.encryption import SEALED_METADATA, Encrypted, KeyRing
from contract_engine.working_memory.errors import AlteredMemoryError, MissingKeyError, NotRenewedError
from contract_engine.working_memory.layers import run
from contract_engine.working_memory.records import Item, Record, RecordKey
from contract_engine.working_memory.redis_memory_manager import RedisWorkingMemoryManager
from contract_engine.working_memory.ttl_strategy import TTLStrategy
from contract_engine.working_memory.versions import Versioned

WORKING = ConversationMemoryType.WORKING_MEMORY
KEY = RecordKey.under("memory", WORKING, "c")
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
SECRET = "the canary sings at noon"


def ring(active: str = "new", **keys: bytes) -> KeyRing:
    return KeyRing(keys or {"old": OLD, "new": NEW}, active=active)


def of(*texts: str, conversation_id: str = "c", **fields: Any) -> IMemoryInput:
    data = [IWorkingMemory(text, dict(fields.pop("item", {}))) for text in texts]
    return IMemoryInput(conversation_id, WORKING, data or None, **fields)


def stored(manager: InMemoryManager, key: RecordKey = KEY) -> Record:
    (record,) = run(manager.layer.read([key]))
    assert record is not None
    return record


def put(manager: InMemoryManager, record: Record, key: RecordKey = KEY) -> None:
    run(manager.layer.write([(key, record)]))


def test_texts_come_back_and_are_not_in_the_store() -> None:
    inner = InMemoryManager()
    manager = Encrypted(inner, keys=ring())
    manager.store(of(SECRET, "", "\x00 \ud800 😀"))
    assert [memory.working_memory for memory in manager.retrieve(of())] == [SECRET, "", "\x00 \ud800 😀"]
    assert "canary" not in repr(stored(inner))
    assert {item.marks for item in stored(inner).items} == {("aes-256-gcm:new",)}
    with pytest.raises(WrapperMissingError):
        inner.retrieve(of())


def test_the_same_text_never_looks_the_same() -> None:
    inner = InMemoryManager()
    manager = Encrypted(inner, keys=ring())
    seen = set()
    for _ in range(200):
        manager.store(of(SECRET))
        seen.add(stored(inner).items[0].text)
    assert len(seen) == 200
    assert len({base64.b64decode(text)[:12] for text in seen}) == 200


def test_metadata_are_encrypted_where_that_is_asked_for_and_filters_still_work() -> None:
    inner = InMemoryManager()
    manager = Encrypted(inner, keys=ring(), metadata=True)
    manager.store(of(SECRET, "other", item={"mood": "canary"}, metadata={"name": "canary", "n": [1, {"a": None}]}))
    assert "canary" not in repr(stored(inner))
    found = manager.retrieve(of(filters={"mood": "canary"}))
    assert [memory.working_memory for memory in found] == [SECRET]
    assert found[0].metadata == {"name": "canary", "n": [1, {"a": None}], "mood": "canary"}
    manager.update(of("changed", memory_id="2", metadata={"more": 1}))
    assert manager.retrieve(of(memory_id="2"))[0].metadata == {"name": "canary", "n": [1, {"a": None}], "more": 1}
    assert "canary" not in repr(stored(inner))
    # Who has not asked for it reads them too, and writes the next ones plain.
    plain = Encrypted(inner, keys=ring())
    assert plain.retrieve(of())[0].metadata["name"] == "canary"
    plain.update(of("x", memory_id="1"))
    assert stored(inner).metadata["name"] == "canary"
    with pytest.raises(InvalidInputError, match="taken"):
        plain.store(of("x", metadata={SEALED_METADATA: ["new", "AAAA"]}))


def moved_to_another_conversation(manager: InMemoryManager) -> None:
    put(manager, stored(manager, RecordKey.under("memory", WORKING, "other")))


def moved_to_another_type(manager: InMemoryManager) -> None:
    put(manager, stored(manager, RecordKey.under("memory", ConversationMemoryType.LONG_TERM_MEMORY, "c")))


def moved_to_another_memory(manager: InMemoryManager) -> None:
    record = stored(manager)
    one, two = record.items
    put(manager, replace(record, items=(replace(one, text=two.text), replace(two, text=one.text))))


def with_another_mark_below(manager: InMemoryManager) -> None:
    alter(manager, lambda item: replace(item, marks=("zstd", *item.marks)))


def under_the_name_of_another_key(manager: InMemoryManager) -> None:
    alter(manager, lambda item: replace(item, marks=("aes-256-gcm:old",)))


def as_if_with_metadata(manager: InMemoryManager) -> None:
    alter(manager, lambda item: replace(item, marks=("aes-256-gcm+metadata:new",)))


def one_bit_less(manager: InMemoryManager) -> None:
    def flip(item: Item) -> Item:
        data = bytearray(base64.b64decode(item.text))
        data[-1] ^= 1
        return replace(item, text=base64.b64encode(data).decode())

    alter(manager, flip)


def cut(manager: InMemoryManager) -> None:
    alter(manager, lambda item: replace(item, text=item.text[:8]))


def emptied(manager: InMemoryManager) -> None:
    alter(manager, lambda item: replace(item, text=""))


def no_base64(manager: InMemoryManager) -> None:
    alter(manager, lambda item: replace(item, text=item.text + "€"))


def alter(manager: InMemoryManager, how: Callable[[Item], Item]) -> None:
    record = stored(manager)
    put(manager, replace(record, items=tuple(map(how, record.items))))


@pytest.mark.parametrize(
    "tamper",
    [
        moved_to_another_conversation, moved_to_another_type, moved_to_another_memory, with_another_mark_below,
        under_the_name_of_another_key, as_if_with_metadata, one_bit_less, cut, emptied, no_base64,
    ],
)  # fmt: skip
def test_what_was_altered_or_moved_is_refused(tamper: Callable[[InMemoryManager], None]) -> None:
    inner = InMemoryManager()
    manager = Encrypted(inner, keys=ring())
    for request in (of(SECRET, "two"), of(SECRET, conversation_id="other")):
        manager.store(request)
    manager.store(IMemoryInput("c", ConversationMemoryType.LONG_TERM_MEMORY, [IWorkingMemory(SECRET)]))
    before = stored(inner)
    tamper(inner)
    assert stored(inner) != before
    with pytest.raises(AlteredMemoryError) as caught:
        manager.retrieve(of())
    assert "canary" not in str(caught.value)
    with pytest.raises(AlteredMemoryError):
        manager.update(of("x", memory_id="1"))
    manager.store(of("afresh"))
    assert manager.retrieve(of())[0].working_memory == "afresh"


LONG_TERM = ConversationMemoryType.LONG_TERM_MEMORY
ELSEWHERE = {
    "prefix": RecordKey.under("other", WORKING, "c"),
    "prefix below": RecordKey.under("memory:other", WORKING, "c"),
    "type": RecordKey.under("memory", LONG_TERM, "c"),
    "conversation": RecordKey.under("memory", WORKING, "d"),
}


def with_an_earlier_version(key: RecordKey) -> tuple[InMemoryManager, Versioned, IMemoryInput]:
    """Return a store with a record under this key, that was written twice, how to read it, and what to ask for."""
    inner = InMemoryManager(prefix=key.name.partition(f":{key.memory_type}:")[0])
    manager = Versioned(Encrypted(inner, keys=ring(), metadata=True))
    request = IMemoryInput(key.conversation_id, key.memory_type, [IWorkingMemory(SECRET, {"a": 1})], metadata={"b": 2})
    for _ in range(2):
        assert manager.store(request) == key.name
    return inner, manager, request


@pytest.mark.parametrize("part", ["items", "metadata", "versions"])
@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_ciphertext_opens_under_its_own_key_only(elsewhere: str, part: str) -> None:
    """The same texts, memory ids and keys of the ring everywhere: nothing but the place tells them apart."""
    home, _, _ = with_an_earlier_version(KEY)
    taken = {part: getattr(stored(home), part)}
    for key, is_home in ((KEY, True), (ELSEWHERE[elsewhere], False)):
        inner, manager, request = with_an_earlier_version(key)
        before = stored(inner, key)
        put(inner, replace(before, **taken), key)
        assert stored(inner, key) != before
        if is_home:
            assert [memory.working_memory for memory in manager.retrieve(request)] == [SECRET]
            assert len(manager.get_memory_history(key.conversation_id, key.memory_type)) == 1
            continue
        if part == "versions":  # what is there now may be read and written all the same
            assert [memory.working_memory for memory in manager.retrieve(request)] == [SECRET]
            with pytest.raises(AlteredMemoryError):
                manager.get_memory_history(key.conversation_id, key.memory_type)
            when = taken["versions"][0].last_update
            with pytest.raises(AlteredMemoryError):
                manager.restore_version(key.conversation_id, key.memory_type, timestamp=when)
            manager.update(request)
            continue
        with pytest.raises(AlteredMemoryError):
            manager.retrieve(request)
        with pytest.raises(AlteredMemoryError):
            manager.update(request)


def test_an_earlier_version_whose_key_is_not_there_stays_as_it_is() -> None:
    """Whoever does not have the key reads and writes what is there now; whoever has it finds the version again."""
    inner, other = InMemoryManager(), InMemoryManager()
    for text in ("first", "second"):
        Versioned(Encrypted(other, keys=ring("old", old=OLD), metadata=True)).store(of(text, metadata={"a": 1}))
    without = Versioned(Encrypted(inner, keys=ring("new", new=NEW), metadata=True))
    without.store(of("second"))
    before = stored(other).versions
    put(inner, replace(stored(inner), versions=before))
    for text in ("third", "fourth"):
        without.store(of(text))
        assert without.retrieve(of())[0].working_memory == text
        with pytest.raises(MissingKeyError, match="'old'"):
            without.get_memory_history("c", WORKING)
    without.update(of("fifth"))
    with pytest.raises(MissingKeyError):
        without.restore_version("c", WORKING, timestamp=before[0].last_update)
    assert stored(inner).versions[: len(before)] == before
    found = Versioned(Encrypted(inner, keys=ring(), metadata=True)).get_memory_history("c", WORKING)
    assert [version["content"] for version in found] == ["first", "second", "third", "fourth"]
    assert found[0]["metadata"] == {"a": 1}


def test_present_contents_that_cannot_be_read_are_not_written_over_where_versions_are_kept() -> None:
    inner = InMemoryManager()
    manager = Versioned(Encrypted(inner, keys=ring()))
    manager.store(of("first"))
    record = stored(inner)
    put(inner, replace(record, items=(replace(record.items[0], text=record.items[0].text[:-8]),)))
    before = stored(inner)
    for write in (manager.store, lambda one: manager.store_many([one]), manager.update):
        with pytest.raises(AlteredMemoryError, match="WORKING_MEMORY:c"):
            write(of("second"))
    assert stored(inner) == before
    manager.delete(of())
    manager.store(of("second"))
    assert manager.retrieve(of())[0].working_memory == "second"


def test_a_plain_version_is_refused_where_only_encrypted_ones_are_accepted() -> None:
    inner = InMemoryManager()
    for text in ("first", "second"):
        Versioned(inner).store(of(text))
    Versioned(Encrypted(inner, keys=ring())).store(of("third"))
    strict = Versioned(Encrypted(inner, keys=ring(), accept_plain=False))
    put(inner, replace(stored(inner), versions=(Record((Item("planted", "1"),), {}, "", "2020-01-01T00:00:00"),)))
    assert strict.retrieve(of())[0].working_memory == "third"
    with pytest.raises(AlteredMemoryError):
        strict.get_memory_history("c", WORKING)
    with pytest.raises(AlteredMemoryError):
        strict.restore_version("c", WORKING, timestamp="2020-01-01T00:00:00")
    strict.store(of("fourth"))
    with pytest.raises(AlteredMemoryError):
        strict.get_memory_history("c", WORKING)


def test_a_record_that_somebody_copies_in_redis_opens_under_its_own_prefix_only(redis_url: str, tenant: str) -> None:
    prefixes = [f"{tenant}-{name}" for name in ("theirs", "mine")]
    theirs, mine = (RedisWorkingMemoryManager(redis_url, prefix=prefix) for prefix in prefixes)
    with theirs, mine, redis.Redis.from_url(redis_url) as raw:
        Encrypted(theirs, keys=ring()).store(of(SECRET))
        source, destination = (f"{prefix}:WORKING_MEMORY:c" for prefix in prefixes)
        assert raw.copy(source, destination)
        assert Encrypted(theirs, keys=ring()).retrieve(of())[0].working_memory == SECRET
        with pytest.raises(AlteredMemoryError):
            Encrypted(mine, keys=ring()).retrieve(of())
        for manager in (theirs, mine):
            manager.delete(of())


@pytest.mark.parametrize("part", ["items", "metadata"])
def test_a_ciphertext_opens_under_the_name_of_its_key_only(part: str) -> None:
    """Also where two keys of the ring have the same bytes."""
    twice = {"new": NEW, "same": NEW}
    inner, other = InMemoryManager(), InMemoryManager()
    for each, active in ((inner, "new"), (other, "same")):
        Encrypted(each, keys=ring(active, **twice), metadata=True).store(of(SECRET, metadata={"a": 1}))
    before, named_otherwise = stored(inner), stored(other)
    if part == "items":
        (item,) = before.items
        renamed = replace(before, items=(replace(item, marks=named_otherwise.items[0].marks),))
    else:
        sealed = before.metadata[SEALED_METADATA][1]
        renamed = replace(before, metadata={SEALED_METADATA: ["same", sealed]})
    put(inner, renamed)
    assert stored(inner) != before
    with pytest.raises(AlteredMemoryError, match="'same'"):
        Encrypted(inner, keys=ring("new", **twice), metadata=True).retrieve(of())


def test_what_the_same_record_once_had_is_not_told_from_the_newest() -> None:
    """The page says so: keep those who might do that away from the store."""
    inner = InMemoryManager()
    manager = Versioned(Encrypted(inner, keys=ring(), metadata=True, accept_plain=False))
    for limit, role in (("limit 100", "admin"), ("limit 5", "user")):
        manager.store(of(limit, "never abroad", "third", metadata={"role": role}))
    new = stored(inner)
    (old,) = new.versions
    forged = {
        "the record": (old, ["limit 100", "never abroad", "third"], "admin"),
        "a memory": (
            replace(new, items=(old.items[0], *new.items[1:])),
            ["limit 100", "never abroad", "third"],
            "user",
        ),
        "metadata": (replace(new, metadata=old.metadata), ["limit 5", "never abroad", "third"], "admin"),
        "dropped": (replace(new, items=new.items[:1]), ["limit 5"], "user"),
        "order": (replace(new, items=new.items[::-1]), ["third", "never abroad", "limit 5"], "user"),
        "versions": (replace(new, versions=()), ["limit 5", "never abroad", "third"], "user"),
        "times": (replace(new, created_at="1999", last_update="1999"), ["limit 5", "never abroad", "third"], "user"),
    }
    for record, texts, role in forged.values():
        assert record != new
        put(inner, record)
        found = manager.retrieve(of())
        assert [memory.working_memory for memory in found] == texts
        assert {memory.metadata["role"] for memory in found} == {role}
        assert {memory.last_update for memory in found} == {record.last_update}
        assert len(manager.get_memory_history("c")) == len(record.versions)


@pytest.mark.parametrize("sealed", ["text", ["new"], ["new", "AAAA"], [1, 2], {"new": "AAAA"}])
def test_metadata_that_were_altered_are_refused(sealed: object) -> None:
    inner = InMemoryManager()
    manager = Encrypted(inner, keys=ring(), metadata=True)
    manager.store(of(SECRET, metadata={"a": 1}))
    put(inner, replace(stored(inner), metadata={SEALED_METADATA: sealed}))
    with pytest.raises(AlteredMemoryError):
        manager.retrieve(of())


def test_a_wrong_key_of_the_right_name_and_a_missing_one_are_two_errors() -> None:
    inner = InMemoryManager()
    Encrypted(inner, keys=ring()).store(of(SECRET))
    with pytest.raises(AlteredMemoryError):
        Encrypted(inner, keys=ring(new=OLD)).retrieve(of())
    with pytest.raises(MissingKeyError, match="'new'") as caught:
        Encrypted(inner, keys=ring("old", old=OLD)).retrieve(of())
    assert caught.value.key_id == "new"


def test_plain_memories_are_read_until_that_is_turned_off() -> None:
    inner = InMemoryManager()
    inner.store(of("plain"))
    assert Encrypted(inner, keys=ring()).retrieve(of())[0].working_memory == "plain"
    strict = Encrypted(inner, keys=ring(), accept_plain=False)
    with pytest.raises(AlteredMemoryError, match="not encrypted"):
        strict.retrieve(of())
    assert Encrypted(inner, keys=ring()).reencrypt("memory:*:c") == 1
    assert strict.retrieve(of())[0].working_memory == "plain"


def test_plain_metadata_are_refused_where_only_encrypted_ones_are_accepted() -> None:
    inner = InMemoryManager()
    strict = Encrypted(inner, keys=ring(), metadata=True, accept_plain=False)
    Encrypted(inner, keys=ring()).store(of(SECRET, metadata={"a": 1}))
    with pytest.raises(AlteredMemoryError, match="metadata"):
        strict.retrieve(of())
    assert Encrypted(inner, keys=ring(), metadata=True).reencrypt("memory:*:c") == 1
    assert strict.retrieve(of())[0].metadata == {"a": 1}
    put(inner, replace(stored(inner), metadata={"a": 2}))
    with pytest.raises(AlteredMemoryError, match="metadata"):
        strict.retrieve(of())
    Encrypted(inner, keys=ring(), metadata=True).store(of(SECRET, metadata={"a": 1}))
    assert strict.retrieve(of())[0].metadata == {"a": 1}


def test_reencrypt_leaves_the_time_to_live_of_every_store(redis_url: str, tenant: str, tmp_path: Path) -> None:
    with RedisWorkingMemoryManager(redis_url, ttl=5000, prefix=tenant) as inner, redis.Redis.from_url(redis_url) as raw:
        inner.store(of("text"))
        raw.expire(f"{tenant}:WORKING_MEMORY:c", 1000)
        assert Encrypted(inner, keys=ring()).reencrypt(f"{tenant}:WORKING_MEMORY:c*") == 1
        assert raw.ttl(f"{tenant}:WORKING_MEMORY:c") in range(700, 1001)
        inner.ttl = None
        inner.store(of("for ever"))
        inner.ttl = 1000
        assert Encrypted(inner, keys=ring()).reencrypt(f"{tenant}:WORKING_MEMORY:c*") == 1
        assert raw.ttl(f"{tenant}:WORKING_MEMORY:c") == -1
        inner.delete(of())
    time = [1_800_000_000.0]
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    with SQLMemoryManager(url, ttl=100, timeout_seconds=30, wall_clock=lambda: time[0]) as inner_sql:
        inner_sql.store(of("text"))
        time[0] += 60
        assert Encrypted(inner_sql, keys=ring()).reencrypt("memory:*", everything=True) == 1
        time[0] += 39
        assert len(Encrypted(inner_sql, keys=ring()).retrieve(of())) == 1
        time[0] += 2
        assert Encrypted(inner_sql, keys=ring()).retrieve(of()) == []


def test_a_write_uses_the_active_key_and_reencrypt_does_the_rest() -> None:
    time = [1000.0]
    inner = InMemoryManager(ttl=100, clock=lambda: time[0])
    before = Versioned(Encrypted(inner, keys=ring("old")))
    for number in range(20):
        before.store(of(f"first {number}", conversation_id=f"c{number}", metadata={"n": number}))
        before.store(of(f"second {number}", conversation_id=f"c{number}", metadata={"n": number}))
    time[0] += 60

    encrypted = Encrypted(inner, keys=ring("new"))
    after = Versioned(encrypted)
    after.update(of("third", conversation_id="c0"))
    key = RecordKey.under("memory", WORKING, "c0")
    assert "aes-256-gcm:old" not in repr(stored(inner, key)), "a change rewrites the versions too"

    times = [stored(inner, RecordKey.under("memory", WORKING, f"c{number}")).last_update for number in range(20)]
    told: list[int] = []
    assert encrypted.reencrypt("memory:WORKING_MEMORY:c*", progress=told.append) == 19
    assert told[-1] == 19
    assert encrypted.reencrypt("memory:WORKING_MEMORY:c*") == 0
    only_new = Versioned(Encrypted(inner, keys=ring("new", new=NEW)))
    for number in range(1, 20):
        name = f"c{number}"
        record = stored(inner, RecordKey.under("memory", WORKING, name))
        assert "aes-256-gcm:old" not in repr(record)
        assert record.last_update == times[number]
        assert only_new.retrieve(of(conversation_id=name))[0].working_memory == f"second {number}"
        assert [version["content"] for version in only_new.get_memory_history(name)] == [f"first {number}"]
    time[0] += 39
    assert len(inner.storage) == 20
    time[0] += 2
    # What was re-encrypted expires when it would have; what was updated has a new time to live.
    assert list(inner.storage) == ["memory:WORKING_MEMORY:c0"]


@pytest.mark.parametrize("is_outer", [True, False])
def test_reencrypt_adds_no_version_wherever_versions_are_kept(is_outer: bool) -> None:
    inner = InMemoryManager()
    old, new = (
        Encrypted(inner if is_outer else Versioned(inner), keys=ring(active), metadata=True)
        for active in ("old", "new")
    )
    manager = Versioned(old) if is_outer else old
    for text in ("one", "two", "three"):
        manager.store(of(text, metadata={"is": text}))
    assert new.reencrypt("memory:*", everything=True) == 1
    reader = Versioned(new) if is_outer else new
    assert [version["content"] for version in reader.get_memory_history("c")] == ["one", "two"]
    assert [version["metadata"] for version in reader.get_memory_history("c")] == [{"is": "one"}, {"is": "two"}]
    assert '"old' not in repr(stored(inner))
    assert "gcm:old" not in repr(stored(inner))


def test_reencrypt_does_the_rest_and_names_what_it_could_not_read() -> None:
    inner = InMemoryManager()
    old, new = (Versioned(Encrypted(inner, keys=ring(active))) for active in ("old", "new"))
    for number in range(6):
        for text in ("first", "second"):
            old.store(of(f"{text} {number}", conversation_id=f"c{number}"))
    keys = [RecordKey.under("memory", WORKING, f"c{number}") for number in range(6)]

    def harm(record: Record) -> Record:
        return replace(record, items=tuple(replace(item, text=item.text[:-8]) for item in record.items))

    before = {number: stored(inner, keys[number]) for number in (2, 4)}
    put(inner, harm(before[2]), keys[2])
    put(inner, replace(before[4], versions=tuple(map(harm, before[4].versions))), keys[4])
    inner.store_of_records.put([(keys[5].name, b"no record", None)])
    told: list[int] = []
    for renewed in (4, 0):
        with pytest.raises(NotRenewedError) as caught:
            new.manager.reencrypt("memory:*", everything=True, progress=told.append)  # type: ignore[attr-defined]
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.renewed, len(error.problems)) == (renewed, 3)
        for number in (2, 4, 5):
            assert f"WORKING_MEMORY:c{number}" in str(error)
        assert "second" not in str(error)
    assert told[-2:] == [4, 0]
    only_new = Versioned(Encrypted(inner, keys=ring("new", new=NEW)))
    for number in (0, 1, 3, 4):
        assert only_new.retrieve(of(conversation_id=f"c{number}"))[0].working_memory == f"second {number}"
    with pytest.raises(CorruptDataError, match="WORKING_MEMORY:c5: bytes that are not"):
        only_new.retrieve(of(conversation_id="c5"))
    put(inner, before[2], keys[2])
    inner.delete(of(conversation_id="c4"))
    inner.delete(of(conversation_id="c5"))
    assert Encrypted(inner, keys=ring()).reencrypt("memory:*", everything=True) == 1


def test_encrypted_metadata_need_the_same_of_an_encryption_within() -> None:
    """It would take what is encrypted already for what it has encrypted itself."""
    one, other = ring("old", old=OLD), ring("new", new=NEW)
    with pytest.raises(ConfigurationError, match="metadata=True to that one"):
        Encrypted(Versioned(Encrypted(InMemoryManager(), keys=one)), keys=other, metadata=True)
    for inner, outer in ((True, True), (True, False), (False, False)):
        manager = Encrypted(Encrypted(InMemoryManager(), keys=one, metadata=inner), keys=other, metadata=outer)
        manager.store(of(SECRET, metadata={"a": 1}, item={"b": 2}))
        (memory,) = manager.retrieve(of())
        assert (memory.working_memory, memory.metadata) == (SECRET, {"a": 1, "b": 2})


@pytest.mark.parametrize("value", ["a:é", ",", "a", "a:!", ":", "é:AAAA"])
def test_keys_of_the_environment_that_are_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKING_MEMORY_KEYS", value)
    with pytest.raises(ConfigurationError):
        KeyRing.from_env()


def test_reencrypt_refuses_what_would_match_everything() -> None:
    with pytest.raises(InvalidInputError, match="pattern"):
        Encrypted(InMemoryManager(), keys=ring()).reencrypt("*")


def test_a_strategy_that_cannot_see_the_metadata_says_so() -> None:
    inner = InMemoryManager()
    blind = TTLStrategy(inner, {"guest": 60})
    for manager in (blind, Versioned(blind)):
        with pytest.raises(ConfigurationError, match="wrap Encrypted in TTLStrategy"):
            Encrypted(manager, keys=ring(), metadata=True)
        Encrypted(manager, keys=ring()).store(of("x", metadata={"user_type": "guest"}))
    Encrypted(inner, keys=ring(), metadata=True).store(of("x", metadata={"user_type": "guest"}))
    with pytest.raises(ConfigurationError, match="wrap Encrypted in TTLStrategy"):
        blind.store(of("x", metadata={SEALED_METADATA: ["new", "somebody else has encrypted them"]}))


def test_a_key_ring_is_checked_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "active='new'" in repr(ring())
    assert "old" in repr(ring())
    assert repr(OLD)[2:-1] not in f"{ring()!r} {ring()}"
    for keys, active in (({"a": b"short"}, "a"), ({"a:b": OLD}, "a:b"), ({"a": OLD}, "b"), ({"a": "x" * 32}, "a")):
        with pytest.raises(ConfigurationError) as caught:
            KeyRing(keys, active=active)  # type: ignore[arg-type]
        assert "short" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="KeyRing"):
        Encrypted(InMemoryManager(), keys={"a": OLD})  # type: ignore[arg-type]
    new, old = (base64.b64encode(key).decode() for key in (NEW, OLD))
    monkeypatch.setenv("WORKING_MEMORY_KEYS", f"new:{new}, old:{old}")
    inner = InMemoryManager()
    Encrypted(inner, keys=KeyRing.from_env()).store(of(SECRET))
    assert stored(inner).items[0].marks == ("aes-256-gcm:new",)
    assert Encrypted(inner, keys=ring()).retrieve(of())[0].working_memory == SECRET
    for value in ("", " ", "new", "new:!!!", f"new:{new},new:{old}", f"new:{new[:20]}", f":{new}"):
        monkeypatch.setenv("WORKING_MEMORY_KEYS", value)
        with pytest.raises(ConfigurationError) as caught:
            KeyRing.from_env()
        assert new not in str(caught.value)
    assert len({KeyRing.generate() for _ in range(10)}) == 10


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigurationError, match=r"contract-engine\[encryption\]"):
        Encrypted(InMemoryManager(), keys=ring())


WRITER = """
import sys
from contract_engine.working_memory import IMemoryInput, IWorkingMemory
from contract_engine.working_memory.redis_memory_manager import RedisWorkingMemoryManager
from contract_engine.working_memory.encryption import Encrypted, KeyRing
from contract_engine.working_memory.versions import Versioned
url, prefix, active, count = sys.argv[1:]
keys = KeyRing({"old": bytes(range(32)), "new": bytes(range(32, 64))}, active=active)
manager = Versioned(Encrypted(RedisWorkingMemoryManager(url, prefix=prefix, timeout_seconds=30), keys=keys), keep=1000)
for number in range(int(count)):
    manager.store(IMemoryInput("c", "WORKING_MEMORY", [IWorkingMemory(f"{active} {number}")]))
    assert manager.retrieve(IMemoryInput("c", "WORKING_MEMORY"))
"""


def test_two_processes_with_different_active_keys_lose_nothing(redis_url: str, tenant: str) -> None:
    """One has been told of the rotation and one has not, and a third re-encrypts meanwhile."""
    arguments = [sys.executable, "-W", "error", "-c", WRITER, redis_url, tenant]
    writers = [subprocess.Popen([*arguments, active, "40"], env=os.environ) for active in ("old", "new")]
    with RedisWorkingMemoryManager(redis_url, prefix=tenant, timeout_seconds=30) as inner:
        encrypted = Encrypted(inner, keys=ring("new"))
        try:
            while any(writer.poll() is None for writer in writers):
                encrypted.reencrypt(f"{tenant}:WORKING_MEMORY:c*")
        finally:
            for writer in writers:
                writer.wait(timeout=60)
        assert [writer.returncode for writer in writers] == [0, 0]
        encrypted.reencrypt(f"{tenant}:WORKING_MEMORY:c*")
        manager = Versioned(Encrypted(inner, keys=ring("new", new=NEW)))
        contents = [version["content"] for version in manager.get_memory_history("c")]
        contents.append(manager.retrieve(of())[0].working_memory)
        expected = {f"{active} {number}" for active in ("old", "new") for number in range(40)}
        assert sorted(contents) == sorted(expected)
        manager.delete(of())


def test_no_plain_text_is_in_redis_or_in_the_log(redis_url: str, tenant: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisWorkingMemoryManager(redis_url, prefix=tenant) as inner, redis.Redis.from_url(redis_url) as raw:
        manager = Versioned(Encrypted(inner, keys=ring(), metadata=True))
        for number in range(3):
            manager.store(of(f"{SECRET} {number}", item={"of": SECRET}, metadata={"name": SECRET}))
        manager.update(of(f"{SECRET} again", metadata={"also": SECRET}))
        body = raw.get(f"{tenant}:WORKING_MEMORY:c")
        assert isinstance(body, bytes)
        assert len(manager.get_memory_history("c")) == 3
        for word in (b"canary", base64.b64encode(SECRET.encode())[:20], SECRET.encode().hex().encode()):
            assert word not in body
        assert "canary" not in caplog.text
        manager.delete(of())


def test_no_plain_text_is_in_the_file_of_a_database(tmp_path: Path) -> None:
    """Nor in what SQLite keeps beside it, open or closed; the same search finds what is plain."""
    with SQLMemoryManager(f"sqlite:///{tmp_path / 'memory.db'}", timeout_seconds=30) as inner:
        manager = Versioned(Encrypted(Compressed(inner), keys=ring(), metadata=True))
        for number in range(50):
            manager.store(of(f"{SECRET} {number} " * 20, item={"of": SECRET}, metadata={"name": SECRET}))
        manager.update(of(f"{SECRET} again", metadata={"also": SECRET}))
        assert len(manager.get_memory_history("c")) == 10
        while_open = [path.read_bytes() for path in tmp_path.iterdir()]
    when_closed = [path.read_bytes() for path in tmp_path.iterdir()]
    assert any(b"aes-256-gcm" in body for body in while_open)
    assert not any(b"canary" in body for body in [*while_open, *when_closed])
    with SQLMemoryManager(f"sqlite:///{tmp_path / 'memory.db'}", timeout_seconds=30) as inner:
        inner.store(of(SECRET, conversation_id="plain"))
        assert any(b"canary" in path.read_bytes() for path in tmp_path.iterdir())
