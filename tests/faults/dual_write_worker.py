"""A process that writes to two stores, relays, and dies where it is told to or when it is killed.

Its standard output has a line for each message that was acknowledged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from crash_matrix import Fault, Interposition
from dual_stores import HASTY, plain_url, say
from legacy_stores import TableStore

from contract_engine.memory import MemoryConfig, MemoryManager
from contract_engine.memory.migration import EnhancedSessionStore

UNTOUCHED = 100
"""Exit status of one that met no fault."""

SWITCHES = {"forward": ("full", None), "gradual": ("gradual", 50.0), "back": ("coexistence", None)}
"""The operations that change the phase, and the phase and percentage that are set."""


def do(store: Any, operation: str, session_id: str) -> Any:
    """Do one of the operations of the matrix, with an adapter of either colour."""
    if operation == "write":
        return store.append(session_id, say(900), message_id="new")
    if operation == "relay":
        return store.relay_once()
    if operation == "read":
        return store.get_chat_history(session_id)
    return store.set_phase(*SWITCHES[operation])


def main(given: dict[str, Any]) -> int:
    config = MemoryConfig(**given["settings"])
    legacy = TableStore(plain_url(config), given["table"])
    is_relaying = given.get("operation") is None
    with (
        MemoryManager(config=config) as manager,
        EnhancedSessionStore(manager, legacy, relay=HASTY, is_relaying=is_relaying) as store,
    ):
        if not is_relaying:
            Interposition(manager, Fault(given["kind"], given["number"]))
            do(store, given["operation"], given["session"])
            return UNTOUCHED
        for number in range(1_000_000):
            for name in given["sessions"]:
                message_id = f"{given['life']}-{number}"
                store.append(name, {"role": "user", "content": f"{name} {message_id}"}, message_id=message_id)
                print(f"{name} {message_id}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
