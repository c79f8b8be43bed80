"""What the server of the page sends of exams, against exams with known anatomy, and against the other commands."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from affine_model import ANATOMY, GRIDS, LABELS, SCALE, exam, grid_of
from served import (
    EXAMS,
    STRANGER,
    Client,
    KnowingModel,
    grid_in,
    serving,
    shifted,
    template,
    unpack,
)  # fmt: skip

from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.localize.segment import segment
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume
from deepatlas.view.gallery import Gallery
from deepatlas.view.picture import picture
from deepatlas.view.session import Session
from deepatlas.view.structures import OwnStructures, labels_body


def body(client, path):
    answer = client.ask(path)
    assert answer.status == 200, answer.data
    return unpack(answer.data)


@pytest.mark.parametrize("name", ["plain", "moved"])
def test_a_picture_is_the_exam_as_nibabel_reads_it(client, ids, folder, name):
    header, arrays = body(client, f"/api/exam/{ids[name]}/picture")
    image = nibabel.as_closest_canonical(nibabel.load(folder / name / "ct.nii.gz"))
    np.testing.assert_array_equal(arrays["image"], np.asarray(image.dataobj).T)
    np.testing.assert_allclose(header["affine"], image.affine, atol=1e-3)
    assert arrays["image"].dtype == np.int16
    # The test's exams have flat organs, which is unusual.
    assert [line for line in header["lines"] if "clipped" not in line] == []


def test_an_oblique_exam_is_turned_to_the_axes_of_the_patient(client, ids, folder):
    header, arrays = body(client, f"/api/exam/{ids['oblique']}/picture")
    grid = grid_in(header)
    np.testing.assert_allclose(grid.affine[:3, :3], np.diag(np.diag(grid.affine[:3, :3])), atol=1e-9)
    assert any("oblique grid (22 degrees)" in line for line in header["lines"])
    # The body is where it is in the file, in millimetres.
    native = read_volume(folder / "oblique" / "ct.nii.gz")
    truth = native.grid.voxel_to_world(np.argwhere(native.array > -500)[:, ::-1]).mean(axis=0)
    shown = grid.voxel_to_world(np.argwhere(arrays["image"] > -500)[:, ::-1]).mean(axis=0)
    np.testing.assert_allclose(shown, truth, atol=0.3)


def test_a_large_exam_is_averaged_to_256_voxels_and_says_so(client, ids):
    header, arrays = body(client, f"/api/exam/{ids['large']}/picture")
    assert max(arrays["image"].shape) <= 256
    assert "large (281 × 59 × 37 voxels), shown with 140 × 59 × 37" in header["lines"][0]
    grid = EXAMS["large"][0]
    np.testing.assert_allclose(grid_in(header).spacing, np.array(grid.spacing) * [2, 1, 1])
    shown, lines = picture(
        Volume(
            np.arange(600.0).reshape(1, 1, 600).repeat(4, 0).repeat(4, 1), type(grid)((4, 4, 600), np.eye(4))
        )
    )
    np.testing.assert_array_equal(shown.array[0, 0, :3], [1, 4, 7])
    assert shown.grid.shape == (4, 4, 200) and len(lines) == 1


@pytest.mark.parametrize("name", ["plain", "moved", "oblique", "large"])
def test_the_coordinates_that_are_sent_are_those_of_the_anatomy(client, ids, name):
    header, arrays = body(client, f"/api/exam/{ids[name]}/coordinates")
    grid, coords = grid_in(header), arrays["coords"].astype(np.float64)
    z, y, x = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    place = grid.voxel_to_world(np.stack([x, y, z], axis=-1))
    truth = (shifted(place) if name == "moved" else place) / SCALE
    seen = arrays["flags"] & 1 > 0
    assert seen.mean() > 0.7
    # Half precision near 1 has steps of a thousandth: 0.04 mm here.
    np.testing.assert_allclose(np.moveaxis(coords, 0, -1)[seen], truth[seen], atol=2e-3)
    inside = arrays["flags"] == 3
    assert inside.mean() > 0.1 and inside.mean() < 0.9
    assert (header["fit"], header["known"], header["warning"]) == (0.8, True, "")
    np.testing.assert_allclose(header["unit_mm"], SCALE, rtol=0.01)


def test_an_exam_that_is_not_known_says_so(client, ids):
    header, _ = body(client, f"/api/exam/{ids[STRANGER]}/coordinates")
    assert (header["fit"], header["known"]) == (0.1, False)
    assert "does not know such an exam (fit 0.10, known are those from 0.50)" in header["warning"]


@pytest.mark.parametrize("name", ["plain", "moved"])
def test_structures_are_those_of_segment(client, ids, folder, name):
    _, arrays = body(client, f"/api/exam/{ids[name]}/masks")
    model = KnowingModel()
    volume = read_volume(folder / name / "ct.nii.gz")
    volume.name = name
    expected = segment(model, volume, template(model)).canonical()
    np.testing.assert_array_equal(arrays["labels"], expected.array)


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_volumes_are_those_of_the_file_that_is_downloaded(tmp_path, threshold):
    """Also where the page shows fewer voxels than the exam has, on other axes."""
    grids = {
        "plain": GRIDS["plain"],
        "sagittal": GRIDS["sagittal"],
        # Oblique and anisotropic, and more than 256 voxels along an axis.
        "large": grid_of(spacing=(0.5, 1.7, 5.0), degrees=(14.0, -9.0, 20.0)),
    }
    assert max(grids["large"].shape) > 256
    model = KnowingModel()
    for name, grid in grids.items():
        ct, _ = exam(grid, name)
        write_volume(tmp_path / name / "ct.nii.gz", ct)
    session = Session(
        Gallery([tmp_path]), lambda: (model, template(model)), title="volumes", threshold=threshold
    )
    with serving(session) as server:
        client = Client(server)
        for given in session.gallery:
            header, arrays = body(client, f"/api/exam/{given.id}/masks")
            (tmp_path / "d.nii.gz").write_bytes(client.download({"what": "masks", "exam": given.id})[1])
            image = nibabel.load(tmp_path / "d.nii.gz")
            array, voxel = np.asarray(image.dataobj), abs(np.linalg.det(image.affine[:3, :3])) / 1000
            volume = read_volume(tmp_path / given.name / "ct.nii.gz")
            volume.name = given.name
            expected = segment(model, volume, template(model), threshold)
            np.testing.assert_array_equal(array.T, expected.array)
            told = {int(i): v for i, v in header["millilitres"].items()}
            # The affine of the file is in single precision.
            assert told == pytest.approx({i: (array == i).sum() * voxel for i in LABELS.values()}, rel=1e-5)
            # What is drawn is as large, but for the coarser voxels.
            shown, _ = body(client, f"/api/exam/{given.id}/picture")
            drawn = {
                i: (arrays["labels"] == i).sum() * grid_in(shown).voxel_volume / 1000 for i in LABELS.values()
            }
            assert drawn == pytest.approx(told, rel=0.03)


def test_a_structure_that_the_exam_hardly_shows_says_so(tmp_path):
    model = KnowingModel()
    ct, _ = exam(GRIDS["plain"], "whole")
    # Of the liver, the exam shows what lies above half of its radius.
    centre, radius = ANATOMY["liver"][1], ANATOMY["liver"][2]
    level = int(ct.grid.world_to_voxel(np.array([[0, 0, centre[2] + 0.5 * radius[2]]]))[0, 2])
    write_volume(
        tmp_path / "part" / "ct.nii.gz",
        ct.cropped((level, 0, 0), (ct.grid.shape[0] - level, *ct.grid.shape[1:])),
    )
    session = Session(Gallery([tmp_path]), lambda: (model, template(model)), title="part")
    with serving(session) as server:
        client = Client(server)
        header, _ = body(client, f"/api/exam/{next(iter(session.gallery)).id}/masks")
    # A cap of an ellipsoid, and half a voxel of the network more.
    assert header["shares"][str(LABELS["liver"])] == pytest.approx(5 / 32, abs=0.08)


def test_what_structures_hide_of_each_other_is_sent_as_well():
    grid = GRIDS["coarse"]
    array = np.zeros(grid.shape, np.uint8)
    array[3:9, 3:9, 3:9] = 1
    array[5:7, 5:7, 5:7] = 2
    hidden = np.zeros(grid.shape, bool)
    hidden[5:7, 5:7, 5:7] = True
    header, arrays = unpack(labels_body(Labels(array, grid, "x", {1: BoxMask.of(hidden)}), {}))
    np.testing.assert_array_equal(arrays["labels"], array)
    box = header["hidden"]["1"]
    bits = np.unpackbits(arrays["hidden1"], count=8).reshape(box["shape"])
    assert box["start"] == [5, 5, 5] and bits.all()
    own = OwnStructures(grid, ((1, BoxMask.of(array > 0)), (2, BoxMask.of(hidden))), np.uint8)
    np.testing.assert_array_equal(own.labels().array, array)
    assert own.millilitres() == pytest.approx(
        {i: n**3 * grid.voxel_volume / 1000 for i, n in ((1, 6), (2, 2))}
    )


def test_the_atlas_lies_in_its_own_coordinates(client):
    header, arrays = body(client, "/api/exam/atlas/picture")
    np.testing.assert_allclose(grid_in(header).corners()[[0, -1]], [[-1, -1, -1], [1, 1, 1]])
    # The window of the network from black to white.
    np.testing.assert_array_equal(np.unique(arrays["image"]), [-256, round(0.54 * 512 - 256)])
    _, masks = body(client, "/api/exam/atlas/masks")
    assert set(np.unique(masks["labels"])) == {0, *LABELS.values()}
