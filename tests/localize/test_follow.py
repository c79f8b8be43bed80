"""What changed between two exams, where it is known what did."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from affine_model import ANATOMY, BODY, GRIDS, AffineModel, anatomy_template, exam, grid_of
from scipy.spatial.transform import Rotation

from deepatlas.cli import main as cli
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.localize.follow import follow
from deepatlas.localize.follow_files import table_text, write_follow_up
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import Trust
from deepatlas.model.fit import Fit

# B lies otherwise on the couch, the spleen has moved by 9 mm, and the heart is a quarter larger.
COUCH = Rotation.from_euler("xyz", (5, -4, 8), degrees=True).as_matrix(), np.array([6.0, -5.0, 9.0])
AWAY, LARGER = np.array([0.0, 0.0, 9.0]), 1.25 ** (1 / 3)


def near(place, name, reach=1.0):
    """A weight of 1 in a structure, which falls to 0 around it."""
    _, centre, radii = ANATOMY[name]
    distance = np.sqrt((((place - centre) / radii) ** 2).sum(-1))
    return np.clip(1 + reach - distance / 1.0, 0, reach)[..., None] / reach


def to_anatomy(place):
    """From places of B to places of A."""
    place = (place - COUCH[1]) @ COUCH[0]
    centre = np.array(ANATOMY["heart"][1])
    moved = place - near(place - AWAY, "spleen") * AWAY
    weight = near(moved, "heart", 0.7)
    return np.where(weight > 0, centre + (moved - centre) * (1 + weight * (1 / LARGER - 1)), moved)


@pytest.fixture(scope="module")
def made():
    grid = grid_of(half_mm=(76.0, 64.0, 80.0))
    a, b = exam(GRIDS["plain"], "a")[0], exam(grid, "b", to_anatomy)[0]
    model = AffineModel(64, maps={"b": to_anatomy})
    return model, anatomy_template(), a, b


@pytest.fixture(scope="module")
def found(made):
    return follow(made[0], made[1], made[2], made[3])


def test_what_moved_is_marked_and_what_stayed_is_not(found):
    changes = {change.name: change for change in found.changes}
    assert {name for name, change in changes.items() if change.moved} == {"spleen"}
    np.testing.assert_allclose(changes["spleen"].shift, AWAY, atol=1.5)
    assert changes["spleen"].own_shift_mm > 5 and changes["spleen"].complete
    assert max(changes[name].shift_mm for name in ("liver", "heart")) < 1.5
    assert found.aligned_by == "body" and found.voxel_mm == pytest.approx(np.sqrt(6), 1e-3)


def test_volumes_are_those_of_the_structures(found):
    changes = {change.name: change for change in found.changes}
    for name, (_, _, radii) in ANATOMY.items():
        assert changes[name].before_ml == pytest.approx(4 / 3 * np.pi * np.prod(radii) / 1000, rel=0.06)
    assert changes["heart"].change_percent == pytest.approx(25, abs=6)
    assert abs(changes["liver"].change_percent) < 5


def test_the_difference_shows_what_changed_in_the_space_of_a(found, made):
    _, _, a, _ = made
    assert found.difference.grid == a.grid
    overlap = found.registration.on_fixed.overlap
    places = a.grid.places()
    inside = (((places / BODY) ** 2).sum(-1) < 0.85) & overlap
    assert np.median(np.abs(found.difference.array[inside])) < 1
    centre = np.array(ANATOMY["spleen"][1])
    # Where the lower end of the spleen was, there is body now.
    gone = np.linalg.norm(places - (centre - [0, 0, 12]), axis=-1) < 3
    assert np.median(found.difference.array[gone]) == pytest.approx(20 - 80, abs=8)
    assert (found.difference.array[~overlap] == 0).all()


def test_what_a_scanner_puts_into_the_corners_is_no_change(made):
    model, template, a, _ = made
    padded = np.array(a.array)
    padded[:, :6, :6] = -3024
    same = follow(model, template.select(["liver"]), replace(a, array=padded), replace(a, name="again"))
    assert same.registration.on_fixed.overlap[:, :6, :6].any()
    # Air is -1000 in the one, and beyond the scanner's circle at least -1024.
    assert np.abs(same.difference.array).max() <= 24.1


def test_an_unknown_kind_of_alignment_is_refused(made):
    model, template, a, b = made
    with pytest.raises(DeepAtlasError, match="kind must be one of deformable, linear, rigid, got 'affine'"):
        follow(model, template, a, b, "affine")


def test_a_better_known_error_counts(made):
    model, template, a, b = made
    found = follow(model, template.select(["spleen"]), a, b, expected_mm={"spleen": 20.0})
    assert found.changes[0].expected_mm == 20.0 and not found.changes[0].moved


def test_a_structure_that_is_cut_off_is_no_change(made):
    model, template, a, b = made
    part = b.grid.cropped((0, 0, 0), (40, *b.grid.shape[1:]))
    cut = exam(part, "b", to_anatomy)[0]
    found = follow(model, template, a, cut)
    changes = {change.name: change for change in found.changes}
    assert not changes["heart"].complete and not changes["heart"].moved
    assert not changes["spleen"].complete


def test_a_template_without_masks_is_refused(made):
    model, _, a, b = made
    from test_crop import BOX

    from deepatlas.space.markup import Markups

    empty = Template(np.zeros((0, 8, 8, 8), np.float32), (), (), {}, Markups(boxes=(BOX,)))
    with pytest.raises(DataError, match="holds no mask"):
        follow(model, empty, a, b)


@pytest.mark.slow(1)
def test_the_command_writes_a_table_an_image_and_a_picture(made, tmp_path, monkeypatch, capsys):
    _, template, a, b = made
    model = AffineModel(64, maps={str(tmp_path / "b" / "ct.nii.gz"): to_anatomy})
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *args, **options: model)
    template.save(tmp_path / "t.h5")
    for name, volume in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        image = nib.Nifti1Image(volume.array.T.astype(np.int16), volume.grid.affine)
        nib.save(image, tmp_path / name / "ct.nii.gz")
    argv = [
        "follow",
        tmp_path / "a",
        tmp_path / "b",
        "--model",
        "m",
        "--template",
        tmp_path / "t.h5",
        "--any-model",
    ]
    assert cli.main([*map(str, argv), "--out", str(tmp_path / "out"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    rows = {row["structure"]: row for row in about["structures"]}
    assert rows["spleen"]["moved"] and not rows["liver"]["moved"] and "fit_mm" in about["expected_error"]
    with open(tmp_path / "out" / "changes.csv", encoding="utf-8") as handle:
        table = {row["structure"]: row for row in csv.DictReader(handle)}
    assert (
        float(table["spleen"]["shift_mm"]) == rows["spleen"]["shift_mm"]
        and table["spleen"]["moved"] == "true"
    )
    assert about["known"] is None and table["spleen"]["known"] == ""
    image = nib.load(tmp_path / "out" / "difference.nii.gz")
    np.testing.assert_allclose(image.affine, a.grid.affine, atol=1e-4)
    assert (tmp_path / "out" / "changes.png").stat().st_size > 20_000


def test_exams_that_the_model_does_not_know_are_marked_in_the_table(found, made, tmp_path, monkeypatch):
    monkeypatch.setattr("deepatlas.localize.follow_files.picture", lambda *arguments: None)
    doubtful = replace(found.registration, moving_fit=Fit(0.1, 0.5), fixed_fit=Fit(0.9, 0.5))
    write_follow_up(tmp_path, replace(found, registration=doubtful), made[1], made[2], ("a", "b"))
    with open(tmp_path / "changes.csv", encoding="utf-8") as handle:
        assert {row["known"] for row in csv.DictReader(handle)} == {"false"}
    assert json.loads((tmp_path / "changes.json").read_text())["known"] is False


def test_the_table_for_a_terminal_names_what_moved(found):
    lines = table_text(found).splitlines()
    assert len(lines) == 4 and [line for line in lines if line.endswith("moved")] == [lines[2]]
    assert lines[2].split()[0] == "spleen" and "+2" in lines[3]


def test_a_calibrated_template_tells_the_error_of_each_structure(made, monkeypatch, found):
    """The 90 % bounds of both exams at the centroid, in quadrature with the voxels; elsewhere the alignment."""
    model, template, a, b = made
    asked = []

    class Believed:
        structures = {"spleen": Trust(0.8, 0.6), "liver": Trust(None, None, "why"), "heart": Trust(0.7, 0.5)}

        def __init__(self, number):
            self.number = number

        def millimetres(self, points):
            asked.append(points[0])
            # Of the liver nobody knows anything in one of the exams.
            lost = self.number and np.linalg.norm(points[0] - before["liver"]) < 25
            bound = np.array([np.nan if lost else 6.0 + 2 * self.number])
            return bound / 2, bound

    before = {name: np.array(centre) for name, (_, centre, _) in ANATOMY.items()}
    made_of = iter([Believed(0), Believed(1)])
    monkeypatch.setattr("deepatlas.localize.follow.exam_trust", lambda *_, threshold: next(made_of))
    trusted = replace(template, meta={**template.meta, "trust": {"version": 1}})
    changes = {change.name: change for change in follow(model, trusted, a, b).changes}
    spleen = changes["spleen"]
    assert spleen.expected_by == "trust" and not spleen.moved
    assert spleen.expected_mm == pytest.approx(np.sqrt(6.0**2 + 8.0**2 + found.voxel_mm**2))
    np.testing.assert_allclose(asked[2], before["spleen"], atol=1.5)
    assert changes["liver"].expected_by == "alignment"
    assert changes["liver"].expected_mm == pytest.approx(np.hypot(found.fit_mm, found.voxel_mm), rel=1e-6)
    rows = {name: change.to_dict() for name, change in changes.items()}
    assert (rows["heart"]["trust"], rows["heart"]["bound"]) == (0.7, 0.5)
    assert rows["liver"]["trust"] is None and rows["liver"]["reason"] == "why"
    assert "trust" not in found.changes[0].to_dict() and found.changes[0].expected_by == "alignment"
