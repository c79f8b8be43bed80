"""Headers travel with their series: no file is opened more often than needed, and a changed file is noticed."""

from __future__ import annotations

import builtins
import pickle
from collections import Counter
from dataclasses import fields

import numpy as np
import pydicom
import pytest
from make_dicom import write_ct
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless

from deepatlas.errors import DataError, PassingError
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.header import Header, read_header
from deepatlas.io.dicom.packed_header import pack, unpack
from deepatlas.io.dicom.read import read_folder, read_series
from deepatlas.io.dicom.scan import scan_dicom

AFFINE = np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])
SYNTAXES = (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless)


def write(folder, **options):
    hu = np.random.default_rng(0).integers(-1000, 1500, size=(6, 16, 14)).astype(float)
    return write_ct(folder, hu, AFFINE, **options)


def series_in(paths):
    (series,) = scan_dicom(Found(path, path.name) for path in paths).series
    return series


@pytest.mark.parametrize("syntax", SYNTAXES, ids=["native", "deflated", "compressed"])
def test_a_file_is_opened_for_its_header_and_for_its_pixels(tmp_path, monkeypatch, syntax):
    paths = write(tmp_path, syntax=syntax)
    opened = Counter()
    plain = builtins.open

    def counted(file, *args, **more):
        opened[str(file)] += 1
        return plain(file, *args, **more)

    monkeypatch.setattr(builtins, "open", counted)
    read_folder(tmp_path)
    assert {opened[str(path)] for path in paths} == {2}


@pytest.mark.parametrize("syntax", SYNTAXES, ids=["native", "deflated", "compressed"])
def test_a_file_that_changes_after_its_header_was_read_is_noticed(tmp_path, syntax):
    paths = write(tmp_path, syntax=syntax)
    series = series_in(paths)
    ds = pydicom.dcmread(paths[2])
    ds.RescaleIntercept = -1000
    ds.save_as(paths[2])
    with pytest.raises(PassingError, match="image 3 of 6: the file changed after its header was read"):
        read_series(series)
    assert read_series(series_in(paths)).volume.array.shape == (6, 16, 14)


def test_a_file_that_is_cut_or_gone_after_its_header_was_read_is_an_error(tmp_path):
    paths = write(tmp_path)
    series = series_in(paths)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:-10])
    with pytest.raises(DataError, match="image 2 of 6: PixelData holds 438 of 448 bytes"):
        read_series(series)
    paths[1].unlink()
    with pytest.raises(PassingError, match="image 2 of 6: cannot be read"):
        read_series(series)


@pytest.mark.parametrize("multiframe", [False, True], ids=["slices", "multiframe"])
def test_packed_headers_are_the_same_and_small(tmp_path, multiframe):
    for path in write(tmp_path, multiframe=multiframe):
        header = read_header(Found(path, path.name))
        assert isinstance(header, Header)
        packed = pack(header)
        again = unpack(packed)
        for field in fields(Header):
            np.testing.assert_equal(getattr(again, field.name), getattr(header, field.name))
        assert multiframe or len(packed) < 500


def test_the_headers_of_a_series_share_their_texts(tmp_path):
    headers = [read_header(Found(path, path.name)) for path in write(tmp_path)]
    again = [unpack(pack(header)) for header in headers]
    assert all(one.series is again[0].series and one.study is again[0].study for one in again)
    assert len(pickle.dumps(again)) < 0.8 * len(pickle.dumps(headers))
