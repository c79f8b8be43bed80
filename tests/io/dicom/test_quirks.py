"""DICOM that breaks the standard: decimal commas, and files that are compressed with gzip."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from make_dicom import write_ct
from prepare_here import prepare_here
from small_exams import body, one_line

from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.io.dicom.read import read_folder

AFFINE = np.array([[-0.75, 0, 0, 40.5], [0, -0.75, 0, 30.25], [0, 0, 2.5, -100.5], [0, 0, 0, 1.0]])
HU = np.random.default_rng(0).integers(-1000, 1500, (8, 12, 10)).astype(float)


def with_commas(path: Path, *texts: str) -> None:
    """Write a decimal comma into these values of a file; the length stays."""
    content = path.read_bytes()
    for text in texts:
        assert text.encode() in content, text
        content = content.replace(text.encode(), text.replace(".", ",").encode())
    path.write_bytes(content)


@pytest.mark.parametrize("multiframe", [False, True])
def test_decimal_commas(tmp_path, multiframe):
    whole = read_folder(write_ct(tmp_path / "a", HU, AFFINE, multiframe=multiframe)[0].parent)
    files = write_ct(tmp_path / "b", HU, AFFINE, multiframe=multiframe)
    for file in files:
        # The size of a pixel, and two parts of every position.
        with_commas(file, "0.75\\0.75", "-40.5\\-30.25")
    reading = read_folder(tmp_path / "b")
    np.testing.assert_array_equal(reading.volume.array, HU)
    np.testing.assert_allclose(reading.volume.grid.affine, whole.volume.grid.affine)
    assert reading.volume.grid.spacing == pytest.approx((0.75, 0.75, 2.5))
    count = len(files)
    assert reading.warnings == [f"{count} of {count} headers have decimal commas; they are read as points"]


def test_a_comma_that_is_no_decimal_comma_is_not_read(tmp_path):
    for file in write_ct(tmp_path, HU, AFFINE):
        content = file.read_bytes()
        assert b"0.75\\0.75" in content
        file.write_bytes(content.replace(b"0.75\\0.75", b"0.75,0.75"))
    with pytest.raises(DataError, match="PixelSpacing"):
        read_folder(tmp_path)


def zipped(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return target


def test_zipped_slices_in_a_folder_are_counted(tmp_path):
    for file in write_ct(tmp_path, HU, AFFINE)[6:]:
        zipped(file)
    reading = read_folder(tmp_path)
    assert reading.volume.array.shape[0] == 6
    assert reading.warnings == ["2 DICOM files compressed with gzip left out; unpack them (gunzip)"]


def test_a_folder_and_a_file_of_nothing_else(tmp_path):
    for file in write_ct(tmp_path, HU, AFFINE):
        last = zipped(file)
    for path in (tmp_path, last):
        with pytest.raises(DataError, match="compressed with gzip, which is not read; unpack it") as error:
            read_volume(path)
        one_line(error.value)


def test_zipped_files_in_a_mixture_are_listed(tmp_path):
    ct, _ = body((12, 40, 40))
    hu = np.rint(ct.array.clip(-1024))
    write_ct(tmp_path / "src" / "good", hu, ct.grid.affine)
    names = {
        zipped(f).relative_to(tmp_path / "src").as_posix()
        for f in write_ct(tmp_path / "src" / "b", hu, AFFINE)
    }
    # Without the name of DICOM too; and a file that is only called so.
    odd = tmp_path / "src" / "IM0001.gz"
    odd.write_bytes((tmp_path / "src" / sorted(names)[0]).read_bytes())
    (tmp_path / "src" / "text.dcm.gz").write_bytes(gzip.compress(b"no DICOM" * 40))
    (tmp_path / "src" / "notes.gz").write_bytes(gzip.compress(b"no DICOM" * 40))
    prepare_here(tmp_path / "src", tmp_path / "dst")
    assert len(Dataset(tmp_path / "dst")) == 1
    with open(tmp_path / "dst.private" / "refused.csv", encoding="utf-8", newline="") as file:
        refused = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert set(refused) == names | {"IM0001.gz", "text.dcm.gz"}
    assert all("gunzip" in refused[name] for name in names | {"IM0001.gz"})
