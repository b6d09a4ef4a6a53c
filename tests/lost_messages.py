"""A test that found a message lost is not forgiven: it may show itself once in a hundred runs, and be true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOTES = Path(".pytest_cache") / "lost-messages"
"""Below the folder of the run; ``.ci/run`` runs nothing once more where there is one."""


class LostMessageError(AssertionError):
    """An acknowledged message was lost, doubled or misplaced, or an erased one found, whatever comes second."""


@contextmanager
def nothing_lost() -> Iterator[None]:
    """Raise ``LostMessageError`` for what is asserted in here."""
    try:
        yield
    except AssertionError as exc:
        raise LostMessageError(str(exc)) from exc


def note_loss(root: Path, test: str) -> None:
    """Write down which test it was."""
    notes = root / NOTES
    notes.parent.mkdir(exist_ok=True)
    with notes.open("a", encoding="utf-8") as file:
        file.write(f"{test}\n")
