from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.exams.exam_file import ExamRecord
from deepatlas.intake.dataset.manifest import TABLES, Manifest, SeriesLine, merge_manifests

resource = pytest.importorskip("resource", reason="limits and kills are those of POSIX")


def record(exam="e1", **changes) -> ExamRecord:
    values = {
        "id": exam, "shape": (107, 512, 500), "spacing": (0.7, 0.8, 3.0), "extent": (350.0, 409.6, 321.0),
        "orientation": "LPS", "labels": {"bone": 1, "größe": 300}, "present": ["bone"], "warnings": ["odd", "very odd"],
        "facts": {"kvp": 120, "kernel": "B30f"}, "crop": "foreground", "bytes": 12345, "sha256": "a" * 64,
        "content": "b" * 64, "has_seg": True,
    }  # fmt: skip
    return ExamRecord(**values | changes)


def sources(path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT id, source FROM exams"))


SERIES = [SeriesLine("series 2", True, "most slices"), SeriesLine("series 3", False, "bone kernel")]


def test_what_goes_in_comes_out(tmp_path):
    path = tmp_path / "deep" / "m.sqlite"
    plain = record("e2", labels={}, present=[], warnings=[], facts={}, crop=None, has_seg=False)
    with Manifest(path) as manifest:
        manifest.add_exam(record(), "source 1", SERIES)
        manifest.add_exam(plain, "source 2")
        manifest.add_refusal("77aa.dcm", "file", "no image")
        manifest.add_refusal("77aa.dcm", "file", "no image")
        manifest.add_refusal("66aa", "exam", "air alone")
        manifest.set_rows(["e2", "e1"])
    with Manifest(path, read_only=True) as manifest:
        assert list(manifest.exams()) == [record(), plain] and len(manifest) == 2
        assert manifest.exam("e1") == record() and manifest.exam("e3") is None
        assert sources(tmp_path / "deep" / "m.sqlite") == {"e1": "source 1", "e2": "source 2"}
        assert manifest.rows() == {"e1": 1, "e2": 0}
        assert manifest.series() == [("e1", line) for line in SERIES]
        assert manifest.refusals() == [("66aa", "exam", "air alone"), ("77aa.dcm", "file", "no image")]
        with pytest.raises(DataError):
            manifest.add_exam(record("e3"))


def test_an_exam_that_is_entered_again_replaces_the_old_one(tmp_path):
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add_exam(record(), "a", SERIES)
        manifest.add_exam(record(warnings=["new"], bytes=1), "b", SERIES[:1])
        assert list(manifest.exams()) == [record(warnings=["new"], bytes=1)]
        assert sources(tmp_path / "m.sqlite") == {"e1": "b"} and len(manifest.series()) == 1


def test_any_sqlite_reads_it(tmp_path):
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add_exam(record(), "a", SERIES)
    db = sqlite3.connect(tmp_path / "m.sqlite")
    assert db.execute("SELECT id, coverage_mm, width_mm, voxels_z, warnings FROM exams").fetchall() == [
        ("e1", 321.0, 350.0, 107, 2)
    ]
    assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_csv(tmp_path):
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add_exam(record(), "a", SERIES)
        manifest.add_refusal("x,y", "file", 'a "quoted" reason')
        paths = manifest.export_csv(tmp_path / "csv")
    assert [p.name for p in paths] == [f"{table}.csv" for table in TABLES]
    rows = {p.stem: list(csv.DictReader(p.open(encoding="utf-8", newline=""))) for p in paths}
    assert rows["exams"][0]["id"] == "e1" and float(rows["exams"][0]["spacing_z"]) == 3.0
    assert [r["text"] for r in rows["warnings"]] == ["odd", "very odd"]
    assert rows["refusals"] == [{"name": "x,y", "kind": "file", "reason": 'a "quoted" reason'}]


# -- shards -----------------------------------------------------------------------------------------


def shard(path, *records, refusals=()):
    with Manifest(path) as manifest:
        for one in records:
            manifest.add_exam(one, f"source of {one.id}", SERIES)
        for name in refusals:
            manifest.add_refusal(name, "file", "no image")
    return path


def test_shards_are_merged(tmp_path):
    a = shard(tmp_path / "a", record("e3"), record("e1"), refusals=["x", "y"])
    b = shard(tmp_path / "b", record("e2"), record("e1"), refusals=["y", "z"])
    merge_manifests(tmp_path / "ab", [a, b])
    merge_manifests(tmp_path / "ba", [b, a])
    assert (tmp_path / "ab").read_bytes() == (tmp_path / "ba").read_bytes()
    with Manifest(tmp_path / "ab", read_only=True) as merged:
        assert list(merged.rows()) == ["e1", "e2", "e3"] and len(merged.series()) == 6
        assert [r.warnings for r in merged.exams()] == [["odd", "very odd"]] * 3
        assert [name for name, *_ in merged.refusals()] == ["x", "y", "z"]
    # Onto itself.
    merge_manifests(tmp_path / "ab", [tmp_path / "ab"])
    assert (tmp_path / "ab").read_bytes() == (tmp_path / "ba").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "ab", "b", "ba"]


def test_shards_that_contradict_each_other(tmp_path):
    a = shard(tmp_path / "a", record("e1"))
    b = shard(tmp_path / "b", record("e1", content="c" * 64, warnings=["newer"]))
    with pytest.raises(DataError, match="exam e1 differs") as error:
        merge_manifests(tmp_path / "m", [a, b])
    one_line(error.value)
    assert not (tmp_path / "m").exists()


# -- failure ----------------------------------------------------------------------------------------


def forked(work, *arguments):
    """A process that inherits what is imported here, and the end of the pipe that ``work`` sends to."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(there, *arguments))
    child.start()
    there.close()
    return child, here


def write_for_ever(pipe, path):
    with Manifest(path) as manifest:
        for i in range(100_000):
            manifest.add_exam(record(f"e{i}", warnings=["w"] * 50), "s", SERIES)
            pipe.send(i)


def test_killed_while_it_writes(tmp_path):
    """At any moment the manifest can be opened afterwards, and holds every exam that was entered, complete."""
    path = tmp_path / "m.sqlite"
    child, pipe = forked(write_for_ever, path)
    for _ in range(40):
        last = pipe.recv()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with suppress(EOFError):
        while True:
            last = pipe.recv()
    with Manifest(path) as manifest:
        assert len(manifest) in (last + 1, last + 2)
        assert all(len(exam.warnings) == 50 for exam in manifest.exams())
        assert len(manifest.series()) == 2 * len(manifest)
        manifest.add_exam(record("more"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.sqlite"]


def test_a_journal_is_rolled_back(tmp_path):
    """The process is killed in a transaction of which some pages are on the disk already."""
    path = shard(tmp_path / "m.sqlite", *(record(f"e{i}") for i in range(20)))
    child, pipe = forked(leave_half_a_change, path)
    pipe.recv()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert (tmp_path / "m.sqlite-journal").stat().st_size > 0
    with Manifest(path) as manifest:
        assert list(manifest.exams()) == sorted((record(f"e{i}") for i in range(20)), key=lambda r: r.id)


def leave_half_a_change(pipe, path):
    manifest = Manifest(path)
    # Pages are then written to the file before the commit.
    manifest._db.execute("PRAGMA cache_size = 1")
    manifest._db.execute("BEGIN IMMEDIATE")
    manifest._db.execute("UPDATE exams SET facts = facts || facts || facts, source = ''")
    manifest._db.execute("DELETE FROM warnings")
    pipe.send("half")
    signal.pause()


def test_bad_manifests(tmp_path):
    with Manifest(tmp_path / "newer") as manifest:
        manifest._db.execute("UPDATE about SET value = '2' WHERE name = 'version'")
    (tmp_path / "text").write_text("my notes, and not a database at all")
    (tmp_path / "empty").write_bytes(b"")
    whole = shard(tmp_path / "whole", *(record(f"e{i}") for i in range(50))).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    db = sqlite3.connect(tmp_path / "foreign")
    db.execute("CREATE TABLE x (y)")
    db.close()
    messages = {
        "newer": "manifest format 2, this program reads 1",
        "text": "not a manifest",
        "empty": "an empty manifest",
        "cut": "damaged",
        "foreign": "not a manifest",
        "none": "no such manifest",
    }
    for name, message in messages.items():
        with pytest.raises(DataError, match=message) as error:
            with Manifest(tmp_path / name, read_only=True) as manifest:
                list(manifest.exams())
        assert str(tmp_path / name) in one_line(error.value)
    for name in ("newer", "text", "foreign"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(DataError):
            Manifest(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError) as error:
        Manifest(tmp_path / "file" / "m.sqlite")
    one_line(error.value)
    with pytest.raises(DataError) as error:
        Manifest(tmp_path)
    one_line(error.value)


def write_until_full(pipe, path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    manifest = Manifest(path)
    for i in range(2000):
        try:
            manifest.add_exam(record(f"e{i}", warnings=["w" * 2000]))
        except DataError as error:
            pipe.send((str(error), i))
            return


def test_a_full_disk(tmp_path):
    """A limit on the file size takes the place of a full disk. What was entered before stays."""
    child, pipe = forked(write_until_full, tmp_path / "m")
    line, count = pipe.recv()
    child.join()
    assert str(tmp_path / "m") in line and "\n" not in line and count > 10
    with Manifest(tmp_path / "m") as manifest:
        assert len(manifest) == count


def test_scale(tmp_path):
    """As many exams as the largest cohort has are merged in seconds, and share one label table in memory."""
    if not os.environ.get("DEEPATLAS_LONG_TESTS"):
        pytest.skip("enters 51,167 exams (set DEEPATLAS_LONG_TESTS=1)")
    labels = {f"structure {i}": i for i in range(1, 118)}
    with Manifest(tmp_path / "m") as manifest:
        manifest._db.execute("PRAGMA synchronous = OFF")
        for i in range(51_167):
            manifest.add_exam(replace(record(f"{i:016x}"), labels=labels), f"s{i}", SERIES)
    merge_manifests(tmp_path / "merged", [tmp_path / "m"])
    with Manifest(tmp_path / "merged", read_only=True) as manifest:
        exams = list(manifest.exams())
    assert len(exams) == 51_167 and len({id(exam.labels) for exam in exams}) == 1
