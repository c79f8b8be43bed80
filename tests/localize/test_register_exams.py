"""Exams that are aligned through coordinates, against maps that are known, SimpleITK and nibabel."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from affine_model import ANATOMY, GRIDS, LABELS, SCALE, AffineModel, exam, grid_of
from scipy.spatial.transform import Rotation

from deepatlas.cli import main as cli
from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.localize import register as register_module
from deepatlas.localize.register import Registration, register, register_known
from deepatlas.localize.register_files import write_registration
from deepatlas.model.field import CoordinateField, Piece, rim
from deepatlas.model.known import known_exam
from deepatlas.space.constants import AIR
from deepatlas.space.fill_in import fill_in
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.transform import Transform, within_faces
from deepatlas.space.volume import Volume

LPS = np.array([-1.0, -1.0, 1.0])
CENTRES = np.array([centre for _, centre, _ in ANATOMY.values()])
RIGID = np.eye(4)
RIGID[:3, :3], RIGID[:3, 3] = Rotation.from_euler("xyz", (9, -7, 12), degrees=True).as_matrix(), (5, -4, 6)
STRETCHED = np.array([[0.9, 0.15, 0, 4], [-0.1, 1.1, 0.05, -3], [0, -0.1, 1.05, 5], [0, 0, 0, 1]])


def bent(place: np.ndarray) -> np.ndarray:
    """A smooth and invertible map of places in mm that is far from linear."""
    x, y, z = np.moveaxis(place, -1, 0)
    return np.stack([x + 6 * np.sin(y / 21), y + 5 * np.sin(z / 24 + 1), z + 6 * np.sin(x / 23)], axis=-1)


def bent_jacobian(place: np.ndarray) -> np.ndarray:
    """The determinant of :func:`bent`."""
    x, y, z = np.moveaxis(place, -1, 0)
    a, b, c = 6 / 21 * np.cos(y / 21), 5 / 24 * np.cos(z / 24 + 1), 6 / 23 * np.cos(x / 23)
    return 1 + a * b * c


def by(matrix: np.ndarray):
    return lambda place: place @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.fixture(scope="module")
def pair():
    """A, and B of the same anatomy bent, on an oblique grid; the labels of both; and their registration."""
    (a, seg_a), (b, seg_b) = exam(GRIDS["plain"], "a"), exam(GRIDS["oblique"], "b", bent)
    found = register(AffineModel(64, maps={"b": bent}), a, b)
    return a, seg_a, b, seg_b, found


@pytest.mark.slow(1)
def test_a_deformation_carries_every_place_to_its_own_in_both_directions(pair):
    a, seg_a, b, seg_b, found = pair
    assert isinstance(found, Registration) and found.kind == "deformable"
    there = found.on_fixed.transform.apply(CENTRES)
    assert np.linalg.norm(bent(there) - CENTRES, axis=1).max() < 0.2
    back = found.on_moving.transform.apply(there)
    assert np.linalg.norm(back - CENTRES, axis=1).max() < 0.2
    assert found.cycle_mm < 0.1 and found.on_fixed.residual_mm < 0.1
    pulled = found.on_fixed.transform.pull(Labels.of(seg_b), a.grid)
    assert min(dice(seg_a.array == i, pulled.array == i) for i in LABELS.values()) > 0.93
    pulled = found.on_moving.transform.pull(Labels.of(seg_a), b.grid)
    assert min(dice(seg_b.array == i, pulled.array == i) for i in LABELS.values()) > 0.93


def test_the_moved_exam_is_the_fixed_one_where_both_show_the_body(pair):
    a, _, _, _, found = pair
    moved = found.on_fixed
    assert moved.volume.grid == a.grid and moved.share > 0.98
    # Borders of structures are between the two values of their sides.
    off = np.abs(moved.volume.array - a.array)[moved.overlap]
    assert np.median(off) < 0.5 and np.mean(off > 30) < 0.06
    assert (moved.volume.array[~moved.overlap] == AIR).all() and moved.fill == AIR


def test_the_map_of_determinants_is_the_true_one_and_nothing_folds(pair):
    a, seg_a, _, _, found = pair
    moved = found.on_fixed
    assert moved.folded == 0 and moved.folds == 0
    grid = moved.jacobian.grid
    inside = [tuple(np.rint(grid.world_to_voxel(c)).astype(int)[::-1]) for c in CENTRES]
    got = np.array([moved.jacobian.array[i] for i in inside])
    places = moved.transform.apply(grid.voxel_to_world(np.array(inside)[:, ::-1]))
    np.testing.assert_allclose(got, 1 / bent_jacobian(places), rtol=0.02)


def test_determinants_are_those_of_simpleitk(pair):
    transform = pair[-1].on_fixed.transform
    # The filter leaves the directions of the axes out, and this grid has those of the patient.
    field = sitk.GetImageFromArray(np.moveaxis(transform.residual, 0, -1), isVector=True)
    field.SetSpacing(transform.grid.spacing)
    want = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    want = want * np.linalg.det(transform.matrix[:3, :3])
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(transform.jacobian()[inner], want[inner], atol=1e-5)


@pytest.mark.parametrize("grid", ["sagittal", "anisotropic", "flipped"])
@pytest.mark.parametrize("kind", ["deformable", "linear", "rigid"])
def test_simpleitk_reads_the_transform_and_gives_the_same_exam(tmp_path, grid, kind):
    """Linear functions are interpolated without an error, so that a ramp shows where its values come from."""
    (a, _), (b, _) = exam(GRIDS[grid], "a"), exam(GRIDS["oblique"], "b", bent)
    ramp = Volume(b.grid.places()[..., 0].astype(np.float32) * 10, b.grid, "b")
    model = AffineModel(32, maps={"b": bent})
    found = register(model, a, b, kind)
    moved = found.on_fixed
    # What the exam shows is one thing, where its values come from another.
    ours = moved.transform.pull(ramp, a.grid)
    written = write_registration(tmp_path / "out", found)
    transform = sitk.ReadTransform(written["on_fixed/transform"])
    points = CENTRES + [1.5, -2.5, 3.5]
    theirs = np.array([transform.TransformPoint((p * LPS).tolist()) for p in points]) * LPS
    np.testing.assert_allclose(moved.transform.apply(points), theirs, atol=1e-4)
    moving = sitk.GetImageFromArray(ramp.array)
    moving.SetSpacing(b.grid.spacing)
    moving.SetOrigin((LPS * b.grid.affine[:3, 3]).tolist())
    moving.SetDirection((np.diag(LPS) @ b.grid.affine[:3, :3] / np.array(b.grid.spacing)).ravel().tolist())
    reference = sitk.ReadImage(written["on_fixed/moved"])
    want = sitk.GetArrayFromImage(sitk.Resample(moving, reference, transform, sitk.sitkLinear, float(AIR)))
    voxel = 10 * min(b.grid.spacing)
    assert moved.overlap.any()
    assert np.abs(ours.array - want)[moved.overlap].max() < 0.01 * voxel


def test_an_affine_and_a_rigid_map_are_found_exactly_by_their_kinds():
    for kind, matrix in (("linear", STRETCHED), ("rigid", RIGID)):
        to_anatomy = by(matrix)
        (a, _), (b, _) = exam(GRIDS["plain"], "a"), exam(GRIDS["anisotropic"], "b", to_anatomy)
        found = register(AffineModel(32, maps={"b": to_anatomy}), a, b, kind)
        np.testing.assert_allclose(found.on_fixed.transform.matrix, np.linalg.inv(matrix), atol=0.02)
        np.testing.assert_allclose(found.on_moving.transform.matrix, matrix, atol=0.02)
        assert found.on_fixed.transform.residual is None and found.cycle_mm < 1e-6
        assert found.on_fixed.jacobian.array[0, 0, 0] == pytest.approx(
            1 / np.linalg.det(matrix[:3, :3]), 1e-2
        )


@pytest.mark.slow(1)
def test_the_networks_of_regions_count():
    """The map of the whole exam knows nothing of a wave that the network of a region sees."""

    def wave(place):
        return place + 2.5 * np.sin(place / 7)

    ct, _ = exam(GRIDS["coarse"], "a")
    whole = known_exam(AffineModel(32), ct)
    part = Grid.from_spacing((40, 40, 40), 1.5, (-29.25,) * 3)
    coords = torch.from_numpy(np.moveaxis(wave(part.places()) / SCALE, -1, 0).copy()).float()[None]
    weight = rim((40, 40, 40), 6, coords)
    field = CoordinateField(whole.field.coords, whole.field.grid, (Piece("middle", coords, part, weight),))
    found = register_known(ct, ct, whole, replace(whole, field=field), "deformable")
    points = np.array([[0.0, 0.0, 0.0], [8.0, -6.0, 10.0], [-12.0, 9.0, -5.0]])
    assert np.linalg.norm(wave(found.on_fixed.transform.apply(points)) - points, axis=1).max() < 0.15
    assert np.linalg.norm(found.on_moving.transform.apply(points) - wave(points), axis=1).max() < 0.15
    # Away from the region nothing moves.
    np.testing.assert_allclose(
        found.on_fixed.transform.apply([[45.0, 0.0, 0.0]]), [[45.0, 0.0, 0.0]], atol=0.2
    )


def test_what_one_exam_does_not_show_is_outside_the_overlap():
    a, _ = exam(GRIDS["plain"], "a")
    lower = grid_of()
    # From -72 to -12 mm along z, which is less than half of the body.
    lower = lower.cropped((0, 0, 0), (31, *lower.shape[1:]))
    b, _ = exam(lower, "b")
    found = register(AffineModel(32), a, b)
    top = a.grid.places()[..., 2] > -9
    assert not found.on_fixed.overlap[top].any() and (found.on_fixed.volume.array[top] == AIR).all()
    assert 0.3 < found.on_fixed.share < 0.5 and found.on_moving.share > 0.98
    below = (a.grid.places()[..., 2] < -15) & (a.array > 0)
    assert found.on_fixed.overlap[below].mean() > 0.98


def test_a_map_that_leads_nowhere_in_the_other_exam_gives_nothing_of_it(monkeypatch):
    a, _ = exam(GRIDS["coarse"], "a")
    monkeypatch.setattr(
        register_module, "_usable", lambda matches, transform: np.zeros(matches.body.shape, bool)
    )
    found = register(AffineModel(32), a, a, "rigid").on_fixed
    assert found.share == 0 and not found.overlap.any() and (found.volume.array == AIR).all()


def test_a_small_overlap_is_told():
    lower = grid_of()
    # The feet of one exam, and the head of the other, which share a few slices.
    one, other = (lower.cropped((z, 0, 0), (38, *lower.shape[1:])) for z in (0, lower.shape[0] - 38))
    a, b = exam(one, "a")[0], exam(other, "b")[0]
    with pytest.warns(
        DataWarning, match="^a and b: at most [0-9]+% of either body was found in the other; look"
    ):
        found = register(AffineModel(32), a, b)
    assert 0 < max(found.on_fixed.share, found.on_moving.share) < 0.2


def test_exams_without_anatomy_in_common_are_refused():
    a, _ = exam(GRIDS["plain"], "a")
    away = AffineModel(32, maps={"b": lambda place: place + [500.0, 0.0, 0.0]})
    with pytest.raises(DataError, match="have no anatomy in common"):
        register(away, a, exam(GRIDS["plain"], "b")[0])
    with pytest.raises(DeepAtlasError, match="kind must be one of deformable, linear, rigid, got 'bspline'"):
        register(away, a, a, "bspline")


@pytest.mark.slow(1)
def test_the_command_writes_both_directions_and_what_nibabel_reads(tmp_path, monkeypatch, capsys):
    model = AffineModel(32, maps={str(tmp_path / "b.nii.gz"): bent})
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *args, **options: model)
    for name, grid, to_anatomy in (("a", GRIDS["flipped"], None), ("b", GRIDS["coarse"], bent)):
        ct, _ = exam(grid, name, to_anatomy)
        nib.save(nib.Nifti1Image(ct.array.T.astype(np.int16), grid.affine), tmp_path / f"{name}.nii.gz")
    argv = [
        "register",
        "--model",
        "m",
        "--fixed",
        str(tmp_path / "a.nii.gz"),
        "--moving",
        str(tmp_path / "b.nii.gz"),
    ]
    assert cli.main([*argv, "--out", str(tmp_path / "out"), "--displacements", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (
        about["kind"] == "deformable"
        and about["on_fixed"]["folded_voxels"] == 0
        and "known" in about["fixed"]
    )
    assert about == json.loads((tmp_path / "out" / "register.json").read_text())
    for side, grid in (("on_fixed", GRIDS["flipped"]), ("on_moving", GRIDS["coarse"])):
        folder = tmp_path / "out" / side
        for name in ("moved", "overlap"):
            image = nib.load(folder / f"{name}.nii.gz")
            assert image.shape == grid.shape[::-1]
            np.testing.assert_allclose(image.affine, grid.affine, atol=1e-4)
        vectors = nib.load(folder / "displacements.nii.gz")
        assert vectors.header.get_intent()[0] == "vector" and vectors.shape[3:] == (1, 3)
    # Another kind of alignment leaves nothing of the first that does not belong to it.
    assert cli.main([*argv, "--out", str(tmp_path / "out"), "--rigid", "--quiet"]) == 0
    capsys.readouterr()
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    kept = {
        f"{side}/{n}"
        for side in ("on_fixed", "on_moving")
        for n in ("moved.nii.gz", "overlap.nii.gz", "transform.h5")
    }
    assert names == kept | {"register.json"}
    before = (tmp_path / "a.nii.gz").read_bytes()
    # Where the outputs would lie on the inputs, and where there is nothing to write to.
    (tmp_path / "on_fixed").mkdir()
    (tmp_path / "a.nii.gz").rename(tmp_path / "on_fixed" / "moved.nii.gz")
    argv[4] = str(tmp_path / "on_fixed" / "moved.nii.gz")
    assert cli.main([*argv, "--out", str(tmp_path)]) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "on_fixed" / "moved.nii.gz").read_bytes() == before
    model.fit_threshold = 2.0
    assert cli.main([*argv, "--out", str(tmp_path / "new"), "--strict", "--rigid"]) == 1
    assert (
        "the model does not know such an exam" in capsys.readouterr().err and not (tmp_path / "new").exists()
    )


def test_a_transform_is_checked():
    grid = GRIDS["coarse"].cropped((0, 0, 0), (4, 4, 4))
    with pytest.raises(DataError, match="0 on the six sides"):
        Transform(np.eye(4), np.ones((3, 4, 4, 4)), grid)
    with pytest.raises(DataError, match="not on its grid"):
        Transform(np.eye(4), np.zeros((3, 4, 4, 5)), grid)
    with pytest.raises(DataError, match="can be inverted"):
        Transform(np.zeros((4, 4)))
    with pytest.raises(DataError, match="no inverse"):
        Transform(np.eye(4), np.zeros((3, 4, 4, 4)), grid).inverse_of_affine()


def test_a_volume_of_one_slice_ends_at_the_faces_of_its_voxels():
    grid = Grid((1, 3, 4), np.diag([2.0, 2.0, 5.0, 1.0]))
    places = np.array([[2.0, 2.0, z] for z in (-2.4, 2.4, 2.6, -2.6)] + [[6.9, 2.0, 0.0], [7.1, 2.0, 0.0]])
    at = torch.from_numpy(grid.world_to_normalized(places).T.copy()).reshape(1, 3, -1, 1, 1)
    found = within_faces(at, grid).flatten().tolist()
    assert found == grid.covers(places).tolist() == [True, True, False, False, True, False]


def test_overlaps_of_labels_are_pulled_along():
    grid = GRIDS["coarse"]
    places = grid.places()
    balls = {i: np.linalg.norm(places - (0, 0, z), axis=-1) < 20 for i, z in ((3, 0), (7, 10))}
    array = np.where(balls[7], 7, np.where(balls[3], 3, 0)).astype(np.uint8)
    labels = Labels(array, grid, "x", {3: BoxMask.of(balls[3] & balls[7])})
    found = Transform(np.eye(4)).pull(labels, grid)
    for identity, mask in balls.items():
        assert np.array_equal(found.mask(identity), mask)


def test_unknown_values_are_filled_in_smoothly():
    known = torch.zeros(1, 1, 20, 21, 22, dtype=torch.bool)
    known[..., 0], known[..., -1] = True, True
    ramp = torch.linspace(0, 1, 22, dtype=torch.float64).expand(1, 1, 20, 21, 22).clone()
    found = fill_in(torch.where(known, ramp, 99.0), known)
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(found[known], ramp[known])
    assert (found.diff(dim=-1) >= -1e-9).all() and (found - ramp).abs().max() < 0.25
    assert torch.equal(fill_in(ramp, torch.zeros_like(known)), torch.zeros_like(ramp))


@pytest.mark.parametrize("kind", ["deformable", "rigid"])
def test_an_exam_of_one_slice_is_refused_as_its_file_would_be(kind):
    ct, _ = exam(GRIDS["coarse"], "whole")
    middle = ct.grid.shape[0] // 2
    slice_ = replace(ct.cropped((middle, 0, 0), (1, *ct.grid.shape[1:])), name="thin")
    for pair in ((ct, slice_), (slice_, ct)):
        with pytest.raises(DataError, match=r"thin: only 1 voxel\(s\) on an axis \(47 x 39 x 1\)") as error:
            register(AffineModel(), *pair, kind=kind)
        assert "\n" not in str(error.value)
