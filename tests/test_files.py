"""Atomic writes, and the one-line errors of writes that fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from deepatlas.errors import DeepAtlasError, WriteError
from deepatlas.files import atomic_h5, atomic_path, staged, write_error, write_text


def test_a_file_appears_when_the_block_ends_and_the_temporary_name_keeps_the_suffix(tmp_path):
    target = tmp_path / "new" / "a.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith(".nii.gz")
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    write_text(target, "two")
    assert target.read_text() == "two" and os.listdir(target.parent) == ["a.nii.gz"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(WriteError, match="cannot write"), atomic_path(tmp_path / "a"):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "disk is full; free space"),
        (OSError("Can't write (errno = 28, error message = 'No space left on device')"), "disk is full"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (PermissionError(errno.EACCES, "x"), "permission denied"),
        (OSError("something\nodd"), "something odd"),
    ],
)
def test_operating_system_errors_become_one_line(error, words):
    raised = write_error("out/a.h5", error)
    text = str(raised)
    assert isinstance(raised, WriteError)
    assert text.startswith("out/a.h5: cannot write") and words in text and "\n" not in text


def test_a_path_that_is_a_folder_or_below_a_file(tmp_path):
    with pytest.raises(WriteError, match="is a folder"), atomic_path(tmp_path):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="file, not a folder"), atomic_path(tmp_path / "file" / "a.txt"):
        pass


def test_a_file_is_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """As Windows demands it."""
    flush = os.fsync

    def fsync(handle):
        writable = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if not writable:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flush(handle)

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "a")
    with atomic_h5(tmp_path / "a.h5") as file:
        file["a"] = 1
    assert (tmp_path / "a.txt").read_text() == "a" and (tmp_path / "a.h5").is_file()


def test_hdf5_files_are_read_back_as_written(tmp_path):
    noise = np.random.default_rng(0).normal(size=(40, 50, 60))
    with atomic_h5(tmp_path / "a.h5") as file:
        file.create_dataset("lzf", data=noise, chunks=(1, 50, 60), compression="lzf", fletcher32=True)
        file["plain"] = noise
        file.attrs["title"] = "noise"
    with h5py.File(tmp_path / "a.h5", "r") as file:
        np.testing.assert_array_equal(file["lzf"][:], noise)
        np.testing.assert_array_equal(file["plain"][:], noise)
        assert file.attrs["title"] == "noise"
    with pytest.raises(KeyError), atomic_h5(tmp_path / "b.h5") as file:
        file["missing"][:]
    assert os.listdir(tmp_path) == ["a.h5"]


FULL = """
import resource, signal, sys
import numpy as np
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume
from deepatlas.errors import WriteError
from deepatlas.files import atomic_h5, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).integers(0, 30000, (30, 30, 30)).astype(np.int16)

def h5():
    with atomic_h5("a.h5") as file:
        for name in "xyz":
            file.create_dataset(name, data=noise, chunks=(10, 30, 30), compression="lzf")

jobs = [lambda: write_text("a.txt", "x" * 50000), h5]
jobs += [lambda s=s: write_volume("a" + s, Volume(noise, Grid.from_spacing((30, 30, 30))))
         for s in (".nii", ".nii.gz", ".nrrd", ".mha")]
for job in jobs:
    try:
        job()
    except WriteError as error:
        print(error)
    else:
        sys.exit("no error")
"""


def test_a_full_disk(tmp_path):
    """Simulated by a limit on the size of files, so that writes fail after some of the data."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", FULL],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 6 and all("cannot write" in line for line in lines), lines
    assert os.listdir(tmp_path) == []


def test_white_space_in_messages_becomes_single_spaces():
    assert str(DeepAtlasError("a\n  b\tc")) == "a b c"


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "out"
    with staged(folder) as stage:
        write_text(stage / "b" / "two.txt", "2")
        write_text(stage / "one.txt", "1")
        assert [p.name for p in folder.iterdir()] == [stage.name]
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")) == [
        "b",
        "b/two.txt",
        "one.txt",
    ]
    with pytest.raises(ZeroDivisionError), staged(folder) as stage:
        write_text(stage / "one.txt", "9")
        raise ZeroDivisionError
    assert (folder / "one.txt").read_text() == "1" and len(list(folder.iterdir())) == 2
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "x" / "y") as stage:
        raise KeyboardInterrupt
    assert not (tmp_path / "x").exists()


def test_errors_name_staged_files_as_they_will_be_called(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError) as error, staged(tmp_path / "out") as stage:
        write_text(stage / "one.txt", "1")
        with atomic_path(stage / "a" / "two.txt"):
            raise OSError(errno.ENOSPC, "x")
    expected = f"{tmp_path / 'out' / 'a' / 'two.txt'}: cannot write: the disk is full"
    assert str(error.value).startswith(expected) and not (tmp_path / "out").exists()
    with pytest.raises(WriteError, match="a part of the path is a file"), staged(tmp_path / "file" / "out"):
        pass
    # A folder that was there before, and what lies in it, stays.
    (tmp_path / "there").mkdir()
    with pytest.raises(WriteError, match="disk is full"), staged(tmp_path / "there"):
        raise OSError(errno.ENOSPC, "x")
    assert list((tmp_path / "there").iterdir()) == []
