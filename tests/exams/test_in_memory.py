"""Images of other libraries in memory: the same file read by each of them gives the same volume."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from small_exams import oblique, one_line

from deepatlas.errors import DataWarning, DeepAtlasError
from deepatlas.exams.in_memory import as_volume
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.model.engine import read_exam
from deepatlas.space.volume import Volume


@pytest.fixture(params=range(3))
def path(request, tmp_path):
    """A CT on an oblique, anisotropic grid with permuted and flipped axes."""
    rng = np.random.default_rng(request.param)
    grid = oblique(rng, shape=(7, 9, 11))
    return write_volume(tmp_path / "ct.nii.gz", Volume(rng.integers(-1000, 300, grid.shape, np.int16), grid))


def same(found: Volume, path) -> None:
    expected = read_volume(path)
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.grid.affine, expected.grid.affine, atol=1e-4)


def test_every_library_gives_the_volume_of_the_file(path):
    image = nib.load(path)
    same(as_volume(image), path)
    same(as_volume(sitk.ReadImage(str(path))), path)
    for channel in (True, False):
        loaded = LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=channel)(path)
        same(as_volume(loaded), path)
    same(as_volume((np.asarray(image.dataobj), image.affine)), path)
    same(as_volume((torch.from_numpy(np.asarray(image.dataobj)), torch.from_numpy(image.affine))), path)
    same(read_exam(image), path)
    assert as_volume(image).name == str(path) == as_volume(loaded).name


def test_trailing_axes_units_scaling_and_spaces(path):
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    same(as_volume(nib.Nifti1Image(data[..., None], image.affine)), path)
    metres = nib.Nifti1Image(data, np.diag([1e-3, 1e-3, 1e-3, 1]) @ image.affine)
    metres.header.set_xyzt_units("meter")
    same(as_volume(metres), path)
    lps = MetaTensor(torch.from_numpy(data), np.diag([-1.0, -1, 1, 1]) @ image.affine, {"space": "LPS"})
    same(as_volume(lps), path)
    scaled = nib.Nifti1Image(data, image.affine)
    scaled.header.set_slope_inter(2.0, -1024)
    nib.save(scaled, path)
    np.testing.assert_allclose(as_volume(nib.load(path)).array, 2.0 * data.T - 1024)
    itk = sitk.GetImageFromArray(data.T[None], isVector=False)
    assert as_volume(itk).array.shape == data.T.shape


@pytest.mark.parametrize("dtype", ["u1", ">i2", "<f8", "i8", "f2"])
def test_voxels_keep_their_values_and_the_source_stays(dtype):
    array = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    array.setflags(write=False)
    found = as_volume((array, np.eye(4)))
    np.testing.assert_array_equal(found.array, array.T)
    assert found.array.dtype.isnative
    torch.from_numpy(np.ascontiguousarray(found.array))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 4, 5)), "no position in space"),
        (torch.zeros(3, 4, 5), "no position in space"),
        (None, "got NoneType"),
        (7, "got int"),
        ({"image": 1}, "got dict"),
        ((np.zeros((3, 4)), np.eye(4)), r"shape \(3, 4\)"),
        ((np.zeros((3, 4, 5, 2)), np.eye(4)), r"shape \(3, 4, 5, 2\)"),
        ((np.zeros((3, 4, 5)), np.eye(3)), r"affine has shape \(3, 3\)"),
        ((np.zeros((3, 4, 5)), np.zeros((4, 4))), "affine"),
        ((np.zeros((3, 4, 5)), np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])), "right angles"),
        ((np.zeros((3, 4, 5), complex), np.eye(4)), "complex"),
        ((np.full((3, 4, 5), "a"), np.eye(4)), "type <U1"),
        (sitk.Image([3, 4, 5], sitk.sitkVectorFloat32, 2), "2 values a voxel"),
        (sitk.Image([3, 4], sitk.sitkInt16), "shape"),
        (nib.Nifti1Image(np.zeros((3, 4, 5, 2)), np.eye(4)), "shape"),
        (nib.Nifti1Image(np.zeros((3, 4, 5)), None), "no affine"),
    ],
)  # fmt: skip
def test_what_is_no_exam_gives_one_line(image, words):
    with pytest.raises(DeepAtlasError, match=words) as error:
        as_volume(image)
    one_line(error.value)


def test_a_nifti_without_an_orientation_is_what_its_file_is(tmp_path):
    bare = nib.Nifti1Image(np.random.default_rng(0).integers(-1000, 300, (7, 9, 11), np.int16), None)
    bare.header.set_zooms((0.8, 0.9, 2.5))
    nib.save(bare, tmp_path / "ct.nii.gz")
    with pytest.warns(DataWarning, match="no orientation"):
        expected = read_volume(tmp_path / "ct.nii.gz")
    with pytest.warns(DataWarning, match="no orientation"):
        found = as_volume(nib.load(tmp_path / "ct.nii.gz"))
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.grid.affine, expected.grid.affine, atol=1e-6)
