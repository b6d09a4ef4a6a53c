"""The law everything serves: context = summary of 1..W + messages W+1..N word for word, whatever is done to a session.

Hypothesis drives a manager through appends, batches, folds, new limits, clearings, evictions and damage, and compares
every context with a model that is nothing but the list of acknowledged messages.
"""

from __future__ import annotations

import uuid
from collections import Counter
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from lost_messages import nothing_lost

from contract_engine.memory import MemoryManager, MessageConflictError, SessionLimits
from contract_engine.memory._scripts import ALL_SCRIPTS
from contract_engine.memory.keys import session_keys
from contract_engine.memory.mending import stored

pytest_plugins = ("memory_fixtures",)

TEXTS = st.text(max_size=60) | st.sampled_from(["", "\x00", "\ud800", "\ud83d\ude00", "an order for 3 May", "x" * 400])
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": TEXTS},
    optional={"n": st.integers(), "metadata": st.dictionaries(st.text(max_size=5), st.booleans(), max_size=2)},
)
LIMITS = SessionLimits(summary_trigger_tokens=120, max_buffer_tokens=200, max_buffer_messages=8)


class Conservation(RuleBasedStateMachine):
    """One session, one manager, and what must be true of both."""

    redis_url: str
    database_url: str | None
    redis: Any
    """Redis as anybody else reaches it."""
    checked = 0
    """How often the law was held against a context."""
    fired: Counter[str]
    """How often each fault was seen to happen."""
    ids: Bundle[tuple[str, dict[str, Any]]] = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"h{uuid.uuid4().hex[:12]}"
        # A machine that is busy elsewhere is not an outage: this test is about what is right, not about deadlines.
        self.manager = MemoryManager(
            redis_url=self.redis_url,
            database_url=self.database_url,
            tenant=self.tenant,
            limits=LIMITS,
            redis_timeout_seconds=10,
            database_timeout_seconds=30,
        )
        self.keys = session_keys("contract", self.tenant, "s")
        self.acknowledged: list[dict[str, Any]] = []
        self.by_id: dict[str, int] = {}
        self.limits = LIMITS

    def teardown(self) -> None:
        self.manager.wait_for_folds()
        self.manager.clear_session_memory("s")
        self.manager.close()

    def tokens(self, message: dict[str, Any]) -> int:
        return self.manager.token_counter.count_message_tokens(message)

    @nothing_lost()
    def check(self, context: dict[str, Any]) -> None:
        count, messages = len(self.acknowledged), stored(context)
        watermark = context["watermark"]
        assert context["last_seq"] == count
        assert messages == self.acknowledged[watermark:], "a gap, an overlap, or a message that is not the one sent"
        assert context["complete"]
        shown = context["buffer_messages"]  # and what is put between a call and a result for those that miss one
        assert context["message_count"] == len(shown) == context["buffer_info"]["message_count"]
        assert context["buffer_info"]["total_tokens"] == sum(map(self.tokens, shown))
        assert (context["summary_version"] > 0) >= (watermark > 0), "folded messages without a summary"
        assert len(messages) >= min(1, count), "the newest message is never folded"
        if len(messages) > 1:
            assert len(shown) <= self.limits.max_buffer_messages
            assert context["buffer_info"]["total_tokens"] <= self.limits.max_buffer_tokens

    @rule(target=ids, message=MESSAGES)
    def append(self, message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        receipt = self.manager.append("s", message)
        self.acknowledged.append(message)
        assert receipt.seq == len(self.acknowledged)
        assert receipt.durable == (self.database_url is not None)
        self.by_id[receipt.message_id] = receipt.seq
        return receipt.message_id, message

    @rule(message=MESSAGES)
    def turn(self, message: dict[str, Any]) -> None:
        context = self.manager.add_and_get_context("s", message)
        self.acknowledged.append(message)
        self.check(context)
        assert stored(context)[-1] == message

    @rule(messages=st.lists(MESSAGES, max_size=20))
    def batch(self, messages: list[dict[str, Any]]) -> None:
        receipts = self.manager.add_messages("s", messages)
        start = len(self.acknowledged)
        self.acknowledged += messages
        assert [receipt.seq for receipt in receipts] == list(range(start + 1, start + len(messages) + 1))

    @rule(sent=ids)
    def send_again(self, sent: tuple[str, dict[str, Any]]) -> None:
        message_id, message = sent
        self.manager.wait_for_folds()
        seq = self.by_id.get(message_id)
        if seq is None or (self.database_url is None and seq <= self.manager.get_context("s")["watermark"]):
            return  # cleared since, or beyond what ephemeral mode remembers
        assert self.manager.append("s", message, message_id=message_id).seq == seq
        with pytest.raises(MessageConflictError):
            self.manager.append("s", message | {"content": "something else"}, message_id=message_id)

    @rule(messages=st.integers(1, 12), tokens=st.integers(40, 300))
    def set_limits(self, messages: int, tokens: int) -> None:
        self.manager.set_session_config(
            "s", {"max_buffer_messages": messages, "max_buffer_tokens": tokens, "summary_trigger_tokens": tokens // 2}
        )
        self.limits = SessionLimits(
            max_buffer_messages=messages, max_buffer_tokens=tokens, summary_trigger_tokens=tokens // 2
        )

    @rule(text=st.text(min_size=1, max_size=40).filter(str.strip))
    def add_summary(self, text: str) -> None:
        assert self.manager.summary_store.add_summary("s", text)

    @rule()
    def clear_summaries(self) -> None:
        self.manager.wait_for_folds()  # one that comes later may put a summary there again
        assert self.manager.summary_store.clear_summaries("s")
        assert self.manager.summary_store.get_current_summary("s") is None

    @rule()
    def wait(self) -> None:
        assert self.manager.wait_for_folds(30)

    @rule()
    def clear(self) -> None:
        self.manager.wait_for_folds()
        assert self.manager.clear_session_memory("s")
        self.acknowledged, self.by_id, self.limits = [], {}, LIMITS

    @precondition(lambda self: self.database_url is not None)
    @rule(which=st.sampled_from(["buffer", "summary", "fold", "all"]))
    def evict(self, which: str) -> None:
        gone = self.redis.delete(*(self.keys if which == "all" else (getattr(self.keys, which),)))
        self.fired["keys evicted"] += gone

    @precondition(lambda self: self.database_url is not None)
    @rule(place=st.integers(-3, 3), garbage=st.binary(max_size=20) | st.sampled_from([b"[]", b"{}", b"1,2", b"[1,2]"]))
    def damage(self, place: int, garbage: bytes) -> None:
        with suppress(redis.ResponseError):  # the list is shorter, or is not there
            before = self.redis.lindex(self.keys.buffer, place)
            self.redis.lset(self.keys.buffer, place, garbage)  # bytes are fine
            self.fired["elements damaged"] += before != garbage

    @precondition(lambda self: self.database_url is not None)
    @rule(name=st.sampled_from(["buffer", "summary"]))
    def put_another_type(self, name: str) -> None:
        with self.redis.pipeline(transaction=True) as both:  # a fold in the background may write at any time
            both.delete(getattr(self.keys, name))
            both.hset(getattr(self.keys, name), "field", "value")
            *_, added = both.execute()
        self.fired["keys of another type"] += added

    @rule()
    def forget_scripts(self) -> None:
        self.redis.script_flush()
        # A fold in the background may have sent one again since.
        self.fired["scripts forgotten"] += not all(self.redis.script_exists(*(script.sha for script in ALL_SCRIPTS)))

    @invariant()
    def law(self) -> None:
        self.check(self.manager.get_context("s"))
        type(self).checked += 1

    @precondition(lambda self: self.database_url is not None)
    @invariant()
    def log_is_everything(self) -> None:
        assert self.manager.session_store.get_chat_history("s") == self.acknowledged


FAULTS = {
    "durable": {"keys evicted", "elements damaged", "keys of another type", "scripts forgotten"},
    "ephemeral": {"scripts forgotten"},
}
"""What must have happened in the histories of a mode, taken together."""


def hold(redis_url: str, database_url: str | None, raw: redis.Redis, *, histories: int) -> int:
    """Hold so many histories of 30 steps against the law; answers how often it was, with every fault seen to happen."""

    class Machine(Conservation):
        pass

    Machine.redis_url, Machine.database_url, Machine.redis = redis_url, database_url, raw
    Machine.fired = Counter()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=histories, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    happened = {fault for fault, count in Machine.fired.items() if count}
    assert happened == FAULTS["ephemeral" if database_url is None else "durable"], Machine.fired
    return Machine.checked


@pytest.mark.parametrize("mode", ["durable", "ephemeral"])
def test_nothing_is_lost_doubled_or_reordered(redis_url: str, database_url: str, mode: str, raw: redis.Redis) -> None:
    assert hold(redis_url, database_url if mode == "durable" else None, raw, histories=60) >= 60
