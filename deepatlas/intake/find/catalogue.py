"""What lies below the source, in SQLite: millions of files fit on the disk where they would not fit into memory.

Headers that were read are kept in the private folder, so that a run that continues, a second shard or a later run reads
only what is new. Which files there are in this run is in a database of its own in the scratch folder.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from deepatlas.errors import DataError, WriteError
from deepatlas.files import create_private, write_error
from deepatlas.intake.digest import digest
from deepatlas.intake.find.archives import Archive, extract
from deepatlas.intake.find.extraction import archive_suffix
from deepatlas.intake.find.naming import file_kind, folder_of
from deepatlas.intake.find.records import FEW, Contents, Member, Peek, Role
from deepatlas.intake.find.task import Plan, Task
from deepatlas.io.codec import files_of_image
from deepatlas.io.dicom.found import Found, Refusal
from deepatlas.io.glance import Glance
from deepatlas.sqlite import Trouble, connect, transaction, trouble_of

# Raise this number with the layout of what is kept.
VERSION = 6
# The state of a file that has gone since it was listed.
_GONE = "gone"
# Number of headers that a worker reads at a time, and of images, which may have to be decompressed to their end.
_PAGE = 256
_IMAGES_PAGE = 8

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, path TEXT, stat TEXT, kind TEXT, archive TEXT)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS archives (name TEXT PRIMARY KEY, path TEXT, folder TEXT, stat TEXT, contents BLOB,
    exams INTEGER, open INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept.archives (name TEXT PRIMARY KEY, stat TEXT, contents BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept.headers (name TEXT PRIMARY KEY, stat TEXT, role TEXT, patient TEXT, study TEXT,
    series TEXT, referenced TEXT, header BLOB, reason TEXT, passing INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept.plans (key TEXT PRIMARY KEY, digest TEXT, plan BLOB) WITHOUT ROWID;
"""


class Catalogue:
    """The files of one run. Until :meth:`detach`, the lock of the private folder must be held."""

    def __init__(self, scratch: Path, private: Path) -> None:
        self._scratch, self._kept = scratch, private / f"headers-{VERSION}.sqlite"
        # Where plans and headers are; detach() moves them to this run's own database.
        self._plans, self._headers = "kept.plans", "kept.headers"
        try:
            # A database that a power cut damages is made again, so nothing has to be synchronised. joblib asks for
            # jobs from threads of its own, one at a time.
            create_private(scratch / "files.sqlite")
            self._db = connect(scratch / "files.sqlite", ["synchronous = OFF"], any_thread=True)
            self._attach()
        except (sqlite3.Error, OSError) as error:
            raise _error(self._kept, error) from error

    def _attach(self) -> None:
        create_private(self._kept)
        self._db.execute("ATTACH ? AS kept", (str(self._kept),))
        try:
            self._db.execute("PRAGMA kept.synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            if trouble_of(error) is not Trouble.DAMAGED:
                raise
            # It holds nothing that cannot be read again.
            self._db.execute("DETACH kept")
            self._kept.unlink()
            create_private(self._kept)
            self._db.execute("ATTACH ? AS kept", (str(self._kept),))
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    # -- files ----------------------------------------------------------------------------------------

    def add(self, files: Iterable[Found]) -> None:
        """Enter the files of a walk."""
        with self._change() as db:
            for number, found in enumerate(files):
                row = (found.name, str(found.path), _stat(found.path), file_kind(found.name), "")
                if archive_suffix(found.name):
                    row = (*row[:2], str(self._scratch / f"a{number}"), row[2])
                    db.execute("INSERT OR REPLACE INTO archives VALUES (?, ?, ?, ?, NULL, 0, 0)", row)
                else:
                    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)

    def count(self) -> int:
        return self._db.execute("SELECT count(*) FROM files").fetchone()[0]

    def unread(self) -> int:
        """Find the files whose headers are unknown, for :meth:`pages`, and return how many there are."""
        with self._change() as db:
            # A disk that failed in an earlier run may work in this one.
            db.execute(
                "DELETE FROM kept.headers WHERE passing AND name NOT IN (SELECT name FROM files WHERE archive != '')"
            )
            db.execute("DROP TABLE IF EXISTS todo")
            db.execute(
                "CREATE TABLE todo AS SELECT f.name, f.path, f.kind FROM files f LEFT JOIN kept.headers h "
                "ON h.name = f.name AND h.stat = f.stat "
                "WHERE f.kind IN ('other', 'image') AND h.name IS NULL ORDER BY f.kind, f.name"
            )
        return self._db.execute("SELECT count(*) FROM todo").fetchone()[0]

    def pages(self) -> Iterator[list[Found]]:
        """The files of :meth:`unread`, some at a time."""
        for kind, count in (("image", _IMAGES_PAGE), ("other", _PAGE)):
            last = 0
            while rows := self._db.execute(
                "SELECT rowid, name, path FROM todo WHERE rowid > ? AND kind = ? ORDER BY rowid LIMIT ?",
                (last, kind, count),
            ).fetchall():
                last = rows[-1][0]
                yield [Found(Path(path), name) for _, name, path in rows]

    def keep(self, peeks: Iterable[Peek]) -> None:
        """Keep what was found out about files."""
        with self._change() as db:
            for p in peeks:
                _keep(db, p, db.execute("SELECT stat FROM files WHERE name = ?", (p.name,)).fetchone()[0])

    def group(self) -> None:
        """Sort the DICOM files into studies. What was drawn on a series goes to the study of that series."""
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
            f"SELECT m.name, m.path, m.stat, m.role, m.patient, h.header FROM members m JOIN {self._headers} h "
            "ON h.name = m.name WHERE m.study = ? ORDER BY m.name",
            (study,),
        )
        return [
            Member(Found(Path(path), name), stat, Role(role), patient, header)
            for name, path, stat, role, patient, header in rows
        ]

    def refused(self) -> Iterator[Refusal]:
        """The refusals of files whose header says that they are of no use."""
        rows = self._db.execute(
            "SELECT f.name, h.reason, h.passing FROM files f JOIN kept.headers h "
            "ON h.name = f.name AND h.stat = f.stat "
            "WHERE f.kind = 'other' AND h.role = 'refused' ORDER BY f.name"
        )
        return (Refusal(name, reason, passing=bool(passing)) for name, reason, passing in rows)

    def images(self) -> Iterator[tuple[str, list[Found]]]:
        """The image files of every folder that has some: ``(folder, files)``, sorted."""
        rows = self._db.execute("SELECT name, path FROM files WHERE kind = 'image'")
        files = [Found(Path(path), name) for name, path in rows]
        # In the order of their names alone, files of deeper folders would lie between the files of a folder.
        files.sort(key=lambda f: (folder_of(f.name), f.name))
        for folder, group in groupby(files, key=lambda f: folder_of(f.name)):
            yield folder, list(group)

    def glances(self) -> dict[str, Glance]:
        """What the image files hold, by their names; those that no worker could look at are missing."""
        rows = self._db.execute(
            "SELECT f.name, h.header FROM files f JOIN kept.headers h ON h.name = f.name AND h.stat = f.stat "
            "WHERE f.kind = 'image' AND h.role = 'voxels'"
        )
        return {name: pickle.loads(header) for name, header in rows}

    def tables(self) -> list[Found]:
        """The files that may name the ids of label images, sorted by name."""
        rows = self._db.execute("SELECT name, path FROM files WHERE kind = 'table' ORDER BY name")
        return [Found(Path(path), name) for name, path in rows]

    # -- archives -------------------------------------------------------------------------------------

    def unknown_archives(self) -> list[Archive]:
        """The archives that were not looked into before in their present state."""
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
        """Keep what an archive holds."""
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
        """Enter the members of all archives; yields what was refused of them."""
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
                    row = (name, place, stats[name], file_kind(name), archive)
                    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)
                for p in contents.peeks:
                    _keep(db, p, stats[p.name])
                for number, (name, data) in enumerate(contents.tables.items()):
                    path = Path(f"{folder}.table{number}")
                    try:
                        create_private(path)
                        path.write_bytes(data)
                    except OSError as error:
                        raise write_error(path, error) from error
                    db.execute("UPDATE files SET path = ?, archive = '' WHERE name = ?", (str(path), name))
            yield from contents.refusals

    def reached(self, task: Task) -> Task:
        """The task with files that can be opened once its archives are unpacked."""
        there, archives = self._reach(task.everything, task.key)
        return replace(
            task,
            files=tuple(there[f.name] for f in task.files),
            image=task.image and there[task.image.name],
            labels=tuple(there[f.name] for f in task.labels),
            archives=archives,
        )

    def placed(self, plan: Plan) -> tuple[Plan, tuple[Archive, ...]]:
        """The plan with files that can be opened in this run, once the archives, also returned, are unpacked."""
        source = plan.source
        assert source is not None
        there, archives = self._reach(source.files, plan.key)
        series = source.series
        if series is not None:
            series = replace(series, slices=tuple(there[f.name] for f in series.slices))
        image = source.image and there[source.image.name]
        labels = tuple(there[f.name] for f in source.labels)
        return replace(plan, source=replace(source, series=series, image=image, labels=labels)), archives

    def _reach(self, files: Iterable[Found], key: str) -> tuple[dict[str, Found], tuple[Archive, ...]]:
        """``{name: file}`` of the exam ``key`` with paths of this run, and the archives to unpack for them."""
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
        """Where an exam finds an archive, and whether it is unpacked there. For many exams it is unpacked now."""
        path, folder, exams, is_open = self._db.execute(
            "SELECT path, folder, exams, open FROM archives WHERE name = ?", (name,)
        ).fetchone()
        archive = Archive(Found(Path(path), name), Path(folder))
        if not is_open and exams > FEW:
            # A worker that died may have left a part of it.
            shutil.rmtree(archive.folder, ignore_errors=True)
            # If it cannot be unpacked, a worker will report why.
            is_open = bool(extract(archive.found, archive.folder, []))
            with self._change() as db:
                db.execute("UPDATE archives SET open = ? WHERE name = ?", (is_open, name))
        if is_open:
            return archive, True
        return Archive(archive.found, Path(f"{folder}.{digest(key)[:16]}")), False

    # -- files of this run ----------------------------------------------------------------------------

    def stat(self, name: str) -> str:
        """Size and time of a file, as one text; empty if there is no such file."""
        row = self._db.execute("SELECT stat FROM files WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    # -- plans ----------------------------------------------------------------------------------------

    def plan(self, key: str, digest: str) -> Plan | None:
        """The plan that was kept for an exam with these files, or None."""
        row = self._db.execute(
            f"SELECT plan FROM {self._plans} WHERE key = ? AND digest = ?", (key, digest)
        ).fetchone()
        try:
            return pickle.loads(zlib.decompress(row[0])) if row else None
        except Exception:
            # It was written by another version, and is made again.
            return None

    def keep_plans(self, plans: Iterable[Plan]) -> None:
        with self._change() as db:
            for plan in plans:
                row = (plan.key, plan.digest, zlib.compress(pickle.dumps(plan, pickle.HIGHEST_PROTOCOL)))
                db.execute("INSERT OR REPLACE INTO kept.plans VALUES (?, ?, ?)", row)

    def detach(self, keys: Iterable[str]) -> None:
        """Copy the plans and headers of ``keys`` to this run's own database, and leave the kept ones to others."""
        with self._change() as db:
            db.execute("CREATE TABLE mine (key TEXT PRIMARY KEY, digest TEXT, plan BLOB) WITHOUT ROWID")
            db.execute("CREATE TABLE my_headers (name TEXT PRIMARY KEY, header BLOB) WITHOUT ROWID")
            for key in keys:
                db.execute("INSERT INTO mine SELECT key, digest, plan FROM kept.plans WHERE key = ?", (key,))
                db.execute(
                    "INSERT INTO my_headers SELECT h.name, h.header FROM members m JOIN kept.headers h "
                    "ON h.name = m.name WHERE m.study = ?",
                    (key,),
                )
        self._db.execute("DETACH kept")
        self._plans, self._headers = "mine", "my_headers"

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            with transaction(self._db) as db:
                yield db
        except sqlite3.Error as error:
            raise _error(self._kept, error) from error


def _stat(path: Path) -> str:
    """Size and time of a file, and of the files of voxels beside a header."""
    try:
        return ",".join(_size_and_time(p) for p in files_of_image(path))
    except OSError:
        # It has gone since it was listed. Reading it will report that.
        return _GONE


def _size_and_time(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_size}.{status.st_mtime_ns}"


def _keep(db: sqlite3.Connection, p: Peek, stat: str) -> None:
    reason, passing = ("", False) if p.refusal is None else (p.refusal.reason, p.refusal.passing)
    row = (
        p.name,
        stat,
        p.role,
        p.patient,
        p.study,
        p.series,
        json.dumps(p.referenced),
        p.header,
        reason,
        passing,
    )
    db.execute(f"INSERT OR REPLACE INTO kept.headers VALUES ({', '.join('?' * len(row))})", row)


def _error(path: Path, error: sqlite3.Error | OSError) -> DataError:
    if isinstance(error, OSError):
        return write_error(path, error)
    full = trouble_of(error) is Trouble.DISK_FULL
    cure = "free space" if full else "check the disk and that you may write there"
    return WriteError(f"{path}: cannot write: {error}; {cure}")
