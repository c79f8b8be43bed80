"""Destinations that cannot be written, fill up or vanish: each gives one line and leaves no partial file."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest
from mounted import run_mounted

from deepatlas.errors import DataError
from deepatlas.exams.exam_file import write_exam
from deepatlas.files import atomic_h5, atomic_path, write_text
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

JOBS = """
import os
import numpy as np
from deepatlas.exams.exam_file import write_exam
from deepatlas.space.grid import Grid
from deepatlas.io.codec import write_volume
from deepatlas.space.volume import Volume
from deepatlas.errors import DataError
from deepatlas.files import atomic_h5, write_text
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.intake.find.walk import scratch_folder

noise = np.random.default_rng(0).integers(-1000, 300, (64, 64, 69)).astype(np.int16)
volume = Volume(noise, Grid.from_spacing(noise.shape))
record = write_exam("e0.h5", volume, None, {}, {}, [])

def manifest():
    with Manifest("mounted/m.sqlite") as file:
        for number in range(100000):
            file.add_refusal(f"{number}", "file", "x" * 1000)

def store():
    with atomic_h5("mounted/a.h5") as file:
        for name in "abcdef":
            file.create_dataset(name, data=noise, compression="gzip")

def scratch():
    with scratch_folder("mounted") as folder:
        (folder / "a").write_bytes(b"x")

jobs = {
    "text": lambda: write_text("mounted/a.txt", "x" * (1 << 21)),
    "image": lambda: write_volume("mounted/new/a.nii.gz", volume),
    "exam": lambda: write_exam("mounted/aa/e1.h5", volume, None, {}, {}, []),
    "store": store,
    "manifest": manifest,
    "scratch": scratch,
}
for name in jobs:
    try:
        jobs[name]()
    except DataError as error:
        print(name, "|", error)
    else:
        print(name, "|", "done")
print("left", "|", sorted(os.path.join(p, f) for p, _, fs in os.walk("mounted") for f in fs))
"""


def outcomes(lines: list[str]) -> dict[str, str]:
    return dict(line.split(" | ", 1) for line in lines)


@pytest.mark.slow(3)
def test_a_read_only_destination(tmp_path):
    done = outcomes(run_mounted(JOBS, tmp_path, "ro"))
    assert done.pop("left") == "[]"
    assert set(done) == {"text", "image", "exam", "store", "manifest", "scratch"}
    for line in done.values():
        assert "mounted" in line and line.endswith("choose a folder that you may write to"), line


@pytest.mark.slow(3)
def test_a_disk_that_fills_up(tmp_path):
    done = outcomes(run_mounted(JOBS, tmp_path, "size=400k"))
    left = done.pop("left")
    assert done.pop("scratch") == "done"
    for name, line in done.items():
        assert "mounted" in line and "full" in line, (name, line)
    # The manifest is a database, which stays valid with fewer lines.
    assert left in ("[]", "['mounted/m.sqlite']")


def test_a_destination_that_is_removed_meanwhile(tmp_path):
    noise = np.random.default_rng(0).normal(size=(40, 40, 40))
    with (
        pytest.raises(DataError, match="folder is gone; .* run again"),
        atomic_path(tmp_path / "a" / "b") as path,
    ):
        path.write_text("x")
        shutil.rmtree(tmp_path / "a")
    with pytest.raises(DataError, match="folder is gone"), atomic_path(tmp_path / "a" / "b") as path:
        shutil.rmtree(tmp_path / "a")
        path.write_text("x")
    with pytest.raises(DataError, match="folder is gone"), atomic_h5(tmp_path / "a" / "b.h5") as file:
        file["noise"] = noise
        shutil.rmtree(tmp_path / "a")
        file["more"] = noise
    assert list(tmp_path.iterdir()) == []
    # A missing folder is created.
    write_text(tmp_path / "a" / "b", "again")
    assert (tmp_path / "a" / "b").read_text() == "again"


def test_an_exam_written_over_a_damaged_one(tmp_path):
    """A partial file that another program left is replaced."""
    (tmp_path / "e1.h5").write_bytes(b"\x89HDF\r\n\x1a\n half")
    array = np.linspace(-1000, 200, 512).astype(np.int16).reshape(8, 8, 8)
    ct = Volume(array, Grid.from_spacing((8, 8, 8)))
    write_exam(tmp_path / "e1.h5", ct, None, {}, {}, [])
    with h5py.File(tmp_path / "e1.h5") as file:
        np.testing.assert_array_equal(file["ct"][:], ct.array)
