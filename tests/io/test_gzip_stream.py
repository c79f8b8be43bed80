"""gzip that several threads compress, against Python's own gzip and what ITK writes."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from small_exams import oblique

from deepatlas.io import gzip_stream
from deepatlas.io.codec import write_volume
from deepatlas.io.gzip_stream import write_gzip
from deepatlas.space.volume import Volume


@pytest.mark.parametrize("threads", ["1", "3", "many"])
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (352, 70_000), (4096,), (4097, 0, 5)])
def test_it_is_one_member_that_holds_the_parts(sizes, threads, monkeypatch):
    monkeypatch.setattr(gzip_stream, "PIECE", 4096)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    rng = np.random.default_rng(3)
    parts = [rng.integers(0, 9, n).astype(np.uint8).tobytes() for n in sizes]
    file = io.BytesIO()
    write_gzip(file, parts)
    assert gzip.decompress(file.getvalue()) == b"".join(parts)
    reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
    # A browser stops at the end of the first member.
    assert reader.decompress(file.getvalue()) == b"".join(parts) and reader.eof and not reader.unused_data


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
def test_a_nifti_has_the_bytes_that_itk_writes(dtype, tmp_path):
    array = (np.random.default_rng(0).normal(size=(11, 13, 17)) * 50 + 100).astype(dtype)
    volume = Volume(array, oblique(np.random.default_rng(7), array.shape))
    write_volume(tmp_path / "a.nii.gz", volume)
    # Without compression ITK itself writes the file.
    write_volume(tmp_path / "b.nii", volume)
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == (tmp_path / "b.nii").read_bytes()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))), array)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii"]
