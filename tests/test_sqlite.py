"""What SQLite errors mean, told by their codes, and changes that are made completely or not at all."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from contextlib import closing

import pytest

from deepatlas.files import create_private
from deepatlas.sqlite import Trouble, connect, has_locks, transaction, trouble_of


def trouble(work) -> Trouble:
    with pytest.raises(sqlite3.Error) as error:
        work()
    return trouble_of(error.value)


def filled(path) -> None:
    with closing(connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
        db.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)


def test_locks_are_there_or_not(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "a").touch()
    assert has_locks(tmp_path / "a") and has_locks(tmp_path)
    for number, there in ((errno.ENOLCK, False), (errno.EOPNOTSUPP, False), (errno.EWOULDBLOCK, True)):

        def flock(*_, number=number):
            raise OSError(number, "x")

        monkeypatch.setattr(fcntl, "flock", flock)
        assert has_locks(tmp_path / "a") == there


def test_troubles_are_told_apart(tmp_path):
    filled(tmp_path / "good")
    with closing(connect(tmp_path / "good", ["busy_timeout = 0"])) as one:
        one.execute("BEGIN IMMEDIATE")
        with closing(connect(tmp_path / "good", ["busy_timeout = 0"])) as other:
            assert trouble(lambda: other.execute("BEGIN IMMEDIATE")) is Trouble.BUSY
    with closing(connect(tmp_path / "good", ["max_page_count = 1"])) as db:
        rows = [("x" * 5000,)] * 100
        assert trouble(lambda: db.executemany("INSERT INTO t VALUES (?)", rows)) is Trouble.DISK_FULL
    address = (tmp_path / "good").as_uri() + "?mode=ro"
    with closing(connect(address, uri=True)) as db:
        assert trouble(lambda: db.execute("DELETE FROM t")) is Trouble.ACCESS
    (tmp_path / "text").write_text("notes, and not a database at all")
    assert trouble(lambda: connect(tmp_path / "text", ["journal_mode = WAL"])) is Trouble.DAMAGED
    assert trouble(lambda: connect(tmp_path / "none" / "x")) is Trouble.ACCESS
    with closing(connect(tmp_path / "good")) as db:
        assert trouble(lambda: db.execute("SELECT * FROM nothing")) is Trouble.OTHER
    assert trouble_of(sqlite3.ProgrammingError("raised by Python")) is Trouble.OTHER


def test_a_transaction_is_made_completely_or_not_at_all(tmp_path):
    with closing(connect(tmp_path / "db")) as db:
        db.execute("CREATE TABLE t (x)")
        with transaction(db):
            db.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(KeyError), transaction(db, "BEGIN IMMEDIATE"):
            db.execute("INSERT INTO t VALUES (2)")
            raise KeyError
        assert db.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_private_files_are_the_owners(tmp_path):
    old = os.umask(0)
    try:
        create_private(tmp_path / "db")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "db").stat().st_mode) == 0o600
    (tmp_path / "db").write_text("kept")
    create_private(tmp_path / "db")
    assert (tmp_path / "db").read_text() == "kept"
