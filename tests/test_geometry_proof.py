"""Proofs that positions are preserved from the source to the 64³ model space and back, on any grid.

The oracles are SimpleITK and nibabel.
"""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from affine_model import LABELS, AffineModel, exam
from geometry_oracle import (
    LPS,
    examples,
    found_index,
    grids,
    in_air,
    index_arrays,
    inner_point,
    itk_image,
    straight_for_the_crop,
    unit,
)
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.errors import DataError
from deepatlas.exams.build_store import prepare_exam
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.build import build_template
from deepatlas.space import grid as grid_module
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import labels_to_grid, to_model_grid
from deepatlas.space.volume import Volume

# In voxels of the source.
TOLERANCE = 0.01
where = st.tuples(unit(), unit(), unit())
SUFFIXES = st.sampled_from([".nii.gz", ".nii", ".nrrd", ".mha"])


# -- points -----------------------------------------------------------------------------------------


def written(folder, grid: Grid, suffix: str, crop) -> tuple[list[Volume], sitk.Image, str]:
    """Ramps that SimpleITK has written, as the package reads them; the image and the path of one of them."""
    # Each suffix has its own folder, because ITK confuses x.nii with x.nii.gz.
    ramps, folder = [], folder / suffix.strip(".")
    folder.mkdir(exist_ok=True)
    for axis, array in enumerate(index_arrays(grid.shape)):
        path = str(folder / f"{axis}{suffix}")
        sitk.WriteImage(itk_image(in_air(array) if crop else array, grid), path)
        ramps.append(read_volume(path, notes=[]))
    return ramps, sitk.ReadImage(path), path


@pytest.mark.slow(1)
@pytest.mark.parametrize("crop", [None, "foreground", "midline"])
@examples(12)
@given(grid=grids(), where=where, suffix=SUFFIXES)
def test_a_marked_point_comes_back(tmp_path, crop, grid, where, suffix):
    """From a file of SimpleITK through reading, cropping, resizing and pooling; SimpleITK gives the true position."""
    ramps, image, path = written(tmp_path, grid, suffix, crop)
    point = inner_point(grid, where)
    expected = np.array(image.TransformPhysicalPointToContinuousIndex((LPS * point).tolist()))
    assert np.abs(found_index(ramps, point, crop=crop) - expected).max() < TOLERANCE
    if suffix.startswith(".nii"):
        affine = np.linalg.inv(nib.load(path).affine)
        np.testing.assert_allclose(nib.affines.apply_affine(affine, point), expected, atol=TOLERANCE)


@examples(25)
@given(grid=grids(1, 6), where=where, size=st.sampled_from([16, 32, 64, 128]))
def test_axes_of_one_to_six_voxels(grid, where, size):
    """Not from files, because fewer than four voxels are refused there; an axis of one voxel has coordinate 0."""
    point = inner_point(grid, where)
    expected = nib.affines.apply_affine(np.linalg.inv(grid.affine), point)
    for axis, n in enumerate(grid.shape[::-1]):
        # An axis of one voxel has no other position than index 0.
        if n == 1:
            assert expected[axis] == pytest.approx(0, abs=1e-6)
    ramps = [Volume(array, grid) for array in index_arrays(grid.shape)]
    assert np.abs(found_index(ramps, point, size) - expected).max() < TOLERANCE


@pytest.mark.slow(1)
@pytest.mark.parametrize("crop", [None, "foreground", "midline"])
@examples(4)
@given(
    grid=grids(20, 80, spacing=(1.0, 1.2)),
    factors=st.permutations([1.0, 8.0, 0.12]),
    where=where,
)
def test_extreme_anisotropy(tmp_path, crop, grid, factors, where):
    """Voxels of 0.12 x 1 x 8 mm."""
    affine = grid.affine.copy()
    affine[:3, :3] *= factors
    grid = Grid(grid.shape, affine)
    ramps, image, _ = written(tmp_path, grid, ".nrrd", crop)
    point = inner_point(grid, where)
    expected = np.array(image.TransformPhysicalPointToContinuousIndex((LPS * point).tolist()))
    assert np.abs(found_index(ramps, point, crop=crop) - expected).max() < TOLERANCE


def without_the_shift(self, kernel):
    """A wrong average pooling: voxels twice as large, with the corner at its old position."""
    from_new = np.diag([kernel, kernel, kernel, 1.0])
    return Grid(tuple(n // kernel for n in self.shape), self.affine @ from_new)


def with_corners_kept(self, kernel):
    """Another wrong average pooling: the grid of a corner-aligned resize."""
    return self.resized(tuple(n // kernel for n in self.shape))


@pytest.mark.parametrize(("mistake", "least"), [(without_the_shift, 0.15), (with_corners_kept, 0.03)])
def test_the_proof_fails_without_the_shift_of_the_pooling(tmp_path, monkeypatch, mistake, least):
    """The shift is half a voxel of the 128³ grid, a quarter of a voxel of this source, and far above the tolerance."""
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.3, -0.4, 0.9]).as_matrix() * [2.0, -1.5, 3.0]
    grid = Grid((64, 60, 66), affine)
    ramps, image, _ = written(tmp_path, grid, ".nii.gz", None)
    for _ in range(3):
        point = inner_point(grid, rng.choice([0.0, 1.0], 3))
        expected = np.array(image.TransformPhysicalPointToContinuousIndex((LPS * point).tolist()))
        assert np.abs(found_index(ramps, point) - expected).max() < TOLERANCE
        with monkeypatch.context() as patch:
            patch.setattr(grid_module.Grid, "pooled", mistake)
            apart = np.abs(found_index(ramps, point) - expected)
        # The grid is turned, so that the shift may be small along one of its axes.
        assert apart.max() > least, apart


def blob(shape, centre, sigma) -> np.ndarray:
    """A Gaussian of 1000 HU; its centre (x, y, z) and its widths are in voxels."""
    parts = [(a - c) / s for a, c, s in zip(index_arrays(shape), centre, sigma, strict=True)]
    return 1000 * np.exp(-sum(p**2 for p in parts) / 2)


def centre_of_mass(array: np.ndarray) -> np.ndarray:
    """The centre of mass of the values, in voxels (x, y, z)."""
    total = array.sum(dtype=np.float64)
    return np.array([(a.astype(np.float64) * array).sum() / total for a in index_arrays(array.shape)])


@pytest.mark.parametrize("crop", [None, "foreground", "midline"])
@examples(6)
@given(grid=grids(40, 90, spacing=(0.5, 2.4)), where=where, suffix=SUFFIXES)
def test_a_marked_blob_comes_back(tmp_path, crop, grid, where, suffix):
    """A bright blob around a world point: its centre of mass in the model space is that point, measured in voxels of
    the source by SimpleITK."""
    straight_for_the_crop(grid, crop)
    point = inner_point(grid, 0.3 + 0.4 * np.array(where))
    image = itk_image(np.zeros(grid.shape, np.uint8), grid)
    centre = np.array(image.TransformPhysicalPointToContinuousIndex((LPS * point).tolist()))
    # With 37 HU, no mixture of body and air gives exactly the threshold of the crop.
    body = in_air(np.full(grid.shape, 37, np.float32))
    mark = blob(grid.shape, centre, np.array(grid.shape[::-1]) / 16)
    mark[mark < 0.1] = 0
    model = []
    for name, array in (("without", body), ("with", body + mark)):
        path = tmp_path / f"{name}{suffix}"
        sitk.WriteImage(itk_image(array.astype(np.float32), grid), str(path))
        model.append(to_model_grid(read_volume(path, notes=[]), 64, crop))
    # The mark does not change the crop.
    assert model[0].grid == model[1].grid
    mass = model[1].grid.voxel_to_world(centre_of_mass(model[1].array.astype(np.float64) - model[0].array))
    back = np.array(image.TransformPhysicalPointToContinuousIndex((LPS * mass).tolist()))
    assert np.abs(back - centre).max() < TOLERANCE


@examples(15)
@given(grid=grids(5, 9), row=st.integers(0, 2), shear=unit(0.05, 0.7), suffix=SUFFIXES)
def test_sheared_grids_are_refused(tmp_path, grid, row, shear, suffix):
    affine = grid.affine.copy()
    affine[:3, row] += shear * affine[:3, (row + 1) % 3] / grid.spacing[(row + 1) % 3] * grid.spacing[row]
    with pytest.raises(DataError, match="right angles"):
        Grid(grid.shape, affine)
    array = index_arrays(grid.shape)[0]
    path = tmp_path / f"sheared{suffix}"
    if suffix.startswith(".nii"):
        nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    else:
        image = itk_image(array, grid)
        directions = np.diag(LPS) @ affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        image.SetDirection(directions.ravel().tolist())
        sitk.WriteImage(image, str(path))
    with pytest.raises(DataError, match="right angles") as error:
        read_volume(path, notes=[])
    assert "\n" not in str(error.value) and str(path) in str(error.value)


# -- masks ------------------------------------------------------------------------------------------


def centroids(labels: sitk.Image) -> dict[int, np.ndarray]:
    """The centre of mass of every label in RAS mm, by SimpleITK."""
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(labels)
    return {label: LPS * statistics.GetCentroid(label) for label in statistics.GetLabels()}


def coarse_voxels(grid: Grid, a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(grid.world_to_voxel(a) - grid.world_to_voxel(b)).max())


def furthest(coarse: Grid, native: Grid, mask: np.ndarray) -> np.ndarray:
    """How far the centre of a mask may be from its place when it comes back from 64³: (x, y, z) in voxels of 64³.

    Each voxel of the source takes the nearest voxel of 64³, which is up to half of its own size away: 0.5, and a
    little for what is not a multiple of a voxel. Those half voxels cancel, unless the voxels of both grids have nearly
    the same size along an axis. Then they keep step over a whole structure, and every voxel may take the one of 64³
    that lies between it and the next. That one is tied between both, so that each of the two ends of the structure, in
    every column along the axis, moves by a voxel of the source or stays: by half of one on average, with the standard
    deviation of a toss for each end. Three of these are allowed.
    """
    allowed = np.full(3, 0.55)
    steps = np.abs(np.linalg.inv(coarse.affine[:3, :3]) @ native.affine[:3, :3])
    for axis in range(3):
        to = int(steps[:, axis].argmax())
        step = steps[to, axis]
        if 0.9 < step < 1.1:
            ends = 2 * int(mask.any(axis=2 - axis).sum())
            allowed[to] = max(allowed[to], step * (0.5 + 3 * 0.5 / np.sqrt(ends)))
    return allowed


@pytest.mark.parametrize("crop", [None, "foreground", "midline"])
@examples(6)
@given(grid=grids(24, 80, spacing=(0.6, 3.0)), shifts=st.tuples(where, where))
# With the crop at the midline, a voxel of 64³ is 0.785 mm wide along y, and lies between two of the source.
@example(
    grid=Grid((24, 75, 24), np.diag([1.0, 0.77880078, 1.0, 1.0])), shifts=((0.0, 0.0, 0.0), (0.0, 1.0, 0.0))
)
def test_masks_go_to_the_model_space_and_back(tmp_path, crop, grid, shifts):
    """A label image of SimpleITK is prepared at 64³ and 128³, and resampled from there to the native grid again."""
    straight_for_the_crop(grid, crop)
    last = np.array(grid.shape[::-1]) - 1
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for label, (shift, middle) in enumerate(zip(shifts, (0.4, 0.6), strict=True), 1):
        centre = last * (np.array([middle, middle, middle]) + 0.06 * (np.array(shift) - 0.5))
        radii = last * 0.12
        r = sum(((a - c) / q) ** 2 for a, c, q in zip(index_arrays(grid.shape), centre, radii, strict=True))
        labels[r < 1] = label
    seg = itk_image(labels, grid)
    sitk.WriteImage(
        itk_image(in_air(50.0 + 100 * labels.astype(np.float32)), grid), str(tmp_path / "ct.nrrd")
    )
    sitk.WriteImage(seg, str(tmp_path / "seg.nrrd"))
    files = ExamFiles("e", tmp_path / "ct.nrrd", tmp_path / "seg.nrrd")
    prepared = prepare_exam(files, {"one": 1, "two": 2}, crop)
    expected = centroids(seg)
    assert set(expected) == {1, 2} and prepared.has_label == [True, True]
    fine, coarse = prepared.fine_grid, prepared.fine_grid.pooled(2)
    for array, model in ((prepared.labels_fine, fine), (prepared.labels, coarse)):
        found = centroids(itk_image(array, model))
        native = labels_to_grid(Volume(array, model), prepared.native_grid)
        returned = centroids(itk_image(native.array, prepared.native_grid))
        assert native.grid.shape == grid.shape
        for label, place in expected.items():
            assert coarse_voxels(coarse, found[label], place) < 0.35
            if model is fine:
                assert coarse_voxels(coarse, returned[label], place) < 0.1
            else:
                apart = np.abs(coarse.world_to_voxel(returned[label]) - coarse.world_to_voxel(place))
                assert (apart < furthest(coarse, prepared.native_grid, labels == label)).all()


# -- points and masks through the commands ----------------------------------------------------------


@st.composite
def over_the_anatomy(draw) -> Grid:
    """A random grid that contains the anatomy of affine_model.py: at least 140 mm along every axis."""
    spacing = np.array([draw(unit(1.6, 4.0)), draw(unit(1.6, 4.0)), draw(unit(1.6, 6.0))])
    turn = Rotation.from_rotvec([draw(unit(-3.1, 3.1)) for _ in range(3)]).as_matrix()
    columns = turn * draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3)) * spacing
    shape = np.ceil(2 * 75 / spacing).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = [draw(unit(-3, 3)) for _ in range(3)] - columns @ ((shape - 1) / 2)
    return Grid(tuple(shape[::-1].tolist()), affine)


@pytest.fixture
def known_model(monkeypatch):
    monkeypatch.setattr(Model, "load", lambda *_, **__: AffineModel(64))


@pytest.mark.slow(1)
@examples(3)
@given(pair=st.tuples(over_the_anatomy(), over_the_anatomy()), places=st.tuples(where, where, where))
def test_located_points_and_segmentations_are_at_the_anatomy(tmp_path, known_model, pair, places):
    """``deepatlas locate`` and ``deepatlas segment`` between two random grids; SimpleITK reads their output."""
    for name, grid in zip(("a", "b"), pair, strict=True):
        ct, seg = exam(grid, name)
        write_volume(tmp_path / name / "ct.nii.gz", ct)
        write_volume(tmp_path / name / "seg.nii.gz", seg)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    # Inside the body of the anatomy.
    points = (np.array(places) - 0.5) * [60, 50, 64]
    lines = [f"p{i},{x:.6f},{y:.6f},{z:.6f}" for i, (x, y, z) in enumerate(points)]
    (tmp_path / "points.csv").write_text("\n".join(["name,x,y,z", *lines]))
    out = tmp_path / "located.csv"
    arguments = ["--from", tmp_path / "a", "--to", tmp_path / "b", "--points", tmp_path / "points.csv"]
    arguments = [str(a) for a in ("locate", "--model", "affine", *arguments, "--out", out, "--quiet")]
    assert cli.main(arguments) == 0
    image = sitk.ReadImage(str(tmp_path / "b" / "ct.nii.gz"))
    for row, point in zip(csv.DictReader(out.open()), points, strict=True):
        found = np.array([float(row[c]) for c in "xyz"])
        index = [image.TransformPhysicalPointToContinuousIndex((LPS * p).tolist()) for p in (found, point)]
        assert row["found"] == "true" and np.abs(np.subtract(*index)).max() < TOLERANCE

    build_template(AffineModel(64), tmp_path, ["a"], size=64).save(tmp_path / "t.h5")
    arguments = ["--template", tmp_path / "t.h5", tmp_path / "b", "--out", tmp_path / "seg", "--quiet"]
    assert cli.main([str(a) for a in ("segment", "--model", "affine", *arguments)]) == 0
    truth = centroids(sitk.ReadImage(str(tmp_path / "b" / "seg.nii.gz"), sitk.sitkUInt8))
    got = centroids(sitk.ReadImage(str(tmp_path / "seg" / "b.nii.gz"), sitk.sitkUInt8))
    model = to_model_grid(read_volume(tmp_path / "b" / "ct.nii.gz"), 64).grid
    assert set(got) == set(truth) == set(LABELS.values())
    for label, place in truth.items():
        assert coarse_voxels(model, got[label], place) < 0.35


def test_the_affine_model_gives_float32_coordinates():
    """The points above are computed from float32 coordinates, whose steps are far below the tolerance."""
    found = AffineModel(64).map_exam(exam(Grid.from_spacing((20,) * 3, 7, (-66,) * 3))[0])
    coords, grid = found.coords, found.grid
    assert coords.dtype == torch.float32 and np.spacing(np.float32(1)) * 80 / min(grid.spacing) < 1e-3
