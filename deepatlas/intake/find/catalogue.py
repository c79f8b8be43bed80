"""What lies below the source, in SQLite: millions of files fit on the disk where they would not in memory.

Headers that were read are kept in the private folder, so that a run that goes on, a second shard or a later run reads
only what is new; which file is which in this run is in a file of its own in the scratch folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from deepatlas.errors import DataError
from deepatlas.files import write_error
from deepatlas.intake.find.archives import extract
from deepatlas.intake.find.extraction import archive_suffix
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.series import Archive, Found, Refusal

VERSION = 2  # raise with the layout of what is kept
FEW = 4  # exams of an archive that each unpack it for themselves: more share it
_GONE = "gone"
_PAGE = 256  # headers that a worker reads at a time

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, path TEXT, stat TEXT, kind TEXT, archive TEXT)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS archives (name TEXT PRIMARY KEY, path TEXT, folder TEXT, stat TEXT, contents BLOB,
    exams INTEGER, open INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept.archives (name TEXT PRIMARY KEY, stat TEXT, contents BLOB) WITHOUT ROWID;
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


class Contents(NamedTuple):
    """What an archive holds."""

    # Name as in :class:`Found`, path in the archive's folder, bytes.
    members: tuple[tuple[str, str, int], ...]
    peeks: tuple[Peek, ...]  # of those that are neither images nor label tables
    tables: dict[str, bytes]  # name: what is in it
    refusals: tuple[Refusal, ...]
    exams: int  # at most so many
    kept: bool  # whether it lies unpacked in its folder

    @property
    def lasting(self) -> bool:
        """Whether it will be the same as long as the archive is: not where a disk was full or failed."""
        return not any(r.passing for r in self.refusals)


class Member(NamedTuple):
    """A file of a study."""

    found: Found
    stat: str
    role: str
    patient: str


class Catalogue:
    """The files of one run. What touches what is kept needs the private folder's lock, until :meth:`detach`."""

    def __init__(self, scratch: Path, private: Path) -> None:
        self._scratch, self._kept = scratch, private / f"headers-{VERSION}.sqlite"
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

    def add(self, files: Iterable[Found]) -> None:
        """Take down the files of a walk."""
        with self._change() as db:
            for number, found in enumerate(files):
                row = (found.name, str(found.path), _stat(found.path), kind_of(found.name), "")
                if archive_suffix(found.name):
                    row = (*row[:2], str(self._scratch / f"a{number}"), row[2])
                    db.execute("INSERT OR REPLACE INTO archives VALUES (?, ?, ?, ?, NULL, 0, 0)", row)
                else:
                    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)

    def count(self) -> int:
        return self._db.execute("SELECT count(*) FROM files").fetchone()[0]

    def unread(self) -> int:
        """How many files with an unknown header there are, put by for :meth:`pages`."""
        with self._change() as db:
            # A disk that failed once may read now.
            db.execute(
                "DELETE FROM kept.headers WHERE role = 'refused' AND reason LIKE 'cannot be read (%' "
                "AND name NOT IN (SELECT name FROM files WHERE archive != '')"
            )
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
                _keep(db, p, db.execute("SELECT stat FROM files WHERE name = ?", (p.name,)).fetchone()[0])

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

    # -- archives -------------------------------------------------------------------------------------

    def unknown_archives(self) -> list[Archive]:
        """Those that were not looked into before, as they are now."""
        with self._change() as db:
            db.execute(
                "UPDATE archives SET contents = (SELECT k.contents FROM kept.archives k "
                "WHERE k.name = archives.name AND k.stat = archives.stat)"
            )
        rows = self._db.execute(
            "SELECT name, path, folder FROM archives WHERE contents IS NULL ORDER BY name"
        )
        return [Archive(Found(Path(path), name), Path(folder)) for name, path, folder in rows.fetchall()]

    def keep_contents(self, archive: Archive, contents: Contents) -> None:
        name = archive.found.name
        with self._change() as db:
            (stat,) = db.execute("SELECT stat FROM archives WHERE name = ?", (name,)).fetchone()
            blob = pickle.dumps(contents)
            db.execute(
                "UPDATE archives SET contents = ?, open = ? WHERE name = ?", (blob, contents.kept, name)
            )
            if contents.lasting and stat != _GONE:
                db.execute("INSERT OR REPLACE INTO kept.archives VALUES (?, ?, ?)", (name, stat, blob))

    def list_members(self) -> Iterator[Refusal]:
        """Take down the members of all archives; gives what was refused of them."""
        rows = self._db.execute(
            "SELECT name FROM archives WHERE contents IS NOT NULL ORDER BY name"
        ).fetchall()
        for (archive,) in rows:
            folder, stat, blob = self._db.execute(
                "SELECT folder, stat, contents FROM archives WHERE name = ?", (archive,)
            ).fetchone()
            contents: Contents = pickle.loads(blob)
            stats = {name: f"{stat}.{size}" for name, _, size in contents.members}
            with self._change() as db:
                db.execute("UPDATE archives SET exams = ? WHERE name = ?", (contents.exams, archive))
                for name, place, _ in contents.members:
                    row = (name, place, stats[name], kind_of(name), archive)
                    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)
                for p in contents.peeks:
                    _keep(db, p, stats[p.name])
                for number, (name, data) in enumerate(contents.tables.items()):
                    path = Path(f"{folder}.table{number}")
                    try:
                        path.write_bytes(data)
                    except OSError as error:
                        raise write_error(path, error) from error
                    db.execute("UPDATE files SET path = ?, archive = '' WHERE name = ?", (str(path), name))
            yield from contents.refusals

    def reach(self, files: Iterable[Found], key: str) -> tuple[dict[str, Found], tuple[Archive, ...]]:
        """Files of the exam ``key``, by name, where they lie in this run, and the archives to unpack for them."""
        there: dict[str, Found] = {}
        folders: dict[str, Path] = {}
        closed: list[Archive] = []
        for found in files:
            row = self._db.execute("SELECT path, archive FROM files WHERE name = ?", (found.name,)).fetchone()
            path, name = row or (found.path, "")
            if name and name not in folders:
                archive, is_open = self._archive(name, key)
                folders[name] = archive.folder
                if not is_open:
                    closed.append(archive)
            there[found.name] = Found(folders[name] / path if name else Path(path), found.name)
        return there, tuple(closed)

    def _archive(self, name: str, key: str) -> tuple[Archive, bool]:
        """Where an exam finds an archive, and whether it lies there: for many exams it is unpacked here and now."""
        path, folder, exams, is_open = self._db.execute(
            "SELECT path, folder, exams, open FROM archives WHERE name = ?", (name,)
        ).fetchone()
        archive = Archive(Found(Path(path), name), Path(folder))
        if not is_open and exams > FEW:
            shutil.rmtree(archive.folder, ignore_errors=True)  # of a worker that died
            is_open = bool(extract(archive.found, archive.folder, []))  # if not, a worker will say why
            with self._change() as db:
                db.execute("UPDATE archives SET open = ? WHERE name = ?", (is_open, name))
        if is_open:
            return archive, True
        return Archive(archive.found, Path(f"{folder}.{digest(key)[:16]}")), False

    # -- files of this run ----------------------------------------------------------------------------

    def stat(self, name: str) -> str:
        row = self._db.execute("SELECT stat FROM files WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

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


def _stat(path: Path) -> str:
    """Size and time of a file, and of the voxels beside a header."""
    try:
        return ",".join(_size_and_time(p) for p in (path, *_detached(path)))
    except OSError:  # gone since it was listed: reading it will say so
        return _GONE


def _size_and_time(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_size}.{status.st_mtime_ns}"


def _detached(header: Path) -> list[Path]:
    """The files beside a header that may hold its voxels: those of the same name but for the ending."""
    if header.suffix.lower() not in (".mhd", ".nhdr"):
        return []
    stem = header.name[: -len(header.suffix)] + "."
    return sorted(p for p in header.parent.iterdir() if p.name.startswith(stem) and p != header)


def _keep(db: sqlite3.Connection, p: Peek, stat: str) -> None:
    row = (p.name, stat, p.role, p.patient, p.study, p.series, json.dumps(p.referenced), p.reason)
    db.execute("INSERT OR REPLACE INTO kept.headers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


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


def kind_of(name: str) -> str:
    """What is to be done with a file of this name: "image", "table" (of labels), or "other", whose header tells."""
    if image_suffix(name):
        return "image"
    return "table" if PurePosixPath(name.rpartition("!")[2]).name == "labels.json" else "other"
