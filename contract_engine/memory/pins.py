"""Pinned messages, which every context holds word for word, and what a session wants its summaries to keep."""

from __future__ import annotations

from collections.abc import Callable

from contract_engine.memory._effects import Flow, summarize
from contract_engine.memory.config import MemoryConfig
from contract_engine.memory.errors import ContentionError, InvalidInputError, MemoryServiceError
from contract_engine.memory.folding import ATTEMPTS
from contract_engine.memory.keys import check_message_id, check_session_id
from contract_engine.memory.message_log import LogFlows
from contract_engine.memory.models import EXTRACTIVE, SessionState, Summary, empty_session
from contract_engine.memory.session_cache import REDIS_TROUBLE
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.summarizers import SummaryRequest
from contract_engine.memory.token_counter import TokenCounter

MAX_INSTRUCTIONS_CHARS = 2000


class PinFlows:
    """What a manager offers for pinned messages, as flows. ``log`` is None where Redis alone keeps the session."""

    def __init__(
        self, config: MemoryConfig, counter: TokenCounter, sessions: Sessions, *, log: LogFlows | None
    ) -> None:
        self._limits = config.limits
        self._counter = counter
        self._sessions = sessions
        self._folding = sessions.folding
        self._log = log

    def pin(self, session_id: object, message_id: object) -> Flow[bool]:
        checked, wanted = check_session_id(session_id), check_message_id(message_id)
        if self._log is None:
            yield from self._change_alone(checked, lambda state: self._with_pin(state, wanted))
            return True
        trouble = yield from self._log_waiting(checked)
        for _ in range(ATTEMPTS):
            state = yield from self._log.read_state(checked)
            if state is None:
                raise trouble or _unknown(wanted)
            budget = self._folding.summary_budget(state.watermark)
            answer = yield from self._log.pin(checked, wanted, budget)
            if not answer.is_known:  # but where Redis is away it may be one of those that wait there
                raise trouble or _unknown(wanted)
            _check_room(answer.pinned_tokens, budget)
            if answer.summary_tokens is None:
                telling = self._sessions.telling
                yield from (telling.distrust if trouble is None else telling.distrust_later)(checked)
                return True
            yield from self._shorten(checked, state, answer.summary_tokens, is_told=trouble is None)
        raise ContentionError(checked, ATTEMPTS)

    def _log_waiting(self, session_id: str) -> Flow[MemoryServiceError | None]:
        """Log what waits in Redis; answers why it cannot be asked, where it is away."""
        try:
            if self._sessions.unlogged is not None:
                yield from self._sessions.unlogged.drain(session_id)
        except REDIS_TROUBLE as exc:
            return exc
        return None

    def _shorten(self, session_id: str, state: SessionState, max_tokens: int, *, is_told: bool) -> Flow[None]:
        """Make the summary shorter, so that what it covers can stand beside it; whoever was faster has done no harm.

        ``is_told``: Redis is, unless it has failed this call before.
        """
        text = yield from summarize(
            SummaryRequest(
                previous=state.summary.text,
                messages=(),
                max_tokens=max_tokens,
                count_tokens=self._counter.count_tokens,
                instructions=state.summary_instructions,
            )
        )
        yield from self._folding.commit(
            session_id, state, last_seq=state.watermark, text=text, method=EXTRACTIVE, update_cache=is_told
        )

    def unpin(self, session_id: object, message_id: object) -> Flow[bool]:
        checked, wanted = check_session_id(session_id), check_message_id(message_id)
        if self._log is None:
            return (yield from self._change_alone(checked, lambda state: _without_pin(state.summary, wanted)))
        was_pinned = yield from self._log.unpin(checked, wanted)
        yield from self._sessions.telling.distrust(checked)
        return was_pinned

    def set_summary_instructions(self, session_id: object, text: object) -> Flow[None]:
        checked, wishes = check_session_id(session_id), _check_instructions(text)
        if self._log is None:
            yield from self._change_alone(checked, lambda state: state.summary._replace(instructions=wishes))
            return
        yield from self._log.set_instructions(checked, wishes)
        yield from self._sessions.telling.distrust(checked)

    def get_summary_instructions(self, session_id: object) -> Flow[str | None]:
        checked = check_session_id(session_id)
        if self._log is not None:
            return (yield from self._log.load_instructions(checked)) or None
        state = yield from self._sessions.cache.read_alone(checked)
        return None if state is None else state.summary_instructions or None

    def _change_alone(self, session_id: str, change: Callable[[SessionState], Summary]) -> Flow[bool]:
        """Change what stands beside the summary in Redis, as a compare-and-set; answers whether it is another now."""
        for _ in range(ATTEMPTS):
            state = (yield from self._sessions.cache.read_alone(session_id)) or empty_session(self._limits)
            summary = change(state)
            if summary == state.summary:
                return False
            if not state.is_begun:  # nothing yet to hang it on
                yield from self._sessions.cache.configure(session_id, {})
            elif (yield from self._sessions.cache.pin(session_id, state, summary)):
                return True
        raise ContentionError(session_id, ATTEMPTS)

    def _with_pin(self, state: SessionState, message_id: str) -> Summary:
        summary = state.summary
        if message_id in summary.pinned_ids:
            return summary
        if all(row[3] != message_id for row in state.rows):
            raise _unknown(message_id)
        pinned = [*summary.pinned_rows, *state.rows]
        ids = [*summary.pinned_ids, message_id]
        _check_room(sum(row[1] for row in pinned if row[3] in ids), self._folding.summary_budget(state.watermark))
        return summary._replace(pinned_ids=ids)


def _check_room(pinned_tokens: int, budget: int) -> None:
    if pinned_tokens > budget // 2:
        raise InvalidInputError(
            "message_id",
            f"with this message {pinned_tokens:,} tokens would be pinned, at most {budget // 2:,}:"
            " half of what a summary may have",
        )


def _unknown(message_id: str) -> InvalidInputError:
    return InvalidInputError("message_id", f"there is no message {message_id!r} in this session to pin")


def _without_pin(summary: Summary, message_id: str) -> Summary:
    if message_id not in summary.pinned_ids:
        return summary
    return summary._replace(
        pinned_ids=[other for other in summary.pinned_ids if other != message_id],
        pinned_rows=[row for row in summary.pinned_rows if row[3] != message_id],
    )


def _check_instructions(text: object) -> str:
    """Return the text; empty for None and for white space."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidInputError("text", f"expected a text or None, got {type(text).__name__}")
    if len(text) > MAX_INSTRUCTIONS_CHARS:
        raise InvalidInputError("text", f"{len(text):,} characters, at most {MAX_INSTRUCTIONS_CHARS:,}")
    return text if text.strip() else ""
