"""What has been done so far, exam by exam: how a run that was killed goes on, and what shards leave for the merge."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.files import write_error
from deepatlas.intake.run.work import Outcome
from deepatlas.io.dicom.series import Refusal

VERSION = 1


class Journal:
    """Outcomes in SQLite, one transaction each: what is entered survives the death of the process.

    The write-ahead log with an exclusive lock needs neither a sync for every entry nor the shared memory that network
    disks do not have. Each process that prepares has a journal of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.close(descriptor)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
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
        row = (outcome.id, outcome.fingerprint, outcome.status, json.dumps(asdict(outcome)))
        self._execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?)", row)

    def get(self, exam_id: str) -> Outcome | None:
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
        if "locked" in str(error):
            return DataError(
                f"{self.path}: another `prepare` works on this dataset; wait until it has finished"
            )
        if "full" in str(error) or "disk I/O" in str(error):
            return DataError(f"{self.path}: cannot write: {error}; free space and run again")
        return DataError(f"{self.path}: damaged ({error}); delete it, and the exams are prepared again")


def _outcome(text: str) -> Outcome:
    values: dict[str, Any] = json.loads(text)
    values["refusals"] = [Refusal(**r) for r in values["refusals"]]
    values["series"] = [tuple(s) for s in values["series"]]
    values["public"] = [tuple(p) for p in values["public"]]
    return Outcome(**values)
