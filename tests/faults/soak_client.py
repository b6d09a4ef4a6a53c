"""What the clients of the soak do and check: one thing at a time, each noted in a journal."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import msgspec
from soak_journal import digest

from contract_engine.memory import ContentionError, InvalidInputError, Receipt, StoreUnavailableError
from contract_engine.memory.migration import AsyncEnhancedSessionStore, EnhancedSessionStore

ATTEMPTS = 3
"""How often a client sends an append before it gives up; it is the same append, by its message id."""

REFUSALS = (StoreUnavailableError, ContentionError)
"""What a server fault may make a caller see. Everything else is a violation."""

CLEARED_SESSIONS = 4
"""How many sessions, beside those that only grow, are erased now and then."""

DUAL_SESSIONS = 3
"""How many sessions are written through adapters of a migration, into a legacy table too."""

LIMITS = (
    {"max_buffer_messages": 6},
    {"max_buffer_messages": 9},
    {"max_buffer_tokens": 300},
    {"max_buffer_tokens": 400},
)


class Figures(msgspec.Struct):
    """What must not grow."""

    rss: int
    blocks: int
    sockets: int
    files: int
    threads: int
    tasks: int


class Status(msgspec.Struct):
    """What a worker says of itself; ``warm`` once it has warmed up, ``final`` when all its clients have ended."""

    acknowledged: int = 0
    unlogged: int = 0
    refused: int = 0
    cleared: int = 0
    reads: int = 0
    degraded: int = 0
    slowest: float = 0.0
    rejected: int = 0
    """Calls that went without a server, or failed, because a breaker was open."""
    warm: Figures | None = None
    now: Figures | None = None
    final: Figures | None = None
    left_open: list[str] = []


class Journal:
    """Lines appended to one file by any number of threads."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *fields: object) -> None:
        os.write(self._descriptor, json.dumps(fields).encode() + b"\n")


Notes = tuple[Journal, Status]
Adapter = EnhancedSessionStore | AsyncEnhancedSessionStore
Call = Callable[[Any], Any]
Talk = Generator[Call, Any, None]
"""What a client does, without a colour: it yields calls on its manager, and is sent their answers or their refusals."""


class Client:
    """One writer and reader of all sessions; ``adapter`` is the one over its manager."""

    def __init__(self, name: str, dice: random.Random, sessions: int, adapter: Adapter, notes: Notes) -> None:
        self.name = name
        self._dice = dice
        self._sessions = sessions
        self._adapter = adapter
        self._journal, self._status = notes
        self._said = 0
        self._logged: dict[str, int] = {}

    def talk(self) -> Talk:
        """Do one thing."""
        if self._dice.random() < 0.1:
            session = f"c{self._dice.randrange(CLEARED_SESSIONS)}"
            kinds, weights = (self._append, self._batch, self._read, self._clear), (60, 10, 20, 10)
            return self._dice.choices(kinds, weights=weights)[0](session)
        if self._dice.random() < 0.1:
            session = f"d{self._dice.randrange(DUAL_SESSIONS)}"
            both = (self._append, self._read, self._read_legacy)
            return self._dice.choices(both, weights=(70, 15, 15))[0](session)
        session = f"s{0 if self._dice.random() < 0.1 else self._dice.randrange(self._sessions)}"
        kind = self._dice.choices(
            (self._append, self._turn, self._batch, self._read, self._limit, self._bad),
            weights=(45, 20, 8, 24, 2, 1),
        )[0]
        return kind(session)

    def rest(self) -> float:
        """Return how long to wait before the next thing, in seconds: a load, not a flood."""
        return self._dice.uniform(0.0, 0.03)

    def _message(self, session: str, lengths: Sequence[int] = (0, 0, 2, 5, 30)) -> dict[str, Any]:
        self._said += 1
        words = " and more" * self._dice.choice(lengths)
        role = "user" if self._said % 2 else "assistant"
        content = f"Order {self._said} of {self.name} goes to Paris by 3 May{words}."
        return {"role": role, "writer": self.name, "n": self._said, "session": session, "content": content}

    def _begin(self, session: str, messages: Sequence[Mapping[str, Any]]) -> str:
        call = f"{self.name}-{messages[0]['n']}"
        numbers, digests = [one["n"] for one in messages], [digest(one) for one in messages]
        self._journal.write("begin", time.monotonic(), session, call, self.name, numbers, digests)
        return call

    def _append(self, session: str) -> Talk:
        message = self._message(session)
        call = self._begin(session, [message])

        def append(manager: Any) -> Any:
            writer = self._adapter if session.startswith("d") else manager
            return writer.append(session, message, message_id=call)

        receipt = yield from self._insist(append, call)
        if receipt is None:
            return
        self._acknowledge(session, call, [receipt])
        if self._dice.random() < 0.05 and not session.startswith("c"):  # what was erased meanwhile is a new message
            # Sent again although it was acknowledged: the answer must be the same, and is one effect.
            again = yield from self._insist(append, call)
            is_final = receipt.durable and not receipt.degraded
            if again is not None and is_final and again.durable and again.seq != receipt.seq:
                self._violation(f"{session}: {call} was number {receipt.seq}, and {again.seq} when sent again")

    def _turn(self, session: str) -> Talk:
        message = self._message(session)
        begun = time.monotonic()
        call = self._begin(session, [message])
        context = yield from self._insist(
            lambda manager: manager.add_and_get_context(session, message, message_id=call), call
        )
        if context is None:
            return
        # No receipt, so whether the log has it is unknown here: it counts as any other acknowledged message.
        self._journal.write("ok", time.monotonic(), call, None, None, context["degraded"])
        self._status.acknowledged += 1
        self._check(session, begun, context, newest=message)

    def _batch(self, session: str) -> Talk:
        # Short enough for every limit here: a batch that no buffer can hold is appended in parts where Redis is alone.
        messages = [self._message(session, (0, 1, 2)) for _ in range(self._dice.randint(2, 4))]
        call = self._begin(session, messages)
        # Without ids a batch must not be sent again: once, and what became of a refused one is not known.
        receipts = yield from self._insist(lambda manager: manager.add_messages(session, messages), call, attempts=1)
        if receipts is not None:
            self._acknowledge(session, call, receipts)

    def _read(self, session: str) -> Talk:
        begun = time.monotonic()
        context = yield lambda manager: manager.get_context(session)
        if isinstance(context, Mapping):
            self._check(session, begun, context)

    def _read_legacy(self, session: str) -> Talk:
        """Read the whole of a session through the adapter, from the legacy table and what that still is to get."""
        history = yield lambda _: self._adapter.get_chat_history(session)
        if not isinstance(history, list):
            return
        self._status.reads += 1
        keys = [(message["writer"], message["n"]) for message in history]
        if len(set(keys)) < len(keys):
            self._violation(
                f"{session}: read from the legacy side, {len(keys) - len(set(keys))} messages are there twice"
            )
        if len(keys) < self._logged.get(session, 0):
            self._violation(f"{session}: the legacy side has {len(keys)} of {self._logged[session]} messages")

    def _limit(self, session: str) -> Talk:
        changes = self._dice.choice(LIMITS)
        yield lambda manager: manager.set_session_config(session, changes)

    def _bad(self, session: str) -> Talk:
        """Append what no store can give back as it was: it is refused, and nothing of it is anywhere."""
        message = self._message(session)
        call = self._begin(session, [message])
        bad = [message, message | {"content": {1, 2}}]
        answer = yield lambda manager: manager.add_messages(session, bad)
        if isinstance(answer, InvalidInputError):
            self._journal.write("fail", time.monotonic(), call)
        else:
            self._violation(f"{session}: a message that is none was answered with {type(answer).__name__}")

    def _clear(self, session: str) -> Talk:
        """Erase a session: what was acknowledged before is gone, and what comes later stays."""
        self._said += 1
        call = f"{self.name}-{self._said}"
        self._journal.write("clear", time.monotonic(), session, call)
        if (yield lambda manager: manager.clear_session_memory(session)) is True:
            self._journal.write("cleared", time.monotonic(), call)
            self._status.cleared += 1

    def _insist(self, call: Call, name: str, attempts: int = ATTEMPTS) -> Generator[Call, Any, Any]:
        for _ in range(attempts):
            answer = yield call
            if isinstance(answer, InvalidInputError):
                self._violation(f"{name} was refused: {answer}")
            elif not isinstance(answer, REFUSALS):
                return answer
        self._journal.write("unknown", time.monotonic(), name)
        return None

    def _acknowledge(self, session: str, call: str, receipts: Sequence[Receipt]) -> None:
        durable = all(receipt.durable for receipt in receipts)
        seqs = [receipt.seq for receipt in receipts]
        degraded = any(receipt.degraded for receipt in receipts)
        self._journal.write("ok", time.monotonic(), call, seqs, durable, degraded)
        self._status.acknowledged += len(receipts)
        self._status.unlogged += 0 if durable else len(receipts)
        self._status.degraded += degraded
        if durable and not session.startswith("c"):
            self._logged[session] = max(seqs[-1], self._logged.get(session, 0))

    def _check(
        self, session: str, begun: float, context: Mapping[str, Any], newest: Mapping[str, Any] | None = None
    ) -> None:
        """Hold one read against what must hold for every read, and note it for what others know."""
        self._status.reads += 1
        self._status.degraded += context["degraded"]
        kept, info = context["buffer_messages"], context["buffer_info"]
        keys = [(message["writer"], message["n"]) for message in kept]
        told = [context[name] for name in ("last_seq", "complete", "degraded", "watermark")]
        self._journal.write("read", time.monotonic(), session, self.name, begun, *told, keys, context["source"])
        wrong = []
        if context["watermark"] + len(kept) != context["last_seq"]:
            wrong.append(f"{context['watermark']} + {len(kept)} messages do not end at {context['last_seq']}")
        if len(kept) > 1 and (len(kept) > info["max_messages"] or info["total_tokens"] > info["max_tokens"]):
            wrong.append(f"{len(kept)} messages, {info['total_tokens']} tokens exceed the caps {info}")
        if context["complete"] and bool(context["current_summary"]) != (context["watermark"] > 0):
            wrong.append("summary and watermark do not go together")
        if context["complete"] and context["last_seq"] < self._logged.get(session, 0):
            wrong.append(f"ends at {context['last_seq']}, and {self._logged[session]} was acknowledged here before")
        if context["complete"] and newest is not None and newest not in kept and context["watermark"] == 0:
            wrong.append("the message of this turn is in neither part")
        astray = (message for message in kept if message["session"] != session)
        wrong += [f"{message['writer']} said number {message['n']} in {message['session']}" for message in astray]
        facts = ", ".join(f"{name} {context[name]}" for name in ("source", "degraded", "complete"))
        for one in wrong:
            self._violation(f"{session}: read with {facts}: {one}")

    def _violation(self, text: str) -> None:
        self._journal.write("violation", time.monotonic(), f"{self.name}: {text}")

    def note_call(self, started: float, outcome: object) -> None:
        """Keep count of one call; an error that no server fault explains is a violation."""
        self._status.slowest = max(self._status.slowest, time.monotonic() - started)
        if isinstance(outcome, REFUSALS):
            self._status.refused += 1
        elif isinstance(outcome, Exception) and not isinstance(outcome, InvalidInputError):
            self._violation(f"unexpected {type(outcome).__name__}: {outcome}")
