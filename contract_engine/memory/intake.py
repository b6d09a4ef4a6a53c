"""The gate: what comes in is checked, encoded and counted here, before anything is written anywhere."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.keys import check_message_id
from contract_engine.memory.models import Outgoing
from contract_engine.memory.serializer import encode_message
from contract_engine.memory.token_counter import TokenCounter

MAX_BATCH = 10_000
"""Messages in one ``add_messages``: a batch is one statement and one script, and both hold their session meanwhile."""


class Intake:
    """Turns what callers hand in into what the stores take, or refuses it with an error that names the field."""

    def __init__(self, counter: TokenCounter, *, max_message_bytes: int) -> None:
        self._counter = counter
        self._max_message_bytes = max_message_bytes

    def message(self, message: object, message_id: str | None = None) -> Outgoing:
        """Check, encode and count one message; without an id it gets a fresh one."""
        body = encode_message(message, max_bytes=self._max_message_bytes)
        assert isinstance(message, dict), "encode_message refuses everything else"
        tokens = self._counter.count_message_tokens(message)
        if message_id is None:
            return Outgoing(new_message_id(), tokens, body, message, False)
        return Outgoing(check_message_id(message_id), tokens, body, message, True)

    def batch(self, messages: object) -> list[Outgoing]:
        """Check, encode and count several; the first that is refused is named by its place."""
        if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
            raise InvalidInputError("messages", f"expected a list of dicts, got {type(messages).__name__}")
        if len(messages) > MAX_BATCH:
            raise InvalidInputError("messages", f"{len(messages):,} in one batch, at most {MAX_BATCH:,}")
        outgoing: list[Outgoing] = []
        for place, message in enumerate(messages):
            try:
                outgoing.append(self.message(message))
            except InvalidInputError as exc:
                field = exc.field.replace("message", f"messages[{place}]", 1)
                raise type(exc)(field, exc.problem) from exc
        return outgoing


def new_message_id() -> str:
    """Return a fresh UUIDv7 (RFC 9562): it begins with the time, so an index on ids grows at its end."""
    # 48 bits of time, version 7, 12 random bits, variant 2, 62 random bits: printed at once, cut into groups.
    digits = "%032x" % (
        (time.time_ns() // 1_000_000 << 80 | random.getrandbits(76)) & _RANDOM_BITS | _VERSION_AND_VARIANT
    )
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_VERSION_AND_VARIANT = 7 << 76 | 2 << 62
_RANDOM_BITS = ~(15 << 76 | 3 << 62)
