"""Half patients, cut from whole ones; the whole ones say nothing."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from real_exams import real
from scipy.spatial.transform import Rotation
from test_hounsfield import patient

from deepatlas.exams.read import read_volume
from deepatlas.space.grid import Grid
from deepatlas.space.halved import halved
from deepatlas.space.volume import Volume

HALVES = {"left": (2, slice(32, None)), "right": (2, slice(None, 32)), "back": (1, slice(30, None))}
HALVES["front"] = (1, slice(None, 30))


@pytest.fixture
def whole() -> Volume:
    # Lungs would be open towards the cut.
    array = patient(lungs=False)
    return Volume(array, Grid.from_spacing(array.shape, (4, 4, 5)))


def test_a_whole_patient_gives_no_line(whole):
    assert halved(whole) == []
    # Nor do a field of view that is too narrow on both sides, a scan of a few slices, and an image of air.
    assert halved(whole.cropped((0, 0, 14), (40, 60, 36))) == []
    assert halved(whole.cropped((0, 0, 0), (2, 60, 64))) == []
    assert halved(Volume(np.full((4, 5, 6), -1000.0), Grid.from_spacing((4, 5, 6)))) == []


@pytest.mark.parametrize("side", HALVES)
@pytest.mark.parametrize("how", ["cropped", "blanked"])
def test_half_a_patient_names_the_side_where_it_ends(whole, side, how):
    axis, kept = HALVES[side]
    box = tuple(kept if a == axis else slice(None) for a in range(3))
    if how == "cropped":
        start = [kept.start or 0 if a == axis else 0 for a in range(3)]
        half = whole.cropped(start, whole.array[box].shape)
    else:
        array = np.full_like(whole.array, -1024)
        array[box] = whole.array[box]
        half = Volume(array, whole.grid)
    (line,) = halved(half)
    assert f"on the {side} " in line


@pytest.mark.parametrize("axes", ["RAS", "LPS", "IRP", "SAL", "ARI"])
def test_sides_are_those_of_the_patient_on_any_grid(whole, axes):
    """The left half with axes that are permuted and flipped by nibabel, on a grid that is turned by six degrees."""
    left = np.where(np.arange(64) < 32, whole.array, -1024)
    image = nib.Nifti1Image(left.transpose(2, 1, 0).astype(np.float32), whole.grid.affine)
    wanted = nib.orientations.axcodes2ornt(axes)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("zx", [6, 3], degrees=True).as_matrix()
    array = np.asarray(image.dataobj).transpose(2, 1, 0)
    (line,) = halved(Volume(array, Grid(array.shape, turn @ image.affine)))
    assert "on the right " in line


@pytest.mark.parametrize(
    "exam", ["trunk/neck_TCGA-E3-A3E5", "trunk/thorax_CIP-ct64", "openkbp/validation/pt_207"]
)
def test_real_exams_and_their_halves(exam):
    ct = read_volume(real(exam) / "ct.nii.gz").canonical()
    assert halved(ct) == []
    depth, height, width = ct.grid.shape
    (line,) = halved(ct.cropped((0, 0, 0), (depth, height, width // 2)))
    assert "on the right " in line
