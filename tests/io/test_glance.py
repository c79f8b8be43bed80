"""What an image file holds is decided by its voxels, in every format and type."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from small_exams import body

from deepatlas.io.codec import write_volume
from deepatlas.io.glance import MOST_LABELS, Holds, glance
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

SHAPE = (8, 24, 24)
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_label_images_and_cts_of_every_type(tmp_path, suffix, dtype):
    ct, labels = body(SHAPE)
    seen = glance(write_volume(tmp_path / f"ct{suffix}", Volume(labels.array.astype(dtype) * 5, labels.grid)))
    assert (seen.holds, seen.ids) == (Holds.LABELS, (5, 10))
    np.testing.assert_allclose(seen.grid.affine, ct.grid.affine, atol=1e-4)
    assert seen.grid.shape == SHAPE
    if np.dtype(dtype).kind != "u":
        path = write_volume(tmp_path / f"label{suffix}", Volume(np.rint(ct.array).astype(dtype), ct.grid))
        assert glance(path).holds is Holds.IMAGE


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_contents(tmp_path, suffix):
    ct, labels = body(SHAPE)

    def holds(array):
        return glance(write_volume(tmp_path / f"x{suffix}", Volume(array, ct.grid))).holds

    assert holds(np.zeros(SHAPE, np.uint8)) is Holds.NOTHING
    assert holds(labels.array.astype(np.float32) / 3) is Holds.FRACTIONS
    # A label image that was resampled linearly; one that was computed with; and a CT that was scaled.
    assert holds(labels.array.astype(np.float32) * 30.5) is Holds.FRACTIONS
    assert holds(labels.array.astype(np.float32) * 1.00002) is Holds.LABELS
    assert holds((ct.array - ct.array.min()) / np.ptp(ct.array)) is Holds.FRACTIONS
    # As many values as a picture has, and numbers that no id has.
    counting = (np.arange(np.prod(SHAPE)) // 4).reshape(SHAPE)
    assert holds((counting % MOST_LABELS).astype(np.uint8)) is Holds.LABELS
    assert holds((counting % (MOST_LABELS + 1)).astype(np.uint8)) is Holds.IMAGE
    assert holds(labels.array.astype(np.int32) * 70000) is Holds.IMAGE
    assert holds(labels.array.astype(np.float32) * 70.5) is Holds.IMAGE
    assert holds(labels.array.astype(np.int16) - 2) is Holds.IMAGE
    # -1 is what is to be ignored, or 255 in a signed byte.
    assert holds(labels.array.astype(np.int16) - 1) is Holds.LABELS
    assert holds(-(labels.array == 1).astype(np.int16)) is Holds.LABELS


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_grey_values_are_no_labels_however_few(tmp_path, suffix):
    """A small image of another modality has fewer grey values than an atlas has labels, but not in regions."""
    _, labels = body(SHAPE)
    rng = np.random.default_rng(0)
    for count, holds in ((100, Holds.IMAGE), (20, Holds.LABELS)):
        noise = rng.integers(0, count, SHAPE).astype(np.int16)
        assert glance(write_volume(tmp_path / f"x{suffix}", Volume(noise, labels.grid))).holds is holds
    regions = np.kron(np.arange(1, 113).reshape(4, 4, 7), np.ones((2, 6, 4), int)).astype(np.int16)
    path = write_volume(tmp_path / f"y{suffix}", Volume(regions, Grid.from_spacing(regions.shape, (1, 1, 1))))
    assert glance(path).ids == tuple(range(1, 113))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slope_and_byte_order_of_nifti(tmp_path, order, suffix):
    """Stored from 0, a CT looks like nothing else than a label image, until its intercept is applied."""
    _, labels = body(SHAPE)
    kind = nibabel.Nifti1Image
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(labels.array.astype(np.int16).T, np.diag([2, 2, 3, 1]), header)
    image.to_filename(tmp_path / f"plain{suffix}")
    assert glance(tmp_path / f"plain{suffix}").ids == (1, 2)
    image.header.set_slope_inter(500, -1000)
    scaled = kind(image.get_fdata() * 500 - 1000, image.affine, image.header)
    scaled.to_filename(tmp_path / f"scaled{suffix}")
    assert glance(tmp_path / f"scaled{suffix}").holds is Holds.IMAGE


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_cannot_be_read_is_unknown(tmp_path, suffix):
    _, labels = body(SHAPE)
    path = write_volume(tmp_path / f"x{suffix}", labels)
    path.write_bytes(path.read_bytes()[:-30])
    assert glance(path).holds is Holds.UNKNOWN
    path.write_bytes(b"")
    assert glance(path).holds is Holds.UNKNOWN
    path.unlink()
    with pytest.raises(OSError):
        glance(path)


def test_voxels_in_a_file_of_their_own(tmp_path):
    _, labels = body(SHAPE)
    image = sitk.GetImageFromArray(labels.array)
    for name in ("a.mhd", "b.nhdr"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert glance(tmp_path / name).ids == (1, 2)
