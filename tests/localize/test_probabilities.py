"""Masks of probabilities on the exam's own grid: SimpleITK is the oracle of the interpolation."""

import numpy as np
import pytest
import SimpleITK
import torch
from affine_model import GRIDS
from small_exams import one_line

from deepatlas.errors import DataWarning, DeepAtlasError
from deepatlas.localize.probabilities import label_probabilities
from deepatlas.model.structures import Structures

TWO = Structures(("a", "b"), (3, 700), (0.2, 0.1))


def smooth(seed=0, count=2, size=12):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, count, 4, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(noise, size=(size,) * 3, mode="trilinear")[0]


def by_itk(volume, grid, native):
    """Linear interpolation of a volume on the points of another grid, constant beyond the outermost centres."""

    def image(array, of):
        out = SimpleITK.GetImageFromArray(array)
        lps = np.diag([-1, -1, 1]) @ of.affine[:3]
        out.SetSpacing(np.linalg.norm(lps[:, :3], axis=0).tolist())
        out.SetDirection((lps[:, :3] / np.linalg.norm(lps[:, :3], axis=0)).ravel().tolist())
        out.SetOrigin(lps[:, 3].tolist())
        return out

    target = image(np.zeros(native.shape, np.float32), native)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetReferenceImage(target)
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampler.SetOutputPixelType(SimpleITK.sitkFloat32)
    return SimpleITK.GetArrayFromImage(resampler.Execute(image(volume.numpy(), grid)))


@pytest.mark.parametrize("name", ["oblique", "flipped", "sagittal"])
def test_the_most_probable_structure_on_the_grid_of_the_exam(name):
    native = GRIDS[name]
    model_grid = GRIDS["plain"].resized(24).pooled(2)
    found = smooth()
    labels = label_probabilities(found, model_grid, native, TWO)
    a, b = (by_itk(volume, model_grid, native) for volume in found)
    expected = np.where(np.maximum(a, b) < 0.5, 0, np.where(a >= b, 3, 700))
    # Half a voxel beyond the outermost centres there is nothing, and ITK ends there too, up to rounding.
    from deepatlas.space.inside import inside

    kept = inside(model_grid, native)
    assert (labels.array[~kept] == 0).all() and labels.array.dtype == np.uint16
    assert (labels.array[kept] == expected[kept]).mean() > 0.995 and not labels.hidden


def test_a_threshold_that_empties_a_mask_is_told():
    grid = GRIDS["coarse"].resized(12)
    found = torch.stack([torch.full((12, 12, 12), 0.9), torch.full((12, 12, 12), 0.3)])
    # The second is not found by itself either.
    with pytest.warns(DataWarning, match="ct: a is left without a voxel by the threshold 0.95"):
        labels = label_probabilities(found, grid, grid, TWO, 0.95, name="ct")
    assert not labels.array.any()


def test_structures_that_overlap_keep_their_whole_masks():
    grid = GRIDS["coarse"].resized(12)
    found = torch.zeros(3, 12, 12, 12)
    found[0, 2:10, 2:10, 2:10], found[1, 4:7, 4:7, 4:7], found[2, 4:7, 4:7, 4:7] = 0.8, 0.6, 0.7
    organs = Structures(("organ", "tumour", "rival"), (1, 2, 3), (0.3, 0.1, 0.1), (("organ", "tumour"),))
    labels = label_probabilities(found[:2], grid, grid, organs.select(["organ", "tumour"]))
    assert (labels.mask(1) == (found[0] > 0.5).numpy()).all()
    assert (labels.mask(2) == (found[1] > 0.5).numpy()).all() and labels.array[5, 5, 5] == 2
    # One that does not overlap competes, and is not as probable as the organ.
    labels = label_probabilities(found, grid, grid, organs)
    assert not labels.mask(3).any() and labels.array[5, 5, 5] == 1
    # A single structure of the three, by its channel.
    only = label_probabilities(found, grid, grid, organs.select(["rival"]))
    assert (only.mask(3) == (found[2] > 0.5).numpy()).all() and only.ids() == {3}


def test_threshold_and_body():
    grid = GRIDS["coarse"].resized(12)
    found, body = torch.full((2, 12, 12, 12), 0.4), np.zeros((12, 12, 12), dtype=bool)
    body[:4] = True
    assert not label_probabilities(found, grid, grid, TWO).array.any()
    inside = label_probabilities(found, grid, grid, TWO, 0.3, body).array
    assert inside[:4].all() and not inside[4:].any()
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(DeepAtlasError) as error:
            label_probabilities(found, grid, grid, TWO, wrong)
        assert "threshold must be in (0, 1]" in one_line(error.value)
