"""Standard views of exams, against anatomy that is known."""

from __future__ import annotations

import csv
import json

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from affine_model import ANATOMY, GRIDS, LABELS, SCALE, AffineModel, anatomy_template, exam
from scipy.spatial.transform import Rotation

import deepatlas
from deepatlas.cli import main as cli
from deepatlas.errors import DataError
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.exams.read import read_labels_for
from deepatlas.io.codec import write_volume
from deepatlas.localize.crop import CropView, box_of, crop
from deepatlas.localize.crop_files import row_labels
from deepatlas.model.known import known_exam
from deepatlas.space.box import Box
from deepatlas.space.constants import AIR
from deepatlas.space.markup import Markups
from deepatlas.space.volume import Volume

TURN = Rotation.from_euler("xyz", (10, -15, 25), degrees=True).as_matrix()
CENTRE, HALF = np.array([-6.0, 14.0, 30.0]), np.array([24.0, 20.0, 18.0])
# A turned box around the heart, in coordinates of the atlas.
BOX = Box("chest", CENTRE / SCALE, TURN * (HALF / SCALE))
SIMILAR = np.eye(4)
SIMILAR[:3, :3] = Rotation.from_euler("xyz", (-12, 9, 14), degrees=True).as_matrix() * 0.9
SIMILAR[:3, 3] = 6, -4, 3


def turned(place):
    return place @ SIMILAR[:3, :3].T + SIMILAR[:3, 3]


def expected(view_grid, to_anatomy=None) -> np.ndarray:
    """The labels that a view of an exam has."""
    return exam(view_grid, "x", to_anatomy)[1].array


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory: e1, e2 of the same anatomy turned and scaled, and e3, which shows none of the heart."""
    root = tmp_path_factory.mktemp("crops") / "data"
    e3 = GRIDS["plain"].cropped((0, 0, 0), (40, *GRIDS["plain"].shape[1:]))
    for name, grid, to_anatomy in (
        ("e1", GRIDS["sagittal"], None),
        ("e2", GRIDS["oblique"], turned),
        ("e3", e3, None),
    ):
        ct, seg = exam(grid, name, to_anatomy)
        (root / name).mkdir(parents=True)
        for stem, volume in (("ct", ct), ("seg", seg)):
            dtype = np.int16 if stem == "ct" else np.uint8
            nib.save(
                nib.Nifti1Image(volume.array.T.astype(dtype), grid.affine), root / name / f"{stem}.nii.gz"
            )
    (root / "labels.json").write_text(json.dumps(LABELS))
    return root


@pytest.fixture(scope="module")
def model(data):
    return AffineModel(32, maps={str(data / "e2" / "ct.nii.gz"): turned})


@pytest.fixture(scope="module")
def template():
    return anatomy_template(marks=Markups(boxes=(BOX,)))


@pytest.mark.parametrize("name", GRIDS)
def test_a_view_shows_the_box_of_the_atlas_whatever_the_grid_of_the_exam(name):
    ct, seg = exam(GRIDS[name], "a", turned)
    model = AffineModel(32, maps={"a": turned})
    found = crop(known_exam(model, ct), ct, BOX, CropView((30, 36, 40)), seg)
    # The box has no shear in the exam, so that its own corners are those of the view.
    own = BOX.own(turned(found.box.corners()) / SCALE)
    np.testing.assert_allclose(np.abs(own), 1, atol=0.01)
    assert found.coverage == 1 and found.shear_degrees < 0.3 and found.residual_mm < 0.1
    assert found.volume.grid.shape == (30, 36, 40)
    np.testing.assert_allclose(found.volume.grid.corners(), found.box.grid((30, 36, 40)).corners())
    want = expected(found.volume.grid, turned)
    # The nearest voxels of the exam have up to 4 mm, and the heart a radius of 11 mm.
    least = 0.93 if max(ct.grid.spacing) < 3 else 0.9
    assert dice(want == 9, found.labels.array == 9) > least
    # In the frame of the view the heart lies where the box puts it, whatever the exam is like.
    centre = np.array(np.nonzero(found.labels.array == 9)).mean(axis=1)
    np.testing.assert_allclose(centre, (np.array([30, 36, 40]) - 1) / 2, atol=0.6)


def test_shape_spacing_and_margin():
    box = Box("b", np.zeros(3), TURN * np.array([20.0, 10.0, 15.0]))
    grid = CropView(None, 1.5).grid(box)
    assert grid.shape == (20, 14, 27) and np.allclose(grid.spacing, 1.5)
    grid = CropView(None, 1.5, margin=3).grid(box)
    assert grid.shape == (24, 18, 31)
    grid = CropView((8, 10, 12), (1, 2, 3)).grid(box)
    assert grid.shape == (8, 10, 12) and np.allclose(grid.spacing, (1, 2, 3))
    grid = CropView(10, margin=5).grid(box)
    assert np.allclose(grid.extent, (50, 30, 40)) and np.allclose(
        grid.affine[:3, :3] @ [5, 0, 0], TURN[:, 0] * 25
    )
    for bad in ({"shape": None}, {"shape": 0}, {"shape": 5.5}, {"spacing": 0.0}, {"margin": -1.0}):
        with pytest.raises(DataError, match="crop: "):
            CropView(**bad)
    with pytest.raises(DataError, match="give a larger spacing"):
        CropView(None, 0.01).grid(box)


def test_what_the_scan_does_not_show_is_air_and_in_the_coverage():
    whole = GRIDS["plain"]
    ct, _ = exam(whole.cropped((0, 0, 0), (52, *whole.shape[1:])), "a")
    found = crop(known_exam(AffineModel(32), ct), ct, BOX, CropView(32))
    top = ct.grid.voxel_to_world([0, 0, 51.5])[2]
    above = found.volume.grid.places()[..., 2] > top
    assert 0.3 < found.coverage < 0.7 and found.coverage == pytest.approx(1 - above.mean(), abs=0.02)
    assert (found.volume.array[above] == AIR).all()
    with pytest.raises(DataError, match="no place of it lies in the box chest"):
        low, _ = exam(whole.cropped((0, 0, 0), (30, *whole.shape[1:])), "low")
        crop(known_exam(AffineModel(32), low), low, BOX, CropView(32))
    with pytest.raises(DataError, match="labels are on another grid"):
        crop(
            known_exam(AffineModel(32), ct),
            ct,
            BOX,
            CropView(8),
            Volume(np.zeros((4, 4, 4), np.uint8), whole.resized(4)),
        )


def test_a_mask_on_the_view_comes_back_to_the_exam():
    ct, seg = exam(GRIDS["sagittal"], "a")
    found = crop(known_exam(AffineModel(32), ct), ct, BOX, CropView(56), seg)
    back = found.back(expected(found.volume.grid))
    assert back.grid == ct.grid and dice(seg.array == 9, back.array == 9) > 0.93
    with pytest.raises(ValueError, match="array of shape"):
        found.back(np.zeros((3, 3, 3), np.uint8))


def test_boxes_are_those_of_the_template_or_around_its_structures(template):
    assert box_of(template, "Chest") is BOX
    box = box_of(template, ["liver", "heart"])
    inside = np.array([ANATOMY["liver"][1], ANATOMY["heart"][1]]) / SCALE
    assert box.contains(inside).all() and not box.contains(np.array(ANATOMY["spleen"][1]) / SCALE)
    with pytest.raises(DataError, match="chest"):
        box_of(template, ["chest", "liver"])
    with pytest.raises(DataError, match="no 'kidney'|kidney"):
        box_of(template, "kidney")


@pytest.fixture
def run(model, template, tmp_path, monkeypatch, capsys):
    """Run ``deepatlas`` with the model; returns the exit code, the JSON, and what stands on stderr."""
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *args, **options: model)
    template.save(tmp_path / "t.h5")

    def call(*argv):
        code = cli.main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in argv and out else out, err

    return call


def test_a_cohort_becomes_a_data_directory_of_views(data, run, tmp_path):
    out = tmp_path / "out"
    code, about, err = run(
        "crop", data, "--model", "m", "--template", tmp_path / "t.h5", "--box", "chest", "--shape", "40x36x30",
        "--labels", "--out", out, "--json", "--quiet",
    )  # fmt: skip
    assert code == 0 and not err
    rows = {row["exam"]: row for row in about["crops"]}
    assert rows["e3"]["file"] is None and (
        "less than" in rows["e3"]["reason"] or "no place" in rows["e3"]["reason"]
    )
    assert json.loads((out / "crops.json").read_text()) == about["crops"]
    with open(out / "crops.csv", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert [row["exam"] for row in table] == ["e1", "e2", "e3"]
    assert {row["known"] for row in table} <= {"true", "false", ""}
    for name, to_anatomy in (("e1", None), ("e2", turned)):
        ct, seg = (
            deepatlas.read_volume(out / "chest" / name / f"{x}.nii.gz", labels=x == "seg")
            for x in ("ct", "seg")
        )
        assert ct.grid.shape == (30, 36, 40) and ct.grid.matches(seg.grid, 1e-3)
        np.testing.assert_allclose(ct.grid.affine, rows[name]["affine"], atol=1e-4)
        assert dice(expected(ct.grid, to_anatomy) == 9, seg.array == 9) > 0.92 and "known" in rows[name]
    cohort = deepatlas.find_exams(out / "chest")
    assert [e.id for e in cohort.exams] == ["e1", "e2"] and cohort.labels == LABELS


def test_crops_are_not_written_among_the_exams(data, run, tmp_path):
    before = sorted(data.rglob("*"))
    code, _, err = run(
        "crop", data, "--model", "m", "--template", tmp_path / "t.h5", "--box", "chest",
        "--out", data / ".." / data.name,
    )  # fmt: skip
    assert code == 1 and "--out is where the exams come from" in err and err.count("\n") == 1
    assert sorted(data.rglob("*")) == before


def test_a_cohort_becomes_rows_of_an_hdf5(data, run, tmp_path):
    argv = [
        "crop",
        data,
        "--model",
        "m",
        "--template",
        tmp_path / "t.h5",
        "--labels",
        "--format",
        "hdf5",
        "--quiet",
    ]
    code, about, _ = run(
        *argv, "--structures", "heart", "--margin", "6", "--shape", "24", "--out", tmp_path / "o", "--json"
    )
    assert code == 0
    with h5py.File(tmp_path / "o" / "heart.h5") as file:
        ids = file["id"].asstr()[()].tolist()
        assert ids[:2] == ["e1", "e2"] and file["image"].shape == (len(ids), 24, 24, 24)
        assert file["image"].dtype == np.int16 and json.loads(file.attrs["labels"]) == LABELS
        row = next(r for r in about["crops"] if r["exam"] == "e2")
        np.testing.assert_allclose(file["affine"][1], row["affine"])
        assert (
            row["row"] == 1
            and file["coverage"][1] == pytest.approx(row["coverage"])
            and file["labelled"][:2].all()
        )
        from deepatlas.space.grid import Grid

        want = expected(Grid((24, 24, 24), file["affine"][1]), turned)
        assert dice(want == 9, file["labels"][1] == 9) > 0.9
    code, _, err = run(*argv, "--box", "chest", "--spacing", "1", "--out", tmp_path / "p")
    assert code == 1 and "give --shape beside --spacing" in err and not (tmp_path / "p").exists()


def test_boxes_that_were_drawn_in_an_exam_and_nrrd(data, run, tmp_path):
    box = Box("lump", CENTRE, TURN * HALF)
    deepatlas.write_markups(tmp_path / "b.mrk.json", Markups(boxes=(box,)))
    code, about, _ = run(
        "crop", data / "e2", "--model", "m", "--boxes", tmp_path / "b.mrk.json", "--from", data / "e1",
        "--shape", "20", "--format", "nrrd", "--out", tmp_path / "o", "--json", "--quiet",
    )  # fmt: skip
    assert code == 0
    image = sitk.ReadImage(str(tmp_path / "o" / "lump" / "e2" / "ct.nrrd"))
    want = deepatlas.Grid((20, 20, 20), np.array(about["crops"][0]["affine"]))
    assert image.GetSize() == (20, 20, 20)
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([9.5] * 3)) * [-1, -1, 1]
    np.testing.assert_allclose(centre, want.voxel_to_world([9.5] * 3), atol=1e-3)
    np.testing.assert_allclose(turned(centre), CENTRE, atol=0.5)


def test_labels_of_a_view_go_back_by_the_command(data, run, tmp_path):
    run("crop", data, "--model", "m", "--template", tmp_path / "t.h5", "--box", "chest", "--labels", "--out",
        tmp_path / "o", "--quiet", "--spacing", "1.5")  # fmt: skip
    seg = tmp_path / "o" / "chest" / "e2" / "seg.nii.gz"
    code, about, _ = run("uncrop", seg, "--exam", data / "e2", "--out", tmp_path / "back.nii.gz", "--json")
    assert code == 0 and about["voxels"]["9"] > 100
    back, want = (
        deepatlas.read_volume(p, labels=True) for p in (tmp_path / "back.nii.gz", data / "e2" / "seg.nii.gz")
    )
    assert back.grid.matches(want.grid, 1e-3) and dice(want.array == 9, back.array == 9) > 0.93
    code, _, err = run("uncrop", seg, "--exam", data / "e2", "--out", seg)
    assert code == 1 and "would be overwritten" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--template", "t.h5"), "give one of --box, --structures"),
        (("--template", "t.h5", "--box", "pelvis"), "pelvis"),
        (("--boxes", "x.mrk.json"), "--boxes with --from"),
        (("--box", "chest"), "needs --template"),
    ],
)
def test_what_is_missing_is_one_line(data, run, tmp_path, argv, words):
    argv = [tmp_path / a if a in ("t.h5", "x.mrk.json") else a for a in argv]
    code, _, err = run("crop", data / "e1", "--model", "m", *argv, "--out", tmp_path / "o")
    assert code == 1 and words in err and err.count("\n") == 1 and not (tmp_path / "o").exists()


def test_an_exam_that_is_not_known_is_left_out_and_inputs_are_safe(data, run, tmp_path, model, monkeypatch):
    argv = ["crop", data / "e1", "--model", "m", "--template", tmp_path / "t.h5", "--box", "chest", "--quiet"]
    monkeypatch.setattr(model, "fit_threshold", 2.0, raising=False)
    code, about, err = run(*argv, "--out", tmp_path / "o", "--json")
    assert (
        code == 0 and about["crops"][0]["reason"] == "the model does not know the exam" and "warning" in err
    )
    (tmp_path / "chest" / "e1").mkdir(parents=True)
    source = tmp_path / "chest" / "e1" / "ct.nii.gz"
    source.write_bytes((data / "e1" / "ct.nii.gz").read_bytes())
    argv[1] = source.parent
    code, _, err = run(*argv, "--out", tmp_path)
    assert code == 1 and "would be overwritten" in err


def test_overlaps_of_structures_are_kept_in_files(run, tmp_path, monkeypatch):
    """A second structure lies over half of the heart; each is whole in the HDF5 and as masks."""
    ct, seg = exam(GRIDS["plain"], "e")
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *a, **k: AffineModel(32))
    over = (seg.array == 9) & (seg.grid.places()[..., 2] > 30)
    for name, mask in (("heart", seg.array == 9), ("gtv", over), ("liver", seg.array == 5)):
        write_volume(
            tmp_path / "d" / "e" / "segmentations" / f"{name}.nii.gz", Volume(mask.astype(np.uint8), ct.grid)
        )
    write_volume(tmp_path / "d" / "e" / "ct.nii.gz", ct)
    anatomy_template().save(tmp_path / "a.h5")
    argv = ["crop", tmp_path / "d", "--model", "m", "--template", tmp_path / "a.h5", "--structures", "heart",
            "--shape", "40", "--labels", "--quiet", "--json", "--any-model"]  # fmt: skip
    assert run(*argv, "--format", "hdf5", "--out", tmp_path / "h")[0] == 0
    with h5py.File(tmp_path / "h" / "heart.h5") as file:
        ids, found = json.loads(file.attrs["labels"]), row_labels(file, 0)
        assert list(file["overlaps"]) == ["0"] and found.grid.shape == (40, 40, 40)
    want = expected(found.grid) == 9
    above = want & (found.grid.places()[..., 2] > 30)
    # A voxel of the exam has 2 mm.
    assert dice(found.mask(ids["heart"]), want) > 0.93 and dice(found.mask(ids["gtv"]), above) > 0.85
    assert run(*argv, "--out", tmp_path / "n")[0] == 0
    cohort = deepatlas.find_exams(tmp_path / "n" / "heart")
    again = read_labels_for(
        deepatlas.read_volume(cohort.exams[0].ct), cohort.exams[0].seg, dict(cohort.labels)
    )
    for name in ("heart", "gtv"):
        np.testing.assert_array_equal(again.mask(cohort.labels[name]), found.mask(ids[name]))
    # Where nothing overlaps any more there is one label image again.
    (tmp_path / "d" / "e" / "segmentations" / "gtv.nii.gz").unlink()
    assert run(*argv, "--out", tmp_path / "n2")[0] == 0
    assert {p.name for p in (tmp_path / "n2" / "heart" / "e").iterdir()} == {"ct.nii.gz", "seg.nii.gz"}
