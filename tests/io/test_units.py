"""Units of length other than millimetres in the headers of images."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from small_exams import oblique, one_line

from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.in_memory import as_volume
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import read_grid, write_volume
from deepatlas.io.glance import glance
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

CT = np.random.default_rng(3).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
# The code of the unit in a NIfTI, which ITK and nibabel both know.
NIFTI = {"micron": 1e3, "meter": 1e-3}


def in_unit(path, per_mm: float, old: bytes, new: bytes):
    """A volume whose numbers are ``per_mm`` in a millimetre, with a line more in its header."""
    affine = oblique(np.random.default_rng(3), shape=CT.shape).affine.copy()
    affine[:3] *= per_mm
    write_volume(path, Volume(CT, Grid(CT.shape, affine)))
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new + b"\n" + old))
    return path


@pytest.mark.parametrize(
    ("name", "unit", "line"),
    [
        ("a.nrrd", "micron", b'space units: "um" "um" "um"'),
        ("b.nrrd", "micron", 'space units: "µm" "micrometers" "microns"'.encode()),
        ("c.nrrd", "micron", 'space units: "µm" "µm" "µm"'.encode("latin-1")),
        ("d.nrrd", "meter", b'space units: "m" "Metre" "meters"'),
        ("e.mha", "micron", b"DistanceUnits = um"),
        ("f.mha", "micron", b"DistanceUnits = UM"),
    ],
)
def test_an_image_in_another_unit_is_where_its_nifti_is(tmp_path, name, unit, line):
    old = b"endian:" if name.endswith(".nrrd") else b"ElementSpacing"
    path = in_unit(tmp_path / name, NIFTI[unit], old, line)
    affine = oblique(np.random.default_rng(3), shape=CT.shape).affine.copy()
    affine[:3] *= NIFTI[unit]
    nifti = nib.Nifti1Image(CT.T, affine)
    nifti.header.set_xyzt_units(unit)
    nib.save(nifti, tmp_path / "a.nii")
    with pytest.warns(DataWarning, match="which is unusual"):
        expected = read_volume(tmp_path / "a.nii")
    with pytest.warns(DataWarning, match="gives lengths in .*, which is unusual"):
        found = read_volume(path)
    np.testing.assert_allclose(found.grid.affine, expected.grid.affine, atol=1e-3)
    np.testing.assert_allclose(read_grid(path).affine, expected.grid.affine, atol=1e-3)
    held = glance(path).grid
    assert held is not None and held.spacing == pytest.approx(expected.grid.spacing, rel=1e-4)


def test_units_beside_spacings_count(tmp_path):
    """An NRRD without a space gives the unit of every axis."""
    image = sitk.GetImageFromArray(CT)
    image.SetSpacing((0.1, 0.2, 0.3))
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image, str(path))
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    kept = [line for line in head.split(b"\n") if not line.startswith(b"space")]
    kept += [b"spacings: 0.1 0.2 0.3", b'units: "cm" "cm" "cm"']
    path.write_bytes(b"\n".join(kept) + b"\n\n" + voxels)
    with pytest.warns(DataWarning) as told:
        assert read_volume(path).grid.spacing == pytest.approx((1, 2, 3))
    assert any("lengths in cm" in str(w.message) for w in told)


@pytest.mark.parametrize("line", [b'space units: "mm" "millimeter" "MM"', b'space units: "" "" ""'])
def test_millimetres_and_no_unit_need_no_word(tmp_path, line, recwarn):
    path = in_unit(tmp_path / "a.nrrd", 1.0, b"endian:", line)
    expected = oblique(np.random.default_rng(3), shape=CT.shape).spacing
    assert read_volume(path).grid.spacing == pytest.approx(expected, rel=1e-4)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("a.nrrd", b'space units: "mm" "mm" "cm"', "'cm', 'mm' .space units."),
        ("b.nrrd", b'space units: "furlong" "furlong" "furlong"', "'furlong'"),
        ("c.nrrd", b'space units: "Mm" "Mm" "Mm"', "'Mm'"),
        ("d.mha", b"DistanceUnits = parsec", "'parsec' .DistanceUnits."),
    ],
)
def test_what_is_no_length_is_refused(tmp_path, name, line, words):
    old = b"endian:" if name.endswith(".nrrd") else b"ElementSpacing"
    path = in_unit(tmp_path / name, 1.0, old, line)
    for read in (read_volume, read_grid):
        with pytest.raises(DataError, match=words) as error:
            read(path)
        assert str(path) in one_line(error.value)


def test_an_image_of_simpleitk_in_another_unit_is_refused(tmp_path):
    path = in_unit(tmp_path / "a.mha", 1e3, b"ElementSpacing", b"DistanceUnits = um")
    image = sitk.ReadImage(str(path))
    with pytest.raises(DataError, match="ITK_VoxelUnits") as error:
        as_volume(image)
    one_line(error.value)
    image.EraseMetaData("ITK_VoxelUnits")
    as_volume(image)
