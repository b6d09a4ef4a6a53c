"""Summary texts as people are shown them: in whole phrases, and with a remark where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from contract_engine.cli.wording import counted
from contract_engine.memory import MemoryManager, StoreUnavailableError


class ShownText(NamedTuple):
    """What is shown of a summary, and a remark on it, empty where there is nothing to say.

    ``readable`` is the text in whole phrases, None where the log cannot be read.
    """

    text: str
    readable: str | None
    remark: str


def shown_texts(
    manager: MemoryManager, session: str, texts: Sequence[str], *, as_stored: bool = False
) -> list[ShownText]:
    """Return how texts of a session's summaries are shown; ``as_stored``: as a model is given them."""
    if as_stored:
        return [ShownText(text, None, "") for text in texts]
    if not manager.config.is_durable:
        remark = "as it is stored: whole phrases are made from the log, and without a database there is none"
        return [ShownText(text, None, remark) for text in texts]
    try:
        found = manager.summary_store.readable_texts(session, texts)
    except StoreUnavailableError:
        remark = "as it is stored: whole phrases are made from the log, and PostgreSQL is away"
        return [ShownText(text, None, remark) for text in texts]
    shown = []
    for text, one in zip(texts, found, strict=True):
        remark = (
            "" if one.text == text else "in whole phrases, from the messages; --as-stored shows what a model is given"
        )
        if one.as_stored:
            notes = f"{one.as_stored} of {counted(one.notes, 'note')} as stored: no message in the log says so"
            remark = "; ".join(filter(None, (remark, notes)))
        shown.append(ShownText(one.text, one.text, remark))
    return shown
