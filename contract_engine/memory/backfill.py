"""Backfill: the sessions of an older store come into the log, exactly once and in their order.

While both stores are written to, the older history holds the beginning of a session, and after it what the log holds
already. So a session is taken in batches that go in front of that. Each batch is one transaction; where the next one
begins can be read off the log itself, since a message that is imported gets an id made of its place and its content. A
run that was interrupted anywhere is simply started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from contract_engine.memory._log_backfill import HistoryRow, Position
from contract_engine.memory.errors import ContentionError, InvalidInputError
from contract_engine.memory.exchange import exchange_groups
from contract_engine.memory.history_alignment import Told, is_contained, untold_anchors
from contract_engine.memory.keys import check_session_id
from contract_engine.memory.legacy_messages import content_digest, imported_id, imported_place, parse_legacy
from contract_engine.memory.legacy_source import Element, History
from contract_engine.memory.log_writer import LogWriter

BATCH = 1000
"""Messages of one transaction."""

AT_ONCE = 200
"""A history up to this long is folded as any other; of a longer one the log covers all but the end at once."""

ATTEMPTS = 20
"""How often a session is begun anew because it changed meanwhile in another way than by an append."""

IMPORTED_FROM = "imported_from"
"""Marks, in the metadata of a supplied summary, the key of the original that it comes from."""


NOTHING_YET = Position(0, None, 0, 0, is_unsummarized=False, revision=0)


class Refused(NamedTuple):
    """An element of an older history that is not imported: its place, from 1, and why not."""

    place: int
    problem: str


@dataclass(slots=True)
class Outcome:
    """What became of one session.

    ``older``: messages of the older history, of which ``imported`` came into the log now (or would, in a dry run) and
    ``refused`` never can. ``left``: why the session was left as it is, None where it was not. ``elsewhere``: messages
    that the log has at another place than the older history. ``summaries``: texts that came along. ``context``: whether
    the context object did; ``other_context``: the log has another one, which was left. ``has_more``: the older store
    has something of the session for which the log has no place. ``brought``: messages that only the original's Redis
    had, and that its table got (or would get) as well.
    """

    session_id: str
    older: int = 0
    imported: int = 0
    elsewhere: int = 0
    summaries: int = 0
    refused: list[Refused] = field(default_factory=list)
    refused_summaries: list[Refused] = field(default_factory=list)
    refused_context: str | None = None
    context: bool = False
    other_context: bool = False
    has_more: bool = False
    brought: int = 0
    left: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the log has all there is."""
        return self.left is None and not self.refused and not self.refused_summaries and not self.refused_context

    @property
    def is_changed(self) -> bool:
        """Whether anything came into the log, or into the table."""
        return bool(self.imported or self.summaries or self.context or self.brought)


class _Left(Exception):  # noqa: N818  # ends a session, and is told of as its outcome
    """A session cannot be imported, for this reason; nothing more of it is written."""


class _Changed(Exception):  # noqa: N818  # begins a session anew
    """The session is not what it was when its import was planned."""


class Backfill:
    """Imports sessions into a log, one after the other.

    ``rate``: at most so many messages per second, None for no limit. ``dry_run``: nothing is written. ``summarize``:
    unless it is, the summaries of long histories, and their index, are left to a later run: they take more time than
    the import.
    ``advance`` is called with the number of elements that have been dealt with. Raises :class:`StoreUnavailableError`
    where a server is away: what was imported stays, and the session is gone on with next time.
    """

    def __init__(
        self,
        log: LogWriter,
        *,
        rate: float | None = None,
        dry_run: bool = False,
        summarize: bool = True,
        batch: int = BATCH,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.log = log
        self.dry_run = dry_run
        self.summarize = summarize
        self.pace = _Pace(rate)
        self.batch = batch if rate is None else max(1, min(batch, int(rate)))
        self.advance = advance

    def import_session(self, history: History) -> Outcome:
        """Import one session; what stands in the way is told in its outcome."""
        outcome = Outcome(history.session_id, history.length)
        advanced = 0
        try:
            check_session_id(history.session_id)
            advanced = self._import(history, outcome)
        except (InvalidInputError, ContentionError, _Left) as exc:
            outcome.left = str(exc)
        self.advance(max(0, history.length - advanced))
        return outcome

    def _import(self, history: History, outcome: Outcome) -> int:
        if history.problem is not None:
            raise _Left(history.problem)
        if not self.dry_run:
            # What waits in Redis is numbered behind what the log holds; it goes first, so that nothing else moves.
            self.log.drain(history.session_id)
        self._supply(history, outcome)
        self._bring_context(history, outcome)
        if history.is_trimmed and self._has_all(history):
            _Attempt(self, history, outcome).settle()
            return 0
        was_there = False
        for _ in range(ATTEMPTS):
            attempt = _Attempt(self, history, outcome)
            if was_there and not attempt.is_there:
                # What was read before is not to bring it back.
                raise _Left("it was erased while it was imported; if it is in the older store on purpose, run it again")
            try:
                return attempt.run()
            except _Changed:
                was_there = attempt.is_there or attempt.imported > 0
                outcome.imported += attempt.imported
                outcome.refused, outcome.elsewhere = [], 0
        raise ContentionError(history.session_id, ATTEMPTS)

    def _has_all(self, history: History) -> bool:
        """Whether the log has every message of a list that loses its oldest, whatever their places are now."""
        older = [content_digest(item.message) for item in history.read(0) if item.message is not None]
        newer = [digest for _, _, digest in self.log.digests(history.session_id)]
        return bool(older) and len(older) == history.length and is_contained(older, newer)

    def _supply(self, history: History, outcome: Outcome) -> None:
        """Add the summaries of what no message is left of, each once."""
        outcome.refused_summaries += [Refused(place, problem) for place, problem in history.refused_summaries]
        if not history.summaries:
            return
        known = {
            metadata.get("place")
            for metadata in self.log.supplied_summaries(history.session_id)
            if metadata.get(IMPORTED_FROM) == history.summary_name
        }
        for summary in history.summaries:
            if summary.place not in known:
                key = {IMPORTED_FROM: history.summary_name, "place": summary.place}
                metadata = key | {"timestamp": summary.timestamp}
                if self.dry_run or self.log.add_summary_once(history.session_id, summary.text, metadata, key=key):
                    outcome.summaries += 1

    def _bring_context(self, history: History, outcome: Outcome) -> None:
        """Import the context object, unless the log has one: then programs keep it there already."""
        outcome.has_more = history.has_more
        if history.context is None:
            return
        try:
            context = parse_legacy(history.context).message
            known = self.log.context(history.session_id)
            if known is None:
                outcome.context = self.dry_run or self.log.add_context(
                    history.session_id, context, created_ms=history.created_ms, updated_ms=history.updated_ms
                )
            else:
                outcome.other_context = content_digest(known) != content_digest(context)
        except InvalidInputError as exc:
            outcome.refused_context = str(exc)


class _Attempt:
    """One go at a session, as long as it stays what it was planned for."""

    def __init__(self, backfill: Backfill, history: History, outcome: Outcome) -> None:
        self._backfill = backfill
        self._history = history
        self._outcome = outcome
        self._session_id = history.session_id
        position = backfill.log.position(history.session_id)
        self.is_there = position is not None
        self._position = position or NOTHING_YET
        self._pending: list[HistoryRow] = []
        self._after_id = self._position.message_id
        self._after_seq = self._position.seq
        self._is_covered = False
        self._until_covered = 0
        self.imported = 0

    def run(self) -> int:
        """Import what is missing; answers how many elements were told to ``advance``."""
        history, position, backfill = self._history, self._position, self._backfill
        self._check_unchanged()
        anchors = self._anchors()
        self._until_covered = self._cut()
        advanced = position.place
        backfill.advance(position.place)
        for page in _pages(history.read(position.place)):
            known = self._known(page, anchors)
            for item in page:
                message_id = anchors.get(item.place, item.message_id)
                if message_id is not None and message_id in known:
                    self._take(item, (message_id, known[message_id]))
                elif item.place in anchors:
                    raise _Changed
                else:
                    self._take(item, None)
            self._flush()
            backfill.advance(len(page))
            advanced += len(page)
        self.settle()
        self._outcome.imported += self.imported
        return advanced

    def settle(self) -> None:
        """Write what was left out while messages came in; after an interruption there is more than of this run."""
        backfill = self._backfill
        if backfill.dry_run:
            return
        position = backfill.log.position(self._session_id) or NOTHING_YET
        is_due = position.is_unsummarized and backfill.summarize
        if is_due:
            backfill.log.resummarize(self._session_id)
        if is_due or self.imported:
            backfill.log.fold(self._session_id, index=backfill.summarize)
        elif position.place:
            backfill.log.refresh(self._session_id, position.revision)

    def _known(self, page: list[Element], anchors: Mapping[int, str]) -> dict[str, int]:
        """Return the numbers of the messages of a page that the log has, by the ids it has them under."""
        found = [anchors.get(item.place, item.message_id) for item in page]
        ids = [message_id for message_id in found if message_id is not None]
        if not ids:
            return {}
        if self._after_id is not None:
            ids.append(self._after_id)  # what was inserted has moved what stands behind it
        known = self._backfill.log.places(self._session_id, ids)
        self._after_seq = known.get(self._after_id or "", self._after_seq)
        return known

    def _take(self, item: Element, anchor: tuple[str, int] | None) -> None:
        if anchor is not None:
            if anchor[1] <= self._after_seq:
                self._outcome.elsewhere += 1
                return
            self._flush()
            self._after_id, seq = anchor
            self._after_seq = seq
            return
        if item.message is None:
            self._outcome.refused.append(Refused(item.place, item.problem))
            return
        digest = content_digest(item.message)
        try:
            outgoing = self._backfill.log.intake.message(
                item.message, item.message_id or imported_id(item.place, digest)
            )
        except InvalidInputError as exc:
            self._outcome.refused.append(Refused(item.place, str(exc)))
            return
        is_covered = item.place <= self._until_covered
        if self._pending and (is_covered != self._is_covered or len(self._pending) >= self._backfill.batch):
            self._flush()
        self._is_covered = is_covered
        self._pending.append(HistoryRow(outgoing.message_id, outgoing.tokens, item.at_ms, outgoing.body))

    def _flush(self) -> None:
        rows, self._pending = self._pending, []
        if not rows:
            return
        backfill = self._backfill
        if not backfill.dry_run:
            is_done = backfill.log.store(
                self._session_id,
                rows,
                after_id=self._after_id,
                is_covered=self._is_covered,
                created_ms=self._history.created_ms,
                updated_ms=self._history.updated_ms,
            )
            if not is_done:
                raise _Changed
            backfill.pace.wait(len(rows))
        self._after_id = rows[-1].message_id
        self.imported += len(rows)

    def _check_unchanged(self) -> None:
        """Refuse a history that is not the one that was imported before; look again for what was refused then."""
        position, history = self._position, self._history
        if not position.place or position.message_id is None:
            return
        if position.place > history.length:
            raise _Left(f"the older history has {history.length} messages, and {position.place} of it were imported")
        known = imported_place(position.message_id)
        last = next(iter(history.read(position.place - 1)), None)
        if known is None or last is None or last.message is None or content_digest(last.message) != known[1]:
            raise _Left(f"message {position.place} of the older history was changed after it was imported")
        if position.seq < position.place:
            for item in history.read(0):
                if item.place > position.place:
                    break
                problem = item.problem if item.message is None else self._problem(item)
                if problem:
                    self._outcome.refused.append(Refused(item.place, problem))

    def _problem(self, item: Element) -> str:
        try:
            self._backfill.log.intake.message(item.message)
        except InvalidInputError as exc:
            return str(exc)
        return ""

    def _anchors(self) -> dict[int, str]:
        """Return, by their places in the older history, the ids of the messages that the log has and no id tells."""
        position, history, log = self._position, self._history, self._backfill.log
        if position.last_seq <= position.seq:
            return {}
        # A store that knows ids has what it is owed under its id or not at all.
        owed = log.in_flight(self._session_id)[1] if history.has_ids else set()
        newer = [Told(name, digest) for _, name, digest in log.digests(self._session_id, after=position.seq)]
        places: list[int] = []
        older: list[Told] = []
        for item in history.read(position.place):
            if item.message is not None:
                places.append(item.place)
                older.append(Told(item.message_id, content_digest(item.message)))
        found = untold_anchors(older, newer, owed=owed)
        if found is None:
            raise _Left(
                f"of {len(newer)} messages of the log some may or may not be among the older ones; wait until the "
                "older store has everything that was written to both, then run it again"
            )
        return {places[left]: str(newer[right].message_id) for left, right in found.items()}

    def _cut(self) -> int:
        """Return up to which place messages are covered by the summary at once: all but a whole exchange or more."""
        history = self._history
        if history.length - self._position.place <= AT_ONCE:
            return 0
        keep = self._backfill.log.max_buffer_messages
        start = max(0, history.length - 2 * keep)
        end = list(history.read(start))
        cut = len(end) - keep
        for group in exchange_groups([item.message for item in end]):
            if group.stop > cut:
                return start + group.start
        return start + cut


def _pages(items: Iterator[Element]) -> Iterator[list[Element]]:
    page: list[Element] = []
    for item in items:
        page.append(item)
        if len(page) == BATCH:
            yield page
            page = []
    if page:
        yield page


class _Pace:
    """Keeps to a number of messages per second; time that was not used is not made up for."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = time.monotonic()

    def wait(self, count: int) -> None:
        """Wait until as much time has passed as so many messages may take."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._next = max(self._next, now - 1) + count / self._rate
        time.sleep(max(0.0, self._next - now))
