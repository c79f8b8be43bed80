"""Tables with an entry for every exam, which grow while exams are worked on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from deepatlas.files import write_error
from deepatlas.locks import held

Entry = TypeVar("Entry")

# The files of a large cohort are written again when so many times the last writing has passed.
_PATIENCE = 20.0


class GrowingTable(Generic[Entry]):
    """What files hold about exams: those that are added, and those that were there before.

    The files are written again with almost every exam, so that a run that is stopped keeps what it has found. An exam
    that was there before is replaced. As a context manager it writes the last exams at the end, also after an error.
    Several runs may share the files.

    Args:
        path: the file, or the first of them, beside which a lock lies.
        read: gives the entries that the files hold, by the names of the exams; it refuses files of another kind.
        write: writes the files with these entries.
    """

    def __init__(
        self,
        path: Path,
        read: Callable[[], dict[str, Entry]],
        write: Callable[[Mapping[str, Entry]], None],
    ) -> None:
        self._lock = path.with_name(f".{path.name}.lock")
        self._read, self._write = read, write
        self._added: dict[str, Entry] = {}
        self._dropped: set[str] = set()
        self._next, self._unwritten = 0.0, False
        # The exams that the files held at the beginning, so that nothing is read for every exam that is taken out.
        self._there = set(read())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unwritten:
            self.write()

    def put(self, exam: str, entry: Entry) -> None:
        """Add the entry of an exam. Raises :class:`~deepatlas.errors.WriteError` if a file cannot be written."""
        self._added[exam] = entry
        self._dropped.discard(exam)
        self._changed()

    def drop(self, exam: str) -> bool:
        """Take out the entry of an exam, and return whether there was one.

        Raises :class:`~deepatlas.errors.WriteError` if a file cannot be written.
        """
        if exam not in self._added and exam not in self._there:
            return False
        self._added.pop(exam, None)
        self._there.discard(exam)
        self._dropped.add(exam)
        self._changed()
        return True

    def _changed(self) -> None:
        self._unwritten = True
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the files, with the exams that another run has added meanwhile."""
        begun = time.monotonic()
        self._unwritten = False
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self._lock.parent, error) from error
        # Another run that reads before this one has written would lose its exams.
        with held(self._lock, None, anybody=True):
            there = {name: entry for name, entry in self._read().items() if name not in self._dropped}
            self._write(there | self._added)
        ended = time.monotonic()
        self._next = ended + _PATIENCE * (ended - begun)
