"""The manifest: one SQLite file with a line for every exam, warning, series and refusal.

It uses a rollback journal instead of a write-ahead log, which needs memory shared by all processes that have the file
open; network disks do not provide that. A process that is killed leaves the journal, and the next process that opens
the file rolls the unfinished change back. Processes do not share a manifest: each shard writes its own, and they are
merged (:func:`merge_manifests`). A manifest names nobody: ids and sources are pseudonyms that the caller made, and it
contains no path of the source.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from deepatlas.cells import cells
from deepatlas.errors import DataError
from deepatlas.exams.exam_file import ExamRecord
from deepatlas.files import atomic_path, write_text
from deepatlas.io.dicom.found import Subject
from deepatlas.sqlite import Trouble, connect, has_locks, transaction, trouble_of

FORMAT = "deepatlas-manifest"
VERSION = 1
TABLES = ("exams", "warnings", "series", "refusals")

_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE exams (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,               -- what the exam was prepared from and how: opaque, for resuming
    packed_row INTEGER,                 -- of packed.h5
    voxels_x INTEGER NOT NULL, voxels_y INTEGER NOT NULL, voxels_z INTEGER NOT NULL,    -- in the file's order
    spacing_x REAL NOT NULL, spacing_y REAL NOT NULL, spacing_z REAL NOT NULL,          -- mm: right, front, head
    width_mm REAL NOT NULL, depth_mm REAL NOT NULL, coverage_mm REAL NOT NULL,          -- field of view: the same axes
    orientation TEXT NOT NULL,          -- where the file's voxel axes x, y, z run to
    labelled INTEGER NOT NULL,          -- 1 with a label image
    structures TEXT NOT NULL,           -- JSON list: names that have voxels
    labels TEXT NOT NULL,               -- JSON: {name: id}
    warnings INTEGER NOT NULL,          -- how many; the lines are in the table of that name
    facts TEXT NOT NULL,                -- JSON: scanner settings
    crop TEXT,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,               -- of the file
    content TEXT NOT NULL               -- SHA-256 of the decoded arrays and header
);
CREATE TABLE warnings (id TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE series (id TEXT NOT NULL, series TEXT NOT NULL, taken INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE refusals (name TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, UNIQUE (name, kind, reason));
CREATE INDEX warnings_of ON warnings (id);
CREATE INDEX series_of ON series (id);
"""
_COLUMNS = (
    "id source packed_row voxels_x voxels_y voxels_z spacing_x spacing_y spacing_z width_mm depth_mm coverage_mm "
    "orientation labelled structures labels warnings facts crop bytes sha256 content"
).split()


class SeriesLine(NamedTuple):
    """A series that an exam could have been made of; ``series`` describes it by number and geometry alone."""

    series: str
    taken: bool
    reason: str


class RefusalLine(NamedTuple):
    """Something that was refused; ``name`` is a pseudonym or the id of an exam."""

    name: str
    kind: Subject
    reason: str


class Manifest:
    """A manifest on disk, created if it is missing (unless ``read_only``).

    Every call that changes it is one transaction, which is on the disk when the call returns (unless ``durable`` is
    False, for a file that need not survive a power cut).

    Raises :class:`~deepatlas.errors.DataError` for a file that is not a manifest, damaged, of another version or, with
    ``read_only``, missing, and for every failure of the disk.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, durable: bool = True
    ) -> None:
        self.path = Path(path)
        self._durable = durable
        self._db: sqlite3.Connection | None = None
        if read_only and not self.path.is_file():
            raise DataError(f"{self.path}: no such manifest; prepare the dataset again")
        try:
            self._connect(read_only)
            self._check_version()
        except DataError:
            self.close()
            raise

    def _connect(self, read_only: bool) -> None:
        with self._errors():
            if not read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            address = f"{self.path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            if read_only and not has_locks(self.path):
                # A disk without locks. Finished manifests are replaced, not changed, so none is needed.
                address += "&immutable=1"
            writing = ("journal_mode = DELETE", f"synchronous = {'FULL' if self._durable else 'OFF'}")
            self._db = connect(address, () if read_only else writing, uri=True)
        if not self._rows("SELECT name FROM sqlite_master LIMIT 1"):
            if read_only:
                raise DataError(f"{self.path}: an empty manifest; prepare the dataset again")
            self._create()

    def _create(self) -> None:
        statements = [s for s in _SCHEMA.split(";\n") if s.strip()]
        with self._change() as db:
            for statement in statements:
                db.execute(statement)
            db.execute("INSERT INTO about VALUES ('format', ?), ('version', ?)", (FORMAT, str(VERSION)))

    def _check_version(self) -> None:
        tables = {name for (name,) in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        about = dict(self._rows("SELECT name, value FROM about")) if tables >= {"about", *TABLES} else {}
        if about.get("format") != FORMAT:
            raise DataError(f"{self.path}: an SQLite file, but not a manifest; check the path")
        if about.get("version") != str(VERSION):
            raise DataError(
                f"{self.path}: manifest format {about.get('version')}, this program reads {VERSION}; "
                "install the version that wrote it, or prepare the dataset again"
            )

    # -- writing --------------------------------------------------------------------------------------------

    def add_exam(self, record: ExamRecord, source: str = "", series: Sequence[SeriesLine] = ()) -> None:
        """Enter an exam whose file has been written. An earlier entry of that id, and its lines, are replaced.

        ``source`` is a text that tells whether the exam has to be prepared again, and nothing about whose it is.
        """
        x, y, z = (int(n) for n in reversed(record.shape))
        values = [
            record.id, source, None, x, y, z, *record.spacing, *record.extent, record.orientation,
            int(record.has_seg), _json(record.present), _json(record.labels), len(record.warnings),
            _json(record.facts), record.crop, record.bytes, record.sha256, record.content,
        ]  # fmt: skip
        with self._change() as db:
            self._delete(db, record.id)
            db.execute(f"INSERT INTO exams VALUES ({', '.join('?' * len(_COLUMNS))})", values)
            db.executemany("INSERT INTO warnings VALUES (?, ?)", [(record.id, w) for w in record.warnings])
            lines = [(record.id, s.series, int(s.taken), s.reason) for s in series]
            db.executemany("INSERT INTO series VALUES (?, ?, ?, ?)", lines)

    def add_refusal(self, name: str, kind: str, reason: str) -> None:
        """Enter a refusal, unless it is there: ``name`` is a pseudonym, ``kind`` is file, series or exam."""
        with self._change() as db:
            db.execute("INSERT OR IGNORE INTO refusals VALUES (?, ?, ?)", (name, kind, reason))

    def set_rows(self, ids: Sequence[str]) -> None:
        """Enter the rows of packed.h5: ``ids`` in their order."""
        with self._change() as db:
            db.execute("UPDATE exams SET packed_row = NULL")
            db.executemany("UPDATE exams SET packed_row = ? WHERE id = ?", list(enumerate(ids)))

    # -- reading --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._rows("SELECT count(*) FROM exams")[0][0]

    def rows(self) -> dict[str, int | None]:
        """``{id: row of packed.h5}``."""
        return dict(self._rows("SELECT id, packed_row FROM exams ORDER BY id"))

    def exams(self) -> Iterator[ExamRecord]:
        """The exams, sorted by id, as they were entered."""
        texts: dict[str, list[str]] = {}
        for exam_id, text in self._rows("SELECT id, text FROM warnings ORDER BY rowid"):
            texts.setdefault(exam_id, []).append(text)
        for values in self._rows(f"SELECT {', '.join(_COLUMNS)} FROM exams ORDER BY id"):
            yield _record(dict(zip(_COLUMNS, values, strict=True)), texts.get(values[0], []))

    def exam(self, exam_id: str) -> ExamRecord | None:
        """One exam, or None."""
        found = self._rows(f"SELECT {', '.join(_COLUMNS)} FROM exams WHERE id = ?", exam_id)
        if not found:
            return None
        texts = self._rows("SELECT text FROM warnings WHERE id = ? ORDER BY rowid", exam_id)
        return _record(dict(zip(_COLUMNS, found[0], strict=True)), [t for (t,) in texts])

    def series(self) -> list[tuple[str, SeriesLine]]:
        """``(exam id, line)`` of every series of the exams."""
        found = self._rows("SELECT id, series, taken, reason FROM series ORDER BY id, rowid")
        return [(i, SeriesLine(s, bool(taken), reason)) for i, s, taken, reason in found]

    def refusals(self) -> list[RefusalLine]:
        """What was refused, sorted."""
        found = self._rows("SELECT name, kind, reason FROM refusals ORDER BY name, kind, reason")
        return [RefusalLine(name, Subject(kind), reason) for name, kind, reason in found]

    def export_csv(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write every table as ``<table>.csv`` into ``folder``; returns the paths."""
        paths = []
        for table in TABLES:
            text = io.StringIO()
            with self._errors():
                cursor = self._connection().execute(f"SELECT * FROM {table} ORDER BY 1, rowid")
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow([column[0] for column in cursor.description])
                writer.writerows(map(cells, cursor))
            paths.append(Path(folder) / f"{table}.csv")
            write_text(paths[-1], text.getvalue())
        return paths

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ---------------------------------------------------------------------------------------------

    @staticmethod
    def _delete(db: sqlite3.Connection, exam_id: str) -> None:
        for table in ("exams", "warnings", "series"):
            db.execute(f"DELETE FROM {table} WHERE id = ?", (exam_id,))

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise DataError(f"{self.path}: this manifest has been closed")
        return self._db

    def _rows(self, query: str, *values: Any) -> list[tuple]:
        with self._errors():
            return self._connection().execute(query, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), transaction(self._connection(), "BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.path}: cannot open: {error.strerror or error}; check the path") from error
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: {_reason(error)}") from error


def merge_manifests(target: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]]) -> None:
    """Write the manifest ``target``, completely or not at all, from those of shards; it may be among the sources.

    The same exams give the same bytes, however they were distributed over shards. An exam that is in several manifests
    must be the same in all of them, and is entered once.

    Raises :class:`~deepatlas.errors.DataError` for a manifest that cannot be read and for an exam that differs.
    """
    exams: dict[str, tuple[Path, tuple]] = {}
    # {table: {exam: rows}}.
    lines: dict[str, dict[str, list[tuple]]] = {"warnings": {}, "series": {}}
    refusals: set[tuple] = set()
    for path in map(Path, sources):
        with Manifest(path, read_only=True) as shard:
            fresh = set()
            for row in shard._rows(f"SELECT {', '.join(_COLUMNS)} FROM exams"):
                exam_id, content = row[0], row[-1]
                before = exams.get(exam_id)
                if before is not None:
                    if before[1][-1] != content:
                        raise DataError(
                            f"{path}: exam {exam_id} differs from that in {before[0]}; "
                            "prepare it again in one of them and delete the other"
                        )
                    continue
                # Its row of packed.h5 is not known yet.
                exams[exam_id] = (path, (*row[:2], None, *row[3:]))
                fresh.add(exam_id)
            for table, of in lines.items():
                for row in shard._rows(f"SELECT * FROM {table} ORDER BY rowid"):
                    if row[0] in fresh:
                        of.setdefault(row[0], []).append(row)
            refusals.update(shard.refusals())
    ids = sorted(exams)
    everything = {
        "exams": [exams[i][1] for i in ids],
        **{table: [row for i in ids for row in of.get(i, ())] for table, of in lines.items()},
        "refusals": sorted(refusals),
    }
    with atomic_path(target) as temporary, Manifest(temporary) as merged, merged._change() as db:
        for table, rows in everything.items():
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def _record(row: dict[str, Any], warnings: list[str]) -> ExamRecord:
    return ExamRecord(
        id=row["id"],
        shape=(row["voxels_z"], row["voxels_y"], row["voxels_x"]),
        spacing=(row["spacing_x"], row["spacing_y"], row["spacing_z"]),
        extent=(row["width_mm"], row["depth_mm"], row["coverage_mm"]),
        orientation=row["orientation"],
        labels=_parsed(row["labels"]),
        present=_parsed(row["structures"]),
        facts=_parsed(row["facts"]),
        warnings=warnings,
        crop=row["crop"],
        bytes=row["bytes"],
        sha256=row["sha256"],
        content=row["content"],
        has_seg=bool(row["labelled"]),
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """The same object for equal texts: fifty thousand exams share one label table."""
    return json.loads(text)


def _reason(error: sqlite3.Error) -> str:
    trouble = trouble_of(error)
    if trouble is Trouble.DAMAGED:
        return f"damaged, or not a manifest ({error}); prepare the dataset again"
    if trouble is Trouble.DISK_FULL:
        return "cannot write: the disk is full; free space or write somewhere else"
    if trouble is Trouble.ACCESS:
        return f"cannot open for writing ({error}); choose a folder that you may write to"
    if trouble is Trouble.BUSY:
        return "another process writes to it; wait for it, or give each its own"
    return f"cannot be used ({error}); check the disk"
