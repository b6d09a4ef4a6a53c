"""Contexts: a session as it is shown to callers, with calls and results in pairs, and within its caps."""

from __future__ import annotations

from typing import Any

from contract_engine.memory._effects import Flow
from contract_engine.memory.errors import ContentionError
from contract_engine.memory.folding import ATTEMPTS
from contract_engine.memory.mending import SYNTHETIC, mend
from contract_engine.memory.models import Loaded, SessionState
from contract_engine.memory.sessions import Sessions
from contract_engine.memory.token_counter import TokenCounter


class Contexts:
    """Makes the dict of ``get_context`` of a session that was read."""

    def __init__(self, sessions: Sessions, counter: TokenCounter) -> None:
        self._sessions = sessions
        self._counter = counter

    def context(self, session_id: str, loaded: Loaded) -> Flow[tuple[dict[str, Any], SessionState]]:
        """Return the context, and the session it shows.

        What has to be shown besides the messages counts, so it may take a fold.
        """
        for _ in range(ATTEMPTS):
            state = loaded.state
            context = loaded.as_context(session_id)
            mended = mend(context["buffer_messages"])
            if mended is None:
                return context, state
            tokens = self._counter.count_batch_tokens(mended.messages[at] for at in mended.added)
            limits = state.limits
            is_within = (
                len(mended.messages) <= limits.max_buffer_messages
                and state.buffer_tokens + tokens <= limits.max_buffer_tokens
            )
            if is_within or len(state.rows) <= 1:
                context["buffer_messages"] = mended.messages
                context["message_count"] = len(mended.messages)
                context["total_tokens"] += tokens
                context["buffer_info"]["message_count"] = len(mended.messages)
                context["buffer_info"]["total_tokens"] += tokens
                context[SYNTHETIC] = mended.added
                return context, state
            folded = yield from self._sessions.fold_further(session_id, state)
            if folded is None:
                loaded = yield from self._sessions.load(session_id)
            else:
                loaded = loaded._replace(state=folded)
        raise ContentionError(session_id, ATTEMPTS)
