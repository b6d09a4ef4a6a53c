"""Sessions that only the original's keys in Redis hold come into the legacy table too, where programs write to both.

Else they would be whole in the new store alone, and a read of the legacy store would show less. The log comes first, as
in a dual write; from there the messages go into the row, to their places, under the ids they have in the log.
"""

from __future__ import annotations

from contract_engine.memory.legacy_messages import imported_place
from contract_engine.memory.legacy_store import LegacySwisperStore
from contract_engine.memory.log_writer import LogWriter
from contract_engine.memory.models import Message


def is_of_log(table: LegacySwisperStore, log: LogWriter, session_id: str, length: int) -> bool:
    """Whether all ``length`` messages of a row were given to it out of the log: then it began after the migration."""
    ids = table.message_ids(session_id)
    return len(ids) == length and len(log.places(session_id, ids)) == len(set(ids))


def bring(table: LegacySwisperStore, log: LogWriter, session_id: str, *, dry_run: bool) -> int | None:
    """Give a row the imported messages of the log that it lacks; answers how many, None where it has others' by now.

    What was written to both is left to the relay. May be repeated.
    """
    held = set(table.message_ids(session_id))
    in_log: list[str] = []
    lacking: dict[str, Message] = {}
    for _, message_id, message in log.messages(session_id):
        in_log.append(message_id)
        if message_id not in held and imported_place(message_id) is not None:
            lacking[message_id] = message
    if lacking and not dry_run and not table.put_messages(session_id, lacking, in_log=in_log):
        return None
    return len(lacking)
