"""Erasing: sessions that nobody has touched for long, and sessions that are named, with proof that they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from contract_engine.memory import _log_retention
from contract_engine.memory._effects import Command, Flow, pause, query, redis_call, scan, transaction
from contract_engine.memory.archiving import Archiving
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.deletions import unless_relayed
from contract_engine.memory.errors import InvalidInputError
from contract_engine.memory.keys import (
    SessionKeys,
    check_limit,
    check_session_id,
    session_keys,
    session_of_key,
    session_pattern,
)
from contract_engine.memory.sessions import Sessions

LOOKED_AT = 1000
"""Sessions whose age is asked for by one statement."""

BATCH_SESSIONS, BATCH_MESSAGES = 50, 5_000
"""What one transaction erases, one session more at most: whoever comes to one of these sessions waits for it."""

LOOKS, LOOK_SECONDS = 5, 0.02
"""How often an erasure looks whether a key that came back stays, and how long it waits between."""

PLACEHOLDER = b"[0,"
"""How the only element of a buffer begins where a reader is looking for the session: it holds nothing of it."""


class Erasing:
    """Erases sessions of one tenant."""

    def __init__(self, config: MemoryConfig, sessions: Sessions, archiving: Archiving) -> None:
        self._prefix, self._tenant = config.key_prefix, config.tenant
        self._is_durable = config.is_durable
        self._sessions = sessions
        self._archiving = archiving

    def _key(self, session_id: str) -> dict[str, str]:
        return {"of_tenant": self._tenant, "of_session": session_id}

    def purge(
        self,
        older_than: object,
        *,
        limit: object,
        dry_run: bool,
        sessions_per_second: object,
        progress: Callable[[int], object] | None,
    ) -> Flow[dict[str, Any]]:
        most = None if limit is None else check_limit(limit, least=1)
        rate = _check_rate(sessions_per_second)
        before = yield from self._moment(older_than)
        done: dict[str, Any] = {"before": before.isoformat(), "sessions": 0, "messages": 0, "kept": 0, "oldest": None}
        after, due, selected = "", time.monotonic(), 0
        while most is None or selected < most:
            rows = yield from query(
                _log_retention.SESSIONS_AFTER,
                {"of_tenant": self._tenant, "after": after, "before": before, "limit": LOOKED_AT},
            )
            if not rows:
                break
            after = rows[-1][0]
            old = [row for row in rows if row[2]][: None if most is None else most - selected]
            selected += len(old)
            for batch in _batches(old):
                # From here, and not from the start: time spent on young sessions is not made up for.
                began = max(due, time.monotonic())
                erased = {row[0]: row[1] for row in batch}
                if not dry_run:
                    erased = yield from self._purge(list(erased), before)
                done["sessions"] += len(erased)
                done["messages"] += sum(erased.values())
                done["kept"] += len(batch) - len(erased)
                touched = [row[3].isoformat() for row in batch if row[0] in erased]
                done["oldest"] = min(filter(None, [done["oldest"], *touched]), default=None)
                if progress is not None:
                    progress(done["sessions"] + done["kept"])
                if rate and not dry_run:
                    due = began + len(batch) / rate
                    if (seconds := due - time.monotonic()) > 0:
                        yield from pause(seconds)
        return done | {"dry_run": dry_run}

    def _purge(self, session_ids: Sequence[str], before: datetime) -> Flow[dict[str, int]]:
        """Erase what of these is still old: the log, then Redis, then what stands in the log until Redis is done with.

        Whoever dies in between leaves something old behind, and the next purge goes on from there.
        """
        for session_id in session_ids:
            yield from self._archiving.log_waiting(session_id)  # what waits there is a touch
        erased = yield from transaction(
            lambda connection: _log_retention.erase_untouched(connection, self._tenant, session_ids, before)
        )
        if erased:
            for session_id in erased:
                yield from self._sessions.drop_copy(session_id)
            yield from transaction(lambda connection: _log_retention.end_erased(connection, self._tenant, list(erased)))
            for session_id in erased:  # somebody may have read the empty row meanwhile, and put it in place there
                yield from self._sessions.drop_copy(session_id)
        return erased

    def _moment(self, older_than: object) -> Flow[datetime]:
        """Return the moment before which a session is old, by the clock that dated its last touch."""
        ((now,),) = yield from query(_log_retention.SERVER_TIME, {})
        if isinstance(older_than, timedelta):
            if older_than <= timedelta(0):
                raise InvalidInputError("older_than", "expected a time above 0")
            try:
                return now - older_than  # type: ignore[no-any-return]  # a column of the statement
            except OverflowError:
                raise InvalidInputError("older_than", "that is before the year 1") from None
        if not isinstance(older_than, datetime) or older_than.tzinfo is None:
            raise InvalidInputError("older_than", "expected a timedelta, or a datetime with its time zone")
        if older_than > now:
            raise InvalidInputError("older_than", "lies in the future: every session would be old")
        return older_than

    def erase(
        self, session_ids: object, *, dry_run: bool, progress: Callable[[int], object] | None
    ) -> Flow[list[dict[str, Any]]]:
        if isinstance(session_ids, str | bytes) or not isinstance(session_ids, Sequence):
            raise InvalidInputError("session_ids", f"expected a list of texts, got {type(session_ids).__name__}")
        names = list(dict.fromkeys(check_session_id(name) for name in session_ids))
        ended: list[tuple[int, dict[str, int], dict[str, int], int]] = []
        for number, name in enumerate(names, 1):
            ended.append((yield from self._count(name) if dry_run else self._erase(name)))
            if progress is not None:
                progress(number)
        # Searched for after the last of them: one look through all of Redis is enough for any number of sessions.
        found: dict[str, list[str]] = {name: [] for name in names}
        pattern = session_pattern(self._prefix, self._tenant, names[0] if len(names) == 1 else None)
        for key in (yield from scan(pattern)) if names else ():
            text = key.decode("utf-8", "replace")
            if (name_of_key := session_of_key(self._prefix, self._tenant, text)) in found:
                found[str(name_of_key)].append(text)
        reports = []
        for name, (epoch, rows, left, keys) in zip(names, ended, strict=True):
            there = sorted(set(found[name]))
            report: dict[str, Any] = {"session_id": name, "tables": rows, "redis_keys": len(there) if dry_run else keys}
            if not dry_run:
                report |= yield from self._proof(name, epoch, left, there)
            reports.append(report | {"dry_run": dry_run})
        return reports

    def _count(self, session_id: str) -> Flow[tuple[int, dict[str, int], dict[str, int], int]]:
        return 0, (yield from self._rows(session_id)), {}, 0

    def _rows(self, session_id: str) -> Flow[dict[str, int]]:
        if not self._is_durable:
            return {}
        return (yield from transaction(lambda connection: _log_retention.rows_of(connection, self._key(session_id))))

    def _erase(self, session_id: str) -> Flow[tuple[int, dict[str, int], dict[str, int], int]]:
        keys = session_keys(self._prefix, self._tenant, session_id)
        (count,) = yield from redis_call(Command(("EXISTS", *keys)))
        state = (yield from self._sessions.cache.read(session_id)).state

        def rows(name: str) -> Flow[_log_retention.Erased]:
            key = self._key(name)
            return (yield from unless_relayed(name, lambda connection: _log_retention.erase_and_look(connection, key)))

        erased = yield from self._sessions.erase(session_id, rows)
        if erased is None:
            return (0 if state is None else state.epoch), {}, {}, int(count)
        return erased.epoch, erased.deleted, erased.left, int(count)

    def _proof(self, session_id: str, epoch: int, left: dict[str, int], found: list[str]) -> Flow[dict[str, Any]]:
        """Tell what an erasure has left, and not what belongs to a session of this id that was begun since."""
        keys = session_keys(self._prefix, self._tenant, session_id)
        others = [key for key in found if key not in keys]
        for _ in range(LOOKS):
            report = yield from self._look(session_id, epoch, left, keys)
            if not report["left_keys"]:
                break
            # A reader may have been about to put the session in place, and finds out now that it is gone.
            yield from self._sessions.drop_copy(session_id)
            yield from pause(LOOK_SECONDS)
        return report | {"left_keys": [*others, *report["left_keys"]]}

    def _look(self, session_id: str, epoch: int, left: dict[str, int], keys: SessionKeys) -> Flow[dict[str, Any]]:
        *there, elements = yield from redis_call(
            *(Command(("EXISTS", key)) for key in keys), Command(("LRANGE", keys.buffer, 0, 1))
        )
        found = [key for key, is_there in zip(keys, there, strict=True) if is_there]
        if isinstance(elements, list) and len(elements) == 1 and elements[0].startswith(PLACEHOLDER):
            found.remove(keys.buffer)
        rows = yield from self._rows(session_id)
        state = (yield from self._sessions.cache.read(session_id)).state
        is_other = state is not None and state.epoch != epoch
        is_begun_anew = bool(rows.get("memory_sessions")) or is_other or keys.unlogged in found
        if not is_begun_anew:
            left = {name: max(count, rows.get(name, 0)) for name, count in left.items()}
        is_of_old = state is not None and not is_other and not state.is_unlogged
        return {
            "left_rows": {name: count for name, count in left.items() if count},
            "left_keys": [] if is_begun_anew and not is_of_old else found,
            "begun_anew": is_begun_anew,
        }


def _check_rate(rate: object) -> float:
    if rate is None:
        return 0.0
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise InvalidInputError("sessions_per_second", f"expected a number above 0, or None, got {rate!r}")
    return float(rate)


def _batches(rows: Sequence[Any]) -> list[list[Any]]:
    """Cut sessions into what one transaction erases."""
    batches: list[list[Any]] = []
    size = BATCH_MESSAGES
    for row in rows:
        if size >= BATCH_MESSAGES or len(batches[-1]) >= BATCH_SESSIONS:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += row[1]
    return batches
