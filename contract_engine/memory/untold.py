"""What this process knows to be in the log and could not tell Redis."""

from __future__ import annotations

import os
import threading
import weakref

import msgspec


class Note(msgspec.Struct, frozen=True, eq=False):
    """One thing Redis was not told; each is an object of its own, so that a later one is not settled with it."""

    seq: float


class Untold:
    """Sessions whose copy in Redis may lack what this process knows to be in the log, with the last message to expect.

    This process reads such a session from the log; everybody else is helped by deleting the copy as soon as Redis can
    be reached, which the next call of this process finds out.
    """

    def __init__(self) -> None:
        self._notes: dict[str, Note] = {}
        self.after_fork()
        _all.add(self)

    def after_fork(self) -> None:
        """Begin afresh in a child: the thread of the parent that held the lock or was telling does not exist here."""
        self._lock = threading.Lock()
        self._is_telling = False

    def __bool__(self) -> bool:
        return bool(self._notes)

    def note(self, session_id: str, seq: float) -> Note:
        """Expect at least this message; infinity: believe no copy that is there now."""
        with self._lock:
            held = self._notes.get(session_id)
            note = Note(seq if held is None or seq > held.seq else held.seq)
            self._notes[session_id] = note
        return note

    def current(self, session_id: str) -> Note | None:
        """Return what is expected of the session, to settle it with."""
        return self._notes.get(session_id)

    def expected(self, session_id: str) -> float:
        """Return the message expected, 0 for none."""
        note = self._notes.get(session_id)
        return 0 if note is None else note.seq

    def settle(self, session_id: str, note: Note | None) -> None:
        """Take note that the copy has been replaced since ``note`` was made, unless another one has been made."""
        with self._lock:
            if note is not None and self._notes.get(session_id) is note:
                del self._notes[session_id]

    def allows(self, session_id: str, note: Note | None, last_seq: int) -> bool:
        """Whether a copy that ends here can be believed, which was read after ``note`` was looked at."""
        if note is None:
            return True
        if last_seq >= note.seq:
            self.settle(session_id, note)
            return True
        return False

    def all(self) -> list[tuple[str, Note]]:
        """Return every session with what is expected of it."""
        with self._lock:
            return list(self._notes.items())

    def begin_telling(self) -> bool:
        """Answer True to one caller until :meth:`end_telling`."""
        with self._lock:
            if self._is_telling or not self._notes:
                return False
            self._is_telling = True
            return True

    def end_telling(self) -> None:
        """Let the next one begin."""
        self._is_telling = False


_all: weakref.WeakSet[Untold] = weakref.WeakSet()


def _after_fork() -> None:
    for untold in _all:
        untold.after_fork()


os.register_at_fork(after_in_child=_after_fork)
