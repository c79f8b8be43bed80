"""What lies below the source, in SQLite: millions of files fit on the disk where they would not in memory.

Headers that were read are kept in the private folder, so that a run that goes on, a second shard or a later run reads
only what is new; which file is which in this run is in a file of its own in the scratch folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from deepatlas.data.io import image_suffix
from deepatlas.errors import DataError
from deepatlas.files import write_error
from deepatlas.intake.types import Found

VERSION = 1  # raise with the layout of what is kept
_PAGE = 256  # headers that a worker reads at a time

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, path TEXT, stat TEXT, kind TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept.headers (name TEXT PRIMARY KEY, stat TEXT, role TEXT, patient TEXT, study TEXT,
    series TEXT, referenced TEXT, reason TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept.plans (key TEXT PRIMARY KEY, digest TEXT, plan BLOB) WITHOUT ROWID;
"""


class Peek(NamedTuple):
    """What the header of a file says about where it belongs. ``role`` is "image", "labels", "rest" or "refused"."""

    name: str
    role: str
    patient: str = ""
    study: str = ""
    series: str = ""
    referenced: tuple[str, ...] = ()
    reason: str = ""


class Member(NamedTuple):
    """A file of a study."""

    found: Found
    stat: str
    role: str
    patient: str


class Catalogue:
    """The files of one run. Every method but :meth:`study` and :meth:`paths` needs the private folder's lock."""

    def __init__(self, scratch: Path, private: Path, src: Path) -> None:
        self._src, self._kept = src, private / f"headers-{VERSION}.sqlite"
        self._stats: dict[Path, str] = {}
        self._plans = "kept.plans"
        try:
            self._db = sqlite3.connect(
                scratch / "files.sqlite", isolation_level=None, timeout=60, check_same_thread=False
            )  # joblib asks for jobs from threads of its own, one at a time
            self._db.execute("PRAGMA synchronous = OFF")  # a file that a power cut damages is made again
            self._attach()
        except (sqlite3.Error, OSError) as error:
            raise _error(self._kept, error) from error

    def _attach(self) -> None:
        descriptor = os.open(self._kept, os.O_WRONLY | os.O_CREAT, 0o600)
        os.close(descriptor)
        self._db.execute("ATTACH ? AS kept", (str(self._kept),))
        try:
            self._db.execute("PRAGMA kept.synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError:  # damaged: it holds nothing that cannot be read again
            self._db.execute("DETACH kept")
            self._kept.unlink()
            descriptor = os.open(self._kept, os.O_WRONLY | os.O_CREAT, 0o600)
            os.close(descriptor)
            self._db.execute("ATTACH ? AS kept", (str(self._kept),))
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # -- files ----------------------------------------------------------------------------------------

    def add(self, files: Iterable[Found]) -> int:
        """Take down the files of a walk; returns their number."""
        count = 0
        with self._change() as db:
            for found in files:
                row = (found.name, str(found.path), self._stat(found), _kind(found.name))
                db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row)
                count += 1
        return count

    def unread(self) -> int:
        """How many files with an unknown header there are, put by for :meth:`pages`."""
        with self._change() as db:
            # A disk that failed once may read now.
            db.execute("DELETE FROM kept.headers WHERE role = 'refused' AND reason LIKE 'cannot be read (%'")
            db.execute("DROP TABLE IF EXISTS todo")
            db.execute(
                "CREATE TABLE todo AS SELECT f.name, f.path FROM files f LEFT JOIN kept.headers h "
                "ON h.name = f.name AND h.stat = f.stat WHERE f.kind = 'other' AND h.name IS NULL ORDER BY f.name"
            )
        return self._db.execute("SELECT count(*) FROM todo").fetchone()[0]

    def pages(self) -> Iterator[list[Found]]:
        """The files of :meth:`unread`, a few hundred at a time."""
        last = 0
        while True:
            rows = self._db.execute(
                "SELECT rowid, name, path FROM todo WHERE rowid > ? ORDER BY rowid LIMIT ?", (last, _PAGE)
            ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [Found(Path(path), name) for _, name, path in rows]

    def keep(self, peeks: Iterable[Peek]) -> None:
        with self._change() as db:
            for p in peeks:
                stat = db.execute("SELECT stat FROM files WHERE name = ?", (p.name,)).fetchone()[0]
                row = (p.name, stat, p.role, p.patient, p.study, p.series, json.dumps(p.referenced), p.reason)
                db.execute("INSERT OR REPLACE INTO headers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def group(self) -> None:
        """Sort the DICOM files into studies; what was drawn on a series goes to the study of that series."""
        with self._change() as db:
            db.execute("DROP TABLE IF EXISTS members")
            db.execute(
                "CREATE TABLE members AS "
                "SELECT h.study, h.series, h.role, h.patient, h.referenced, f.name, f.path, f.stat "
                "FROM files f JOIN kept.headers h ON h.name = f.name AND h.stat = f.stat "
                "WHERE f.kind = 'other' AND h.role IN ('image', 'labels')"
            )
            db.execute("CREATE INDEX by_study ON members (study, name)")
            db.execute("CREATE INDEX by_series ON members (series)")
            drawn = db.execute(
                "SELECT rowid, study, referenced FROM members WHERE role = 'labels'"
            ).fetchall()
            for row, study, referenced in drawn:
                for series in json.loads(referenced):
                    of = db.execute(
                        "SELECT study FROM members WHERE series = ? AND role = 'image' LIMIT 1", (series,)
                    ).fetchone()
                    if of and of[0] != study:
                        db.execute("UPDATE members SET study = ? WHERE rowid = ?", (of[0], row))
                        break

    def studies(self) -> list[str]:
        rows = self._db.execute("SELECT DISTINCT study FROM members ORDER BY study")
        return [study for (study,) in rows]

    def study(self, study: str) -> list[Member]:
        rows = self._db.execute(
            "SELECT name, path, stat, role, patient FROM members WHERE study = ? ORDER BY name", (study,)
        )
        return [
            Member(Found(Path(path), name), stat, role, patient) for name, path, stat, role, patient in rows
        ]

    def refused(self) -> Iterator[tuple[str, str]]:
        """Name and reason of the files whose header says that they are of no use."""
        yield from self._db.execute(
            "SELECT f.name, h.reason FROM files f JOIN kept.headers h ON h.name = f.name AND h.stat = f.stat "
            "WHERE f.kind = 'other' AND h.role = 'refused' ORDER BY f.name"
        )

    def rest(self) -> list[str]:
        """Names of the files that are neither images nor DICOM."""
        rows = self._db.execute(
            "SELECT f.name FROM files f JOIN kept.headers h ON h.name = f.name AND h.stat = f.stat "
            "WHERE f.kind = 'other' AND h.role = 'rest' ORDER BY f.name"
        )
        return [name for (name,) in rows]

    def images(self) -> Iterator[tuple[str, list[Found]]]:
        """The image files of every folder that has some: ``(folder, files)``, sorted."""
        folder, files = None, []
        # Sorting by name alone would put what lies deeper between the files of a folder.
        for name, path in self._db.execute("SELECT name, path FROM files WHERE kind = 'image' ORDER BY name"):
            files.append(Found(Path(path), name))
        files.sort(key=lambda f: (folder_of(f.name), f.name))
        group: list[Found] = []
        for found in files:
            if folder_of(found.name) != folder and group:
                yield folder, group  # type: ignore[misc]
                group = []
            folder = folder_of(found.name)
            group.append(found)
        if group:
            yield folder, group  # type: ignore[misc]

    def tables(self) -> dict[str, Found]:
        """The ``labels.json`` of every folder that has one."""
        rows = self._db.execute("SELECT name, path FROM files WHERE kind = 'table' ORDER BY name")
        return {folder_of(name): Found(Path(path), name) for name, path in rows}

    def stat(self, name: str) -> str:
        row = self._db.execute("SELECT stat FROM files WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def placed(self, found: Found) -> Found:
        """The file where it lies in this run: members of archives are unpacked to another folder each time."""
        row = self._db.execute("SELECT path FROM files WHERE name = ?", (found.name,)).fetchone()
        return Found(Path(row[0]), found.name) if row else found

    # -- plans ----------------------------------------------------------------------------------------

    def plan(self, key: str, digest: str) -> Any:
        """What was kept for these files, or None."""
        row = self._db.execute(
            f"SELECT plan FROM {self._plans} WHERE key = ? AND digest = ?", (key, digest)
        ).fetchone()
        try:
            return pickle.loads(row[0]) if row else None
        except Exception:  # of another version: it is made again
            return None

    def detach(self, keys: Iterable[str]) -> None:
        """Copy the plans of ``keys`` to this run's own file, and leave the kept ones to other processes."""
        with self._change() as db:
            db.execute("CREATE TABLE mine (key TEXT PRIMARY KEY, digest TEXT, plan BLOB) WITHOUT ROWID")
            for key in keys:
                db.execute("INSERT INTO mine SELECT key, digest, plan FROM kept.plans WHERE key = ?", (key,))
        self._db.execute("DETACH kept")
        self._plans = "mine"

    def keep_plans(self, plans: Iterable[tuple[str, str, Any]]) -> None:
        with self._change() as db:
            for key, digest, plan in plans:
                row = (key, digest, pickle.dumps(plan))
                db.execute("INSERT OR REPLACE INTO plans VALUES (?, ?, ?)", row)

    # -- inner ----------------------------------------------------------------------------------------

    def _change(self) -> _Transaction:
        return _Transaction(self._db, self._kept)

    def _stat(self, found: Found) -> str:
        """Size and time of a file; of its archive and its size for a member, which is unpacked anew in every run."""
        try:
            archive = self._archive(found.name)
            if archive is None:
                return ",".join(_size_and_time(path) for path in (found.path, *_detached(found.path)))
            if archive not in self._stats:
                self._stats = {archive: _size_and_time(archive)}
            return f"{self._stats[archive]}.{os.stat(found.path).st_size}"
        except OSError:  # gone since it was listed: reading it will say so
            return "gone"

    def _archive(self, name: str) -> Path | None:
        """The archive that a file is a member of. A mere folder may have an exclamation mark in its name too."""
        parts = name.split("!")
        for end in range(1, len(parts)):
            archive = self._src if self._src.is_file() else self._src / "!".join(parts[:end])
            if archive in self._stats or archive.is_file():
                return archive
        return None


def _size_and_time(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_size}.{status.st_mtime_ns}"


def _detached(header: Path) -> list[Path]:
    """The files beside a header that may hold its voxels: those of the same name but for the ending."""
    if header.suffix.lower() not in (".mhd", ".nhdr"):
        return []
    stem = header.name[: -len(header.suffix)] + "."
    return sorted(p for p in header.parent.iterdir() if p.name.startswith(stem) and p != header)


class _Transaction:
    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._db.execute("BEGIN")
        except sqlite3.Error as error:
            raise _error(self._path, error) from error
        return self._db

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        try:
            self._db.execute("COMMIT" if error is None else "ROLLBACK")
        except sqlite3.Error as failure:
            raise _error(self._path, failure) from failure
        if isinstance(error, sqlite3.Error):
            raise _error(self._path, error) from error


def _error(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError):
        return write_error(path, error)
    cure = "free space" if "full" in str(error) else "check the disk and that you may write there"
    return DataError(f"{path}: cannot write: {error}; {cure}")


def folder_of(name: str) -> str:
    """The folder of a found file's name ("" for the source itself); an archive counts as a folder."""
    head, mark, inner = name.rpartition("!")
    parent = str(PurePosixPath(inner).parent)
    parent = "" if parent == "." else parent
    return f"{head}!{parent}" if mark else parent


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _kind(name: str) -> str:
    if image_suffix(name):
        return "image"
    return "table" if PurePosixPath(name.rpartition("!")[2]).name == "labels.json" else "other"
