from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from make_dicom import write_ct
from mounted import run_mounted

from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.intake.find.walk import scratch_folder, walk
from deepatlas.io.codec import write_volume
from deepatlas.io.dicom.found import Refusal
from deepatlas.io.dicom.read import read_series
from deepatlas.io.dicom.scan import scan_dicom
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


@pytest.fixture
def src(tmp_path):
    (tmp_path / "src").mkdir()
    return tmp_path / "src"


@pytest.fixture
def seen(tmp_path):
    """Walk a source and check what holds for every source; returns (names in order, {name: reason})."""
    (tmp_path / "scratch").mkdir()

    def see(src, **options):
        refused: list[Refusal] = []
        found = list(walk(src, tmp_path / "scratch", refused, **options))
        names = [f.name for f in found]
        assert len(set(names)) == len(names)
        for f in found:
            assert f.path.is_file() and f.name.isprintable() and str(f.path).encode()
        for r in refused:
            assert "\n" not in r.reason + r.name and ";" in r.reason and str(tmp_path) not in r.reason
        return names, {r.name: r.reason for r in refused}

    return see


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_sorted_with_names_below_the_source(src, seen):
    touch(src / "b" / "2.dcm", src / "b" / "10.dcm", src / "a.nii.gz", src / "b" / "c" / "d" / "e", src / "B")
    assert seen(src) == (["B", "a.nii.gz", "b/10.dcm", "b/2.dcm", "b/c/d/e"], {})
    assert seen(src / "a.nii.gz") == (["a.nii.gz"], {})
    shutil.rmtree(src)
    src.mkdir()
    assert seen(src) == ([], {})


def test_hidden_files_and_junk_are_passed_over(src, seen):
    touch(
        src / ".DS_Store",
        src / "Thumbs.db",
        src / "__MACOSX" / "a",
        src / ".git" / "b",
        src / "a" / "._c.dcm",
    )
    touch(src / "a" / "c.dcm", src / "a" / "Desktop.ini", src / "@eaDir" / "x")
    assert seen(src) == (["a/c.dcm"], {})


def test_a_missing_or_strange_source(src, seen):
    with pytest.raises(DataError, match="no such file or folder; check the path"):
        seen(src / "none")
    os.mkfifo(src / "fifo")
    with pytest.raises(DataError, match="not a file or folder"):
        seen(src / "fifo")


def test_archives_are_files_too(src, seen):
    touch(src / "a.nii.gz", src / "d.zip", src / "c.tar.gz")
    assert seen(src) == (["a.nii.gz", "c.tar.gz", "d.zip"], {})
    assert seen(src / "d.zip") == (["d.zip"], {})


# -- links ------------------------------------------------------------------------------------------


def test_links_are_followed_once(src, seen, tmp_path):
    touch(tmp_path / "other" / "sub" / "1.dcm", tmp_path / "other" / "2.dcm", tmp_path / "single.nii")
    touch(src / "real" / "3.dcm")
    (src / "aaa").symlink_to(src / "real")  # the real folder has the name, whichever sorts first
    (src / "bbb.dcm").symlink_to("real/3.dcm")
    (src / "m").symlink_to(tmp_path / "other")
    (src / "n").symlink_to(tmp_path / "other")
    (src / "o.nii").symlink_to(tmp_path / "single.nii")
    (src / "p.nii").symlink_to("o.nii")
    assert seen(src) == (["real/3.dcm", "m/2.dcm", "m/sub/1.dcm", "o.nii"], {})


def test_hidden_storage_behind_links(src, seen):
    """git-annex keeps files in a hidden folder; they count where a link leads to them."""
    touch(src / ".git" / "annex" / "k1")
    (src / "a").mkdir()
    (src / "a" / "ct.nii.gz").symlink_to("../.git/annex/k1")
    assert seen(src) == (["a/ct.nii.gz"], {})


def test_loops_and_broken_links(src, seen, tmp_path):
    touch(src / "a" / "1.dcm", tmp_path / "out" / "2.dcm")
    (src / "a" / "up").symlink_to("..")
    (src / "a" / "self").symlink_to(".")
    (src / "root").symlink_to("/")
    (src / "x").symlink_to("y")
    (src / "y").symlink_to("x")
    (src / "gone").symlink_to("nowhere.dcm")
    (src / "behind").symlink_to("a/1.dcm/z")
    (src / "out").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(src)  # a loop over two trees
    (tmp_path / "out" / "again").symlink_to(tmp_path / "out")
    names, refused = seen(src)
    assert names == ["a/1.dcm", "out/2.dcm"]
    assert {n for n, r in refused.items() if "a loop" in r} == {"a/up", "a/self", "root", "out/again"}
    assert {n for n, r in refused.items() if "in a circle" in r} == {"x", "y"}
    assert {n for n, r in refused.items() if "broken" in r} == {"gone", "behind"}
    assert len(refused) == 8


def test_the_destination_below_the_source_is_left_out(src, seen):
    touch(src / "a.dcm", src / "out" / "exams" / "e.h5", src / "log.txt")
    assert seen(src, skip=[src / "out", src / "log.txt", src / "not there"]) == (["a.dcm"], {})


# -- what cannot be read ----------------------------------------------------------------------------


def test_fifos_sockets_and_devices_are_never_opened(src, seen):
    """Opening the FIFO would block; an alarm would then end the test."""
    touch(src / "a.dcm")
    os.mkfifo(src / "pipe.dcm")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(src)  # the path of a socket may not be long
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        (src / "null.dcm").symlink_to("/dev/null")
        signal.alarm(20)
        try:
            names, refused = seen(src)
        finally:
            signal.alarm(0)
    assert names == ["a.dcm"]
    assert {n: r.split(",")[0] for n, r in refused.items()} == {
        "pipe.dcm": "a FIFO",
        "socket": "a socket",
        "null.dcm": "a device",
    }


WITHOUT_RIGHTS = """
import os
from pathlib import Path
from deepatlas.intake.find.walk import walk
from deepatlas.errors import DataError
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
refused = []
print([f.name for f in walk("src", Path("."), refused)])
for r in refused:
    print(r.name, "|", r.reason)
try:
    list(walk("src/locked", Path("."), refused))
except DataError as error:
    print(error)
"""


def test_folders_and_files_without_permission(src, tmp_path):
    """In a process of another user than root, who may read everything."""
    touch(src / "a.dcm", src / "locked" / "b.dcm", src / "c.dcm", src / "d.zip", src / "e" / "f.dcm")
    for name, mode in [("locked", 0), ("c.dcm", 0), ("d.zip", 0), ("e", 0o444)]:
        (src / name).chmod(mode)
    tmp_path.chmod(0o755)  # the way to it is not asked for: the process starts inside
    try:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_RIGHTS],
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        for name in ("locked", "e"):
            (src / name).chmod(0o755)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "['a.dcm']"
    reasons = dict(line.split(" | ") for line in lines[1:-1])
    assert set(reasons) == {"locked", "c.dcm", "d.zip", "e/f.dcm"}
    assert all(r == "cannot read: permission denied; check its permissions" for r in reasons.values())
    assert "src/locked: cannot read: Permission denied" in lines[-1]


def test_what_vanishes_while_the_source_is_read(src, tmp_path):
    touch(src / "a" / "1", src / "a" / "2", src / "a" / "3", src / "b" / "4", src / "c" / "5", src / "d")
    (tmp_path / "s").mkdir()
    refused: list[Refusal] = []
    names = []
    for found in walk(src, tmp_path / "s", refused):
        names.append(found.name)
        if found.name == "a/1":
            (src / "a" / "2").unlink()
            shutil.rmtree(src / "b")
            shutil.rmtree(src / "c")
            (src / "c").write_bytes(b"now a file")
    assert names == ["a/1", "a/3", "c", "d"]
    assert {r.name for r in refused} == {"a/2", "b"} and all(
        "vanished" in r.reason and r.passing for r in refused
    )


def test_a_file_that_vanishes_before_it_is_read(src, tmp_path):
    (tmp_path / "s").mkdir()
    write_volume(src / "ct.nii.gz", Volume(np.arange(125).reshape(5, 5, 5), Grid.from_spacing((5, 5, 5))))
    (found,) = walk(src, tmp_path / "s", [])
    found.path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_volume(found.path)


# -- names ------------------------------------------------------------------------------------------


def test_names_of_every_kind_stay_on_one_line_and_apart(src, seen):
    touch(src / "a\nb", src / "a\\nb", src / "tab\t", src / "Größe", src / "rtl\u202eevil", src / " ")
    names, _ = seen(src)
    assert set(names) == {" ", "Größe", "a\\nb", "a\\\\nb", "rtl\\u202eevil", "tab\\t"}


def test_undecodable_names_open_in_every_library(src, seen, tmp_path):
    """Folders and files with names in Latin-1, as in old exports."""
    volume = Volume(np.arange(125).reshape(5, 5, 5) - 50, Grid.from_spacing((5, 5, 5)))
    folder = os.path.join(os.fsencode(src), b"M\xfcller")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes no such names")
    ct = write_volume(tmp_path / "ct.nii.gz", volume)
    shutil.copy(ct, os.path.join(folder, b"ct.nii.gz"))
    shutil.copy(ct, os.path.join(folder, b"sch\xe4del.nii.gz"))
    shutil.copy(ct, os.path.join(os.fsencode(src), b"\xe4.nii.gz"))
    refused: list[Refusal] = []
    found = list(walk(src, tmp_path / "scratch", refused))
    assert [f.name for f in found] == [
        "M\\udcfcller/ct.nii.gz",
        "M\\udcfcller/sch\\udce4del.nii.gz",
        "\\udce4.nii.gz",
    ]
    for f in found:
        np.testing.assert_array_equal(read_volume(f.path).array, volume.array)
    assert not refused


# -- scratch ----------------------------------------------------------------------------------------


def test_scratch_is_private_and_goes(tmp_path):
    with scratch_folder(tmp_path / "new" / "parent") as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
        touch(scratch / "a" / "b")
    assert os.listdir(tmp_path / "new" / "parent") == []
    with pytest.raises(KeyError), scratch_folder(tmp_path) as scratch:
        raise KeyError
    assert not scratch.exists()


KILLED = """
import os, signal
from deepatlas.intake.find.walk import scratch_folder
with scratch_folder(".") as scratch:
    (scratch / "patient.dcm").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_scratch_of_a_killed_run_is_cleaned_and_of_a_living_one_is_not(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, timeout=60, env=environment)
    assert done.returncode == -signal.SIGKILL
    (stale,) = tmp_path.iterdir()
    assert (stale / "patient.dcm").exists()
    with scratch_folder(tmp_path) as first:
        assert not stale.exists()
        touch(first / "a")
        with scratch_folder(tmp_path) as second:
            assert first != second and (first / "a").exists()
        assert (first / "a").exists()
    assert os.listdir(tmp_path) == []


def test_scratch_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"), scratch_folder(tmp_path / "file" / "x"):
        pass


READ_ONLY = """
from deepatlas.errors import DataError
from deepatlas.intake.find.walk import scratch_folder
try:
    with scratch_folder("mounted/x"):
        pass
except DataError as error:
    print(error)
"""


def test_scratch_on_a_read_only_disk(tmp_path):
    (line,) = run_mounted(READ_ONLY, tmp_path, "ro")
    assert line.endswith("the file system is read-only; choose a folder that you may write to")


# -- DICOM that vanishes ----------------------------------------------------------------------------


def test_a_series_that_vanishes_between_scan_and_reading(src, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 300, (6, 12, 14))
    files = write_ct(src / "ct", hu, np.diag([-1, -1, 2.5, 1.0]))
    (tmp_path / "s").mkdir()
    listed = list(walk(src, tmp_path / "s", []))
    files[0].unlink()
    scan = scan_dicom(listed)
    assert len(scan.refusals) == 1 and "cannot be read" in scan.refusals[0].reason
    (series,) = scan.series
    assert len(series.slices) == 5
    files[2].unlink()
    with pytest.raises(DataError, match="cannot be read") as error:
        read_series(series)
    assert str(tmp_path) not in str(error.value) and "\n" not in str(error.value)
