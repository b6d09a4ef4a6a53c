"""What the small Redis plugin costs above the bare command with the same payload."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from scenario import CALLS, Bench, Scenario, Timer, per_call

from contract_engine.plugins.memory_manager.plugin_interface import DAY_SECONDS, MemoryManager

# What a program keeps of a conversation: about 600 bytes of JSON, in lists and dicts as they come.
CONVERSATION = {
    "user_request": "Build an auth system for the booking pages, with the accounts that our partners already have",
    "current_task": "Design the database schema",
    "completed_steps": ["research_providers", "select_oauth2", "agree_on_scopes", "write_threat_model"],
    "preferences": {"language": "Python", "tests": True, "review_hours": 24, "share_of_budget": 0.4},
    "open_questions": [
        {"question": "Where do refresh tokens live?", "asked_of": "security", "turn": 7},
        {"question": "Is a second factor needed for partners?", "asked_of": "product", "turn": 9},
    ],
    "timestamp": "2025-07-02T10:30:00",
}
BODY = json.dumps(CONVERSATION, separators=(",", ":")).encode()


def plugin(operation: str) -> Callable[[Bench], AbstractContextManager[tuple[Timer, Timer]]]:
    """Make a scenario of one call of the plugin, against the bare command of the same driver."""

    @contextmanager
    def prepare(bench: Bench) -> Iterator[tuple[Timer, Timer]]:
        raw = bench.redis
        with MemoryManager(bench.redis_url) as manager:
            if not manager.store_memory("bench", CONVERSATION):
                raise AssertionError("nothing was stored")
            raw.set("bench", BODY)
            calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "store": (
                    lambda: manager.store_memory("bench", CONVERSATION),
                    lambda: raw.set("bench", BODY, ex=DAY_SECONDS),
                ),
                "retrieve": (lambda: manager.retrieve_memory("bench"), lambda: raw.get("bench")),
            }
            call, reference = calls[operation]
            yield lambda: per_call([call] * CALLS), lambda: per_call([reference] * CALLS)

    return prepare


PLUGIN_SCENARIOS = (
    Scenario("plugin: store_memory", "one SET EX", 1.5, plugin("store")),
    Scenario("plugin: retrieve_memory", "one GET", 1.5, plugin("retrieve")),
)
