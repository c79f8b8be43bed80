"""The SQLite file of an index: one wide row an exam, and apart from it what only comparisons of exams need."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepatlas import sqlite
from deepatlas.errors import DataError, DeepAtlasError, WriteError
from deepatlas.files import atomic_path, write_error
from deepatlas.index.columns import EXAM, NUMBER, TRUTH, Columns, Values
from deepatlas.locks import held
from deepatlas.sqlite import INDEX, Trouble, trouble_of

# Version 1 held the volumes and values of masks without the say of the image, on the grid of the network.
FORMAT, VERSION = "deepatlas-index", 2
# `deepatlas index` continues no file that it cannot read.
CURE = "delete it, then make it again with `deepatlas index`"


@dataclass(frozen=True)
class About:
    """What an index was made with; a run with other settings does not continue it.

    Attributes:
        model: the fingerprint of the model.
        template: the digest of the template.
        structures: the names of its structures, in the order of the columns.
        refine: refinement steps.
        trust: whether it holds the trust of every structure.
        model_name: what the model was called, to load it again and for messages.
        template_name: what the template was called.
        data: the data directories, for messages and to find exams again.
        regions: the regions of the model, with the fingerprints of their networks.
    """

    model: str
    template: str
    structures: tuple[str, ...]
    refine: int
    trust: bool
    model_name: str = field(default="", compare=False)
    template_name: str = field(default="", compare=False)
    data: tuple[str, ...] = field(default=(), compare=False)
    regions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One exam in the index: its id, where it is, its content key, its columns, and its compact appearance."""

    id: str
    path: str
    key: str
    values: Values
    appearance: bytes = b""


class IndexFile:
    """An index, opened for reading or, by :meth:`create`, for writing. A context manager.

    Raises:
        DataError: the file is missing, damaged, or no index.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such index; make one with `deepatlas index`")
        try:
            mode = "rw" if writable else "ro"
            self._db = sqlite.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)
            self.about = self._read_about()
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            raise self._error(error) from error
        self.columns = Columns(self.about.structures, self.about.trust)

    @classmethod
    def create(cls, path: Path, about: About) -> IndexFile:
        """Open the index at ``path`` to continue it, or make it.

        Raises:
            DataError: it was made with another model, template or other settings, or cannot be written.
        """
        if not path.exists():
            try:
                with atomic_path(path) as temporary:
                    _write_schema(temporary, about)
            except sqlite3.Error as error:
                raise WriteError(f"{path}: cannot write: {error}; choose another --out") from error
        found = cls(path, writable=True)
        if found.about != about:
            found.close()
            raise DataError(f"{path}: {_difference(found.about, about)}; choose another --out, or delete it")
        # Where the exams are may have changed.
        with found._guarded():
            found._db.execute("UPDATE about SET value = ? WHERE name = 'about'", (json.dumps(asdict(about)),))
        found.about = about
        return found

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> IndexFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self.rows("SELECT COUNT(*) FROM exams")[0][0])

    def keys(self) -> dict[str, tuple[str, str]]:
        """The path and the content key of every exam, by its id."""
        statement = "SELECT id, path, key FROM exams JOIN sources USING (num)"
        return {i: (path, key) for i, path, key in self.rows(statement)}

    def outdated(self) -> list[str]:
        """The exams that could not be used any more in a later pass, so that what is known of them is of before."""
        return [
            i
            for (i,) in self.rows("SELECT id FROM exams JOIN sources USING (num) WHERE key = '' ORDER BY id")
        ]

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        with self._guarded():
            return self._db.execute(statement, values).fetchall()

    def appearances(self) -> Iterator[tuple[str, bytes]]:
        """The compact appearance of every exam, by its id."""
        with self._guarded():
            yield from self._db.execute(
                "SELECT id, appearance FROM exams JOIN sources USING (num) ORDER BY id"
            )

    def appearance(self, exam: str) -> bytes | None:
        """The compact appearance of one exam."""
        rows = self.rows("SELECT appearance FROM exams JOIN sources USING (num) WHERE id = ?", (exam,))
        return rows[0][0] if rows else None

    def entries(self) -> Iterator[Entry]:
        """Everything about every exam."""
        names = self.columns.all()
        source = f"{self.columns.source(names)} JOIN sources USING (num)"
        statement = f"SELECT id, path, key, appearance, {', '.join(names)} FROM {source}"
        with self._guarded():
            for exam, path, key, cells, *values in self._db.execute(statement):
                yield Entry(exam, path, key, dict(zip(names, values, strict=True)), cells)

    # -- writing ------------------------------------------------------------------------------------------

    def put(self, entries: Iterable[Entry]) -> None:
        """Add exams, or replace those with the same id; all of them or, after an error, none."""
        tables = self.columns.tables()
        entries = list(entries)
        with self._guarded(), sqlite.transaction(self._db, "BEGIN IMMEDIATE"):
            self._delete(entry.id for entry in entries)
            for entry in entries:
                values = {"id": entry.id, **entry.values}
                number = None
                for table, names in tables.items():
                    marks = ", ".join("?" * (len(names) + 1))
                    statement = f"INSERT INTO {table} (num, {', '.join(names)}) VALUES ({marks})"
                    found = self._db.execute(statement, (number, *(values.get(name) for name in names)))
                    number = found.lastrowid
                source = (number, entry.path, entry.key, entry.appearance)
                self._db.execute("INSERT INTO sources VALUES (?, ?, ?, ?)", source)

    def outdate(self, ids: Iterable[str]) -> None:
        """Mark exams as :meth:`outdated`, until they are put again."""
        with self._guarded(), sqlite.transaction(self._db, "BEGIN IMMEDIATE"):
            # No exam has such a content key, so that the next pass tries again.
            self._db.executemany(
                "UPDATE sources SET key = '' WHERE num = (SELECT num FROM exams WHERE id = ?)",
                ((i,) for i in ids),
            )

    def drop(self, ids: Iterable[str]) -> None:
        """Remove exams."""
        with self._guarded(), sqlite.transaction(self._db, "BEGIN IMMEDIATE"):
            self._delete(ids)

    def _delete(self, ids: Iterable[str]) -> None:
        for exam in ids:
            for (number,) in self._db.execute("SELECT num FROM exams WHERE id = ?", (exam,)).fetchall():
                for table in (*self.columns.tables(), "sources"):
                    self._db.execute(f"DELETE FROM {table} WHERE num = ?", (number,))

    # -- small things -------------------------------------------------------------------------------------

    def _read_about(self) -> About:
        found = dict(self._db.execute("SELECT name, value FROM about"))
        if found.get("format") != FORMAT:
            raise DataError(f"{self.path}: not an index of `deepatlas index`; choose another file")
        if found.get("version") != str(VERSION):
            raise DataError(
                f"{self.path}: index format {found.get('version')}, this version reads {VERSION}; {CURE}"
            )
        about = json.loads(found["about"])
        return About(
            **about | {key: tuple(about[key]) for key in ("structures", "data", "regions") if key in about}
        )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> DeepAtlasError:
        trouble = trouble_of(error) if isinstance(error, sqlite3.Error) else Trouble.DAMAGED
        if trouble is Trouble.BUSY:
            return DataError(f"{self.path}: another program writes to it; wait until it has finished")
        if trouble in (Trouble.DISK_FULL, Trouble.DEVICE, Trouble.ACCESS):
            return WriteError(f"{self.path}: cannot be used: {error}; free space or check its permissions")
        return DataError(
            f"{self.path}: not an index, or damaged ({error}); choose another file, or, if it was an index, {CURE}"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One program at a time makes or continues the index at ``path``, whose folder is made.

    Raises :class:`~deepatlas.errors.DataError` while another one does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    busy = f"another `deepatlas index` works on {path.name}; wait until it has finished"
    with held(path.with_name(f".{path.name}.lock"), busy, anybody=True):
        yield


def index_at(path: Path) -> Path:
    """The file of an index, given itself or the data directory that it lies in."""
    return path / INDEX if path.is_dir() else path


def _write_schema(path: Path, about: About) -> None:
    types = {NUMBER: "NUMERIC", TRUTH: "INTEGER"}
    db = sqlite.connect(path)
    try:
        with sqlite.transaction(db, "BEGIN EXCLUSIVE"):
            db.execute("CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT)")
            for table, columns in Columns(about.structures).tables().items():
                body = "".join(f", {name} {types.get(EXAM.get(name, NUMBER), 'TEXT')}" for name in columns)
                db.execute(f"CREATE TABLE {table} (num INTEGER PRIMARY KEY{body})")
            db.execute("CREATE UNIQUE INDEX ids ON exams (id)")
            # Apart, so that no question reads a page of it.
            db.execute("CREATE TABLE sources (num INTEGER PRIMARY KEY, path TEXT, key TEXT, appearance BLOB)")
            rows = [("format", FORMAT), ("version", str(VERSION)), ("about", json.dumps(asdict(about)))]
            db.executemany("INSERT INTO about VALUES (?, ?)", rows)
    finally:
        with suppress(sqlite3.Error):
            db.close()


def _difference(found: About, wanted: About) -> str:
    if found.model != wanted.model:
        name = f" ({found.model_name})" if found.model_name else ""
        return f"the index of another model, {found.model}{name} and not {wanted.model}"
    if (found.template, found.structures) != (wanted.template, wanted.structures):
        return f"made with another template ({', '.join(found.structures[:4])} …)"
    if found.regions != wanted.regions:
        with_them = [", ".join(one.regions) or "no regions" for one in (found, wanted)]
        return f"made with {with_them[0]} of the model, which now has {with_them[1]}"
    if found.refine != wanted.refine:
        return f"made with --refine {found.refine}, not {wanted.refine}"
    return f"made {'with' if found.trust else 'without'} --trust"


def named(values: Mapping[str, Any], structures: Sequence[str]) -> dict[str, Any]:
    """A row of the table with the names that people know: structures as ``{name: {"coverage": …}}``."""
    own: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        kind, _, row = name.rpartition("_")
        if name in EXAM or name in ("path", "key") or not row.isdigit():
            own[name] = bool(value) if EXAM.get(name) == TRUTH and value is not None else value
        elif value is not None:
            parts.setdefault(structures[int(row)], {})[kind] = value
    return own | {"structures": parts}
