"""Memories that nobody who only has the store can read, or change unseen."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from contract_engine.memory.errors import ConfigurationError, CorruptDataError, InvalidInputError
from contract_engine.memory.serializer import decode_text, decode_value, encode_text, encode_value
from contract_engine.working_memory.errors import (
    AlteredMemoryError,
    MissingKeyError,
    NotRenewedError,
    UnreadableMemoryError,
)
from contract_engine.working_memory.front import Progress
from contract_engine.working_memory.layers import Call, Flow, Layer, run, run_async
from contract_engine.working_memory.manager import AsyncWorkingMemoryManager, WorkingMemoryManager
from contract_engine.working_memory.patterns import check_pattern
from contract_engine.working_memory.records import Item, Record, RecordKey, Ttl
from contract_engine.working_memory.wrapping import AsyncWrapper, Manager, Room, Sealing, Wrapped, Wrapper, Wrapping

METHOD = "aes-256-gcm"
WITH_METADATA = "aes-256-gcm+metadata"

SEALED_METADATA = "aes-256-gcm+metadata"
"""The one name in the metadata of a record whose metadata are encrypted; its value is key id and ciphertext."""

KEYS_VARIABLE = "WORKING_MEMORY_KEYS"

_KEY_BYTES = 32
_NONCE_BYTES = 12
_NO_LIMIT = 2**62


class KeyRing:
    """The keys of an application: one to write with, and older ones to read what they wrote. It never shows them.

    To rotate, add a key and make it the active one everywhere, call ``reencrypt``, and only then take the old one away:
    a process that does not have the new key yet cannot read what others write with it. So give it to all first.
    """

    def __init__(self, keys: Mapping[str, bytes], *, active: str) -> None:
        if not isinstance(keys, Mapping):
            raise ConfigurationError("keys", f"expected a mapping from ids to keys, got {type(keys).__name__}")
        for key_id, secret in keys.items():
            _check_key(key_id, secret)
        name: object = active
        if not isinstance(name, str) or name not in keys:
            raise ConfigurationError("active", f"no key of the id {active!r} is in the ring")
        self.active = active
        self._keys = dict(keys)

    def __repr__(self) -> str:
        return f"KeyRing(active={self.active!r}, ids={sorted(self._keys)})"

    @staticmethod
    def generate() -> bytes:
        """Return a new random key."""
        return os.urandom(_KEY_BYTES)

    @classmethod
    def from_env(cls, *, variable: str = KEYS_VARIABLE) -> KeyRing:
        """Read ``id:key,id:key`` with keys in base64; the first is the active one."""
        value = os.environ.get(variable, "")
        if not value.strip():
            raise ConfigurationError(variable, "is not set: expected id:key,id:key with keys of 32 bytes in base64")
        keys: dict[str, bytes] = {}
        for entry in value.split(","):
            key_id, _, secret = entry.strip().partition(":")
            if key_id in keys:
                raise ConfigurationError(variable, f"key {key_id!r} stands in it twice")
            try:
                keys[key_id] = base64.b64decode(secret, validate=True)
            except ValueError as exc:
                raise ConfigurationError(variable, f"key {key_id!r} is not base64") from exc
        return cls(keys, active=next(iter(keys)))

    def secret(self, key_id: str) -> bytes | None:
        """Return a key, None where it is not in the ring."""
        return self._keys.get(key_id)


class EncryptedLayer(Sealing):
    """Encrypts items, each bound to its key, its memory id and what was done to it before.

    ``hides_metadata``: it encrypts metadata too.
    """

    def __init__(self, below: Layer, *, keys: KeyRing, metadata: bool, accept_plain: bool) -> None:
        super().__init__(below)
        if not isinstance(keys, KeyRing):
            raise ConfigurationError("keys", f"expected a KeyRing, got {type(keys).__name__}")
        if metadata:
            _check_below(below)
        _primitives()  # what is missing is told now, not at the first memory
        self._keys = keys
        self.hides_metadata = metadata
        self._accept_plain = accept_plain
        self._cipher = lru_cache(maxsize=256)(self._make_cipher)

    def seal(self, key: RecordKey, item: Item) -> Item:
        """See :class:`Sealing`."""
        mark = self._mark()
        place = (item.memory_id, mark, *item.marks)
        if not self.hides_metadata:
            text = self._encrypt(key, self._keys.active, place, encode_text(item.text))
            return replace(item, text=text, marks=(*item.marks, mark))
        content = encode_value([item.text, dict(item.metadata)], field="data", max_bytes=_NO_LIMIT)
        text = self._encrypt(key, self._keys.active, place, content)
        return replace(item, text=text, metadata={}, marks=(*item.marks, mark))

    def open(self, key: RecordKey, item: Item, room: Room) -> Item:
        """See :class:`Sealing`."""
        mark = item.marks[-1] if item.marks else ""
        method, _, key_id = mark.partition(":")
        if method not in (METHOD, WITH_METADATA):
            if self._accept_plain:
                return item
            raise AlteredMemoryError(key, "not encrypted, and only encrypted memories are accepted")
        if self.hides_metadata and method == METHOD and not self._accept_plain:
            raise AlteredMemoryError(key, "its metadata are not encrypted, and only encrypted ones are accepted")
        below = item.marks[:-1]
        content = self._decrypt(key, key_id, (item.memory_id, mark, *below), item.text)
        if method == METHOD:
            return replace(item, text=decode_text(content), marks=below)
        text, metadata = decode_value(content)
        return replace(item, text=text, metadata=metadata, marks=below)

    def seal_metadata(self, key: RecordKey, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :class:`Sealing`."""
        if not self.hides_metadata:
            if SEALED_METADATA in metadata:
                raise InvalidInputError("metadata", f"the name {SEALED_METADATA!r} is taken")
            return metadata
        content = encode_value(dict(metadata), field="metadata", max_bytes=_NO_LIMIT)
        active = self._keys.active
        sealed = self._encrypt(key, active, (SEALED_METADATA, active), content)
        return {SEALED_METADATA: [active, sealed]}

    def open_metadata(self, key: RecordKey, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :class:`Sealing`."""
        if SEALED_METADATA not in metadata:
            if self._accept_plain or not self.hides_metadata:
                return metadata
            raise AlteredMemoryError(key, "its metadata are not encrypted, and only encrypted ones are accepted")
        match metadata[SEALED_METADATA]:
            case [str(key_id), str(sealed)]:
                content = self._decrypt(key, key_id, (SEALED_METADATA, key_id), sealed)
                found: Mapping[str, Any] = decode_value(content)
                return found
        raise AlteredMemoryError(key, "its metadata are not what was encrypted")

    def is_current(self, item: Item) -> bool:
        """See :class:`Sealing`: what an older key has encrypted is encrypted anew with any change of its record."""
        return item.marks[-1:] == (self._mark(),)

    def renew(self, key: RecordKey) -> Flow[tuple[bool, Exception | None]]:
        """Encrypt a record with the active key if any of it is not, atomically.

        Answers whether it was necessary, and what is wrong with an earlier version that cannot be read.
        """
        renewed, problem = False, None

        def anew(below: Record | None) -> Record | None:
            nonlocal renewed, problem
            renewed, problem = False, None
            if below is None or self._is_renewed(below):
                return below
            opened = self.opened(key, below)
            left = [version.left[1] for version in opened.versions if version.left is not None]
            problem = left[0] if left else None
            pairs = zip(below.versions, opened.versions, strict=True)
            renewed = not self._is_renewed(
                replace(below, versions=tuple(sealed for sealed, version in pairs if version.left is None))
            )
            return replace(self.sealed(key, opened), ttl_seconds=Ttl.AS_BEFORE) if renewed else below

        yield from self.below.change(key, anew)
        return renewed, problem

    def _mark(self) -> str:
        return f"{WITH_METADATA if self.hides_metadata else METHOD}:{self._keys.active}"

    def _is_renewed(self, record: Record) -> bool:
        if not all(map(self.is_current, record.items)):
            return False
        sealed = record.metadata.get(SEALED_METADATA)
        if self.hides_metadata != (isinstance(sealed, list) and sealed[:1] == [self._keys.active]):
            return False
        return all(map(self._is_renewed, record.versions))

    def _encrypt(self, key: RecordKey, key_id: str, place: tuple[str, ...], content: bytes) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher(key, key_id).encrypt(nonce, content, _bound(key, place))
        return base64.b64encode(nonce + sealed).decode("ascii")

    def _decrypt(self, key: RecordKey, key_id: str, place: tuple[str, ...], text: str) -> bytes:
        _, _, _, invalid_tag = _primitives()
        cipher = self._cipher(key, key_id)
        try:
            data = base64.b64decode(text, validate=True)
            content: bytes = cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound(key, place))
        except (invalid_tag, ValueError, CorruptDataError) as exc:
            raise AlteredMemoryError(key, f"does not open with key {key_id!r}: altered, moved, or another key") from exc
        return content

    def _make_cipher(self, key: RecordKey, key_id: str) -> Any:
        """Make the cipher of one record, so that nonces of two records never meet."""
        secret = self._keys.secret(key_id)
        if secret is None:
            raise MissingKeyError(key, key_id)
        aes_gcm, hkdf, sha256, _ = _primitives()
        info = b"contract-engine working memory\x00" + _bound(key, ())
        return aes_gcm(hkdf(algorithm=sha256(), length=_KEY_BYTES, salt=None, info=info).derive(secret))


class _Encrypted(Wrapped[Manager]):
    """What both colours have."""

    def __init__(self, manager: Manager, *, keys: KeyRing, metadata: bool = False, accept_plain: bool = True) -> None:
        # The layer within is asked for only once it is known to be of this colour.
        self._check_manager(manager)
        self._encrypted = EncryptedLayer(manager.layer, keys=keys, metadata=metadata, accept_plain=accept_plain)
        super().__init__(manager, lambda _: self._encrypted)

    def _reencrypt(self, pattern: str, *, everything: bool, progress: Progress | None) -> Flow[int]:
        check_pattern(pattern, self.prefix, everything=everything)
        renewed, cursor = 0, None
        problems: list[Any] = []
        while True:
            names, cursor = yield Call(self.store_of_records.scan, (pattern, cursor))
            for name in names:
                key = RecordKey.of(name, prefix=self.prefix)
                if key is None:
                    continue
                try:
                    is_renewed, problem = yield from self._encrypted.renew(key)
                except (UnreadableMemoryError, CorruptDataError) as exc:
                    is_renewed, problem = False, exc.with_traceback(None)
                renewed += is_renewed
                if problem is not None:
                    problems.append(problem)
            if progress is not None:
                progress(renewed)
            if cursor is None:
                break
        if problems:
            raise NotRenewedError(renewed, problems)
        return renewed


class Encrypted(_Encrypted[WorkingMemoryManager], Wrapper):
    """Keeps texts encrypted with AES-256-GCM; with ``metadata`` those of records and memories too.

    Metadata that are not encrypted are not protected from changes either.
    Conversation ids, memory ids, times and lengths remain to be seen. A ciphertext that was altered or moved to another
    record or memory is an :class:`AlteredMemoryError`. What the same record once had is not told from the newest: who
    can write to the store can put back all of it, or single memories, versions or metadata, leave some out, and change
    times. ``accept_plain``: read what was written before there was encryption; turn it off after :meth:`reencrypt`,
    since until then anybody with the store can put plain memories there.
    """

    def reencrypt(self, pattern: str, *, everything: bool = False, progress: Progress | None = None) -> int:
        """Encrypt the records whose keys match a glob with the active key, earlier versions too, and return how many.

        Each by itself and atomically, beside what others do; what is encrypted with it already is left alone. Times,
        also those to live, stay. Broken off, it may be called again. ``progress`` is told how many are done so far.
        Where some of it cannot be read, that stays as it is, the rest is done, and :class:`NotRenewedError` names it.
        """
        return run(self._reencrypt(pattern, everything=everything, progress=progress))


class AsyncEncrypted(_Encrypted[AsyncWorkingMemoryManager], AsyncWrapper):
    """:class:`Encrypted` for an event loop."""

    async def reencrypt(self, pattern: str, *, everything: bool = False, progress: Progress | None = None) -> int:
        """:meth:`Encrypted.reencrypt`."""
        return await run_async(self._reencrypt(pattern, everything=everything, progress=progress))


def _check_below(layer: Layer) -> None:
    """Refuse a layer that would have to read what is encrypted above it."""
    while isinstance(layer, Wrapping):
        if isinstance(layer, EncryptedLayer) and not layer.hides_metadata:
            problem = "another Encrypted is within that leaves them as they are, and would take these for its own"
            raise ConfigurationError("metadata", f"{problem}: give metadata=True to that one")
        if layer.reads_metadata:
            problem = "would hide metadata from a TTLStrategy: wrap Encrypted in TTLStrategy, not the other way round"
            raise ConfigurationError("metadata", problem)
        layer = layer.below


def _check_key(key_id: object, secret: object) -> None:
    if not isinstance(key_id, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", key_id):
        raise ConfigurationError("keys", "the id of a key is 1 to 64 letters, digits, dots, dashes")
    if not isinstance(secret, bytes) or len(secret) != _KEY_BYTES:
        raise ConfigurationError("keys", f"key {key_id!r} must have {_KEY_BYTES} bytes; KeyRing.generate() makes one")


def _bound(key: RecordKey, place: tuple[str, ...]) -> bytes:
    """Return where a ciphertext belongs, in a form that no other place has."""
    return encode_text(json.dumps([key.name, *place]))


def _primitives() -> tuple[Any, Any, Any, Any]:
    """Import late: only those who encrypt need the package."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as exc:
        problem = "needs the package cryptography: install contract-engine[encryption]"
        raise ConfigurationError("encryption", problem) from exc
    return AESGCM, HKDF, SHA256, InvalidTag
