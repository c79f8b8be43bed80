"""Slope and intercept of NIfTI files where one or both are unset: 0 or NaN, as programs write it."""

from __future__ import annotations

import math
import struct

import nibabel as nib
import numpy as np
import pytest
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.io.codec import read_image

RAW = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def scaled(path, slope: float, intercept: float, dtype=np.int16):
    """A file with this scaling in its header, which nibabel itself would not write."""
    nib.save(nib.Nifti1Image(RAW.transpose(2, 1, 0).astype(dtype), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", slope, intercept)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize(
    ("slope", "intercept"),
    [
        (0, 0),
        (math.nan, math.nan),
        (math.nan, 0),
        (0, math.nan),
        (2, -1024),
        (0.5, 3),
        (math.nan, -1024),
        (0, 0.1),
    ],
)
def test_the_values_are_those_that_nibabel_reads(tmp_path, slope, intercept, dtype):
    path = scaled(tmp_path / "a.nii", slope, intercept, dtype)
    volume, notes = read_image(path)
    np.testing.assert_allclose(volume.array.transpose(2, 1, 0), nib.load(path).get_fdata(), atol=1e-3)
    half = not slope > 0 and intercept and not math.isnan(intercept)
    assert any("an intercept of" in note for note in notes) == bool(half)


def test_labels_with_an_intercept_that_does_not_count_stay_whole(tmp_path):
    volume, _ = read_image(scaled(tmp_path / "a.nii", 0, 0.1), labels=True)
    assert np.array_equal(volume.array, RAW)


def test_a_slope_without_an_intercept_is_applied_and_noted(tmp_path):
    volume, notes = read_image(scaled(tmp_path / "a.nii", 2, math.nan))
    np.testing.assert_allclose(volume.array, 2.0 * RAW)
    assert any("no intercept (NaN); 0 is used" in note for note in notes)


@pytest.mark.parametrize(("slope", "intercept"), [(math.inf, 0), (1, -math.inf)])
def test_an_infinite_scaling_is_damage(tmp_path, slope, intercept):
    with pytest.raises(DataError, match="scaling") as error:
        read_image(scaled(tmp_path / "a.nii", slope, intercept))
    one_line(error.value)
