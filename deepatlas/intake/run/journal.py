"""What has been done so far, exam by exam: how a run that was killed continues, and what shards leave for the merge."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError, WriteError
from deepatlas.files import create_private, write_error
from deepatlas.intake.dataset.manifest import SeriesLine
from deepatlas.intake.run.finish import Entry
from deepatlas.intake.run.outcome import Outcome, Status
from deepatlas.io.dicom.found import Refusal, Subject
from deepatlas.sqlite import Trouble, connect, trouble_of


class Journal:
    """Outcomes in SQLite, each in its own transaction: what has been entered survives the death of the process.

    A write-ahead log with an exclusive lock needs neither a synchronisation for every entry nor shared memory, which
    network disks do not provide. Each process that prepares has a journal of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            create_private(path)
            self._db = connect(
                path, ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL")
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS outcomes (id TEXT PRIMARY KEY, fingerprint TEXT, status TEXT, outcome TEXT)"
            )
        except OSError as error:
            raise write_error(path, error) from error
        except sqlite3.Error as error:
            raise self._error(error) from error

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enter(self, outcome: Outcome) -> None:
        """Enter an outcome; it replaces an earlier one of the exam."""
        row = (outcome.id, outcome.fingerprint, outcome.status, json.dumps(asdict(outcome)))
        self._execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?)", row)

    def get(self, exam_id: str) -> Outcome | None:
        """The outcome of an exam, or None."""
        rows = self._execute("SELECT outcome FROM outcomes WHERE id = ?", (exam_id,)).fetchall()
        return _outcome(rows[0][0]) if rows else None

    def __iter__(self) -> Iterator[Outcome]:
        for (text,) in self._execute("SELECT outcome FROM outcomes ORDER BY id"):
            yield _outcome(text)

    def _execute(self, statement: str, values: tuple = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> DataError:
        trouble = trouble_of(error)
        if trouble is Trouble.BUSY:
            return DataError(
                f"{self.path}: another `prepare` works on this dataset; wait until it has finished"
            )
        if trouble in (Trouble.DISK_FULL, Trouble.DEVICE):
            return WriteError(f"{self.path}: cannot write: {error}; free space and run again")
        return DataError(f"{self.path}: damaged ({error}); delete it, and the exams are prepared again")


class Journals:
    """The journal of this run and, if no other process can be writing to them, those of earlier runs and shards."""

    def __init__(self, private: Path, shard: tuple[int, int] | None) -> None:
        own = private / ("journal-{}-of-{}.sqlite".format(*shard) if shard else "journal.sqlite")
        self._own = Journal(own)
        others = [] if shard else sorted(p for p in private.glob("journal*.sqlite") if p != own)
        self._others = [Journal(path) for path in others]

    def get(self, entry: Entry) -> Outcome | None:
        """The outcome of an exam in its present state, from the journal of this run or of a shard."""
        outcomes = (journal.get(entry.id) for journal in (self._own, *self._others))
        found = [o for o in outcomes if o is not None and o.fingerprint == entry.fingerprint]
        # A success counts before a failure of another shard or of an earlier run.
        return min(found, key=lambda o: o.status is not Status.DONE, default=None)

    def made(self, exam_id: str, content: str) -> Outcome | None:
        """The outcome with which an exam of this content was made, whatever its source has become since."""
        for journal in (self._own, *self._others):
            found = journal.get(exam_id)
            if (
                found is not None
                and found.status is Status.DONE
                and (found.record or {}).get("content") == content
            ):
                return found
        return None

    def know(self, exam_id: str) -> bool:
        """Whether there is any outcome of an exam, whatever its state was."""
        return any(journal.get(exam_id) is not None for journal in (self._own, *self._others))

    def enter(self, outcome: Outcome) -> None:
        self._own.enter(outcome)

    def outcomes(self, entries: Iterable[Entry]) -> Iterator[Outcome]:
        return (outcome for entry in entries if (outcome := self.get(entry)) is not None)

    def __enter__(self) -> Journals:
        return self

    def __exit__(self, *_: object) -> None:
        for journal in (self._own, *self._others):
            journal.close()


def _outcome(text: str) -> Outcome:
    values: dict[str, Any] = json.loads(text)
    # Earlier versions kept the public reasons in a list of their own, as (name, kind, reason).
    public = [reason for _, _, reason in values.pop("public", ())]
    values["refusals"] = [Refusal(**{**r, "kind": Subject(r["kind"])}) for r in values["refusals"]]
    if public:
        pairs = zip(values["refusals"], public, strict=True)
        values["refusals"] = [Refusal(r.name, r.reason, r.kind, r.passing, public=p) for r, p in pairs]
    values["series"] = [SeriesLine(*line) for line in values["series"]]
    values["status"] = Status(values["status"])
    return Outcome(**values)
