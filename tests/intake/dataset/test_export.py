"""``deepatlas export``: what a dataset holds comes back as NIfTI, voxel by voxel, and nothing is replaced."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from prepare_here import prepare_here
from small_dataset import files_of
from small_exams import oblique

from deepatlas.cli import main as cli
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.exam_file import write_exam
from deepatlas.exams.read import read_labels_for, read_volume
from deepatlas.intake.dataset.folder import Dataset, exam_path, finish_dataset
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume

TABLE = {"ptv": 1, "lung left": 2, "gtv": 3, "never drawn": 4}
SHAPE = (26, 30, 34)


def masks_of(shape) -> dict[str, np.ndarray]:
    masks = {name: np.zeros(shape, dtype=bool) for name in ("ptv", "lung left", "gtv")}
    masks["ptv"][4:20, 5:25, 6:28] = True
    masks["lung left"][10:24, 12:28, 9:20] = True
    masks["gtv"][8:14, 10:18, 10:18] = True
    return masks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of two exams with overlaps on oblique, anisotropic, flipped grids, and of one without labels."""
    folder, contents = tmp_path_factory.mktemp("export") / "set", {}
    with Manifest(folder.parent / "m.sqlite") as manifest:
        for seed, name in enumerate(("e1", "e2", "bare")):
            rng = np.random.default_rng(seed + 10)
            grid = oblique(rng, SHAPE)
            hu = rng.integers(-1024, 300, SHAPE).astype(np.int16)
            masks = masks_of(SHAPE) if name != "bare" else {}
            order = [n for n in ("ptv", "lung left", "gtv") if n in masks]
            labels = Labels.painted([(TABLE[n], BoxMask.of(masks[n])) for n in order], grid, np.uint8)
            drawn = labels if masks else None
            record = write_exam(exam_path(folder, name), Volume(hu, grid), drawn, TABLE, {}, [])
            manifest.add_exam(record, name, [])
            contents[name] = hu, grid, masks
    finish_dataset(folder, [folder.parent / "m.sqlite"])
    return folder, contents


def export(*argv) -> int:
    return cli.main(["export", *map(str, argv), "--quiet"])


def test_ct_and_masks_come_back_voxel_by_voxel(made, tmp_path):
    folder, contents = made
    before = files_of(folder)
    assert export(folder, "--out", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"e1", "e2", "bare", "labels.json"}
    for name, (hu, grid, masks) in contents.items():
        place = tmp_path / "out" / name
        ct = nib.load(place / "ct.nii.gz")
        assert ct.get_data_dtype() == np.int16 and ct.header.get_slope_inter() in ((None, None), (1.0, 0.0))
        np.testing.assert_array_equal(np.asarray(ct.dataobj), hu.transpose(2, 1, 0))
        # Both of the affines that programs may take; they are float32 in the file.
        for affine in (ct.affine, ct.get_qform(), ct.get_sform()):
            np.testing.assert_allclose(affine, grid.affine, atol=2e-4)
        drawn = {p.name for p in (place / "segmentations").glob("*")}
        assert drawn == {f"{n}.nii.gz" for n in masks}
        for structure, mask in masks.items():
            image = nib.load(place / "segmentations" / f"{structure}.nii.gz")
            assert image.get_data_dtype() == np.uint8
            np.testing.assert_array_equal(np.asarray(image.dataobj), mask.transpose(2, 1, 0))
            np.testing.assert_array_equal(image.affine, ct.affine)
        assert not masks or sitk.ReadImage(str(place / "ct.nii.gz")).GetSize() == SHAPE[::-1]
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == TABLE
    assert files_of(folder) == before


def test_what_was_exported_is_a_data_directory_with_its_overlaps(made, tmp_path):
    folder, contents = made
    assert export(folder, "--out", tmp_path / "out") == 0
    cohort = find_exams(tmp_path / "out")
    assert cohort.labels == TABLE and [e.id for e in cohort.exams] == ["bare", "e1", "e2"]
    assert [bool(e.seg) for e in cohort.exams] == [False, True, True] and not cohort.skipped
    for exam in cohort.exams:
        hu, grid, masks = contents[exam.id]
        ct = read_volume(exam.ct, notes=[])
        np.testing.assert_array_equal(ct.array, hu)
        assert ct.grid.matches(grid, 1e-3)
        if exam.seg:
            seg = read_labels_for(ct, exam.seg, cohort.labels)
            for name, mask in masks.items():
                np.testing.assert_array_equal(seg.mask(TABLE[name]), mask)


def test_what_was_exported_can_be_prepared_again(tmp_path):
    grid = Grid.from_spacing(SHAPE, (2.0, 2.0, 3.0))
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:24, 4:26, 4:30] = np.random.default_rng(0).integers(0, 80, (22, 22, 26))
    masks = masks_of(SHAPE)
    labels = Labels.painted([(TABLE[n], BoxMask.of(m)) for n, m in masks.items()], grid, np.uint8)
    with Manifest(tmp_path / "m.sqlite") as manifest:
        path = exam_path(tmp_path / "set", "e1")
        manifest.add_exam(write_exam(path, Volume(hu, grid), labels, TABLE, {}, []), "e1", [])
    finish_dataset(tmp_path / "set", [tmp_path / "m.sqlite"])
    assert export(tmp_path / "set", "--out", tmp_path / "out") == 0
    prepare_here(tmp_path / "out", tmp_path / "again")
    (exam,) = Dataset(tmp_path / "again")
    np.testing.assert_array_equal(exam.volume().array, hu)
    assert len(exam.present) == 3
    for name, mask in masks.items():
        found = next(n for n in exam.present if n.replace("_", " ") == name)
        np.testing.assert_array_equal(exam.mask(found).array, mask)


def test_chosen_exams_as_label_images(made, tmp_path, capsys):
    folder, contents = made
    out = tmp_path / "out"
    assert export(folder, "--exam", "e2", "--exam", "bare", "--out", out, "--label-image", "--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["exams"] == {"e2": ["ptv", "lung left", "gtv"], "bare": []}
    assert "e2: other structures hide a part of ptv, lung left in its label image" in printed.err
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "labels.json", "e2/ct.nii.gz", "e2/seg.nii.gz", "bare/ct.nii.gz",
    }  # fmt: skip
    hu, grid, masks = contents["e2"]
    expected = np.zeros(SHAPE, int)
    for name, mask in masks.items():
        expected[mask] = TABLE[name]
    image = nib.load(out / "e2" / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), expected)
    np.testing.assert_allclose(image.affine, grid.affine, atol=2e-4)
    # The others can follow, under the same table.
    assert export(folder, "--exam", "e1", "--out", out) == 0
    assert (out / "e1" / "segmentations" / "ptv.nii.gz").is_file()


def test_nothing_is_replaced_or_written_into_the_dataset(made, tmp_path, capsys):
    folder, _ = made
    before = files_of(folder)
    (tmp_path / "out" / "e2").mkdir(parents=True)
    (tmp_path / "out" / "e2" / "ct.nii.gz").write_bytes(b"mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels.json").write_text('{"liver": 1}')
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(folder)
    cases = [
        (("--out", tmp_path / "out"), "e2: is there already; delete it"),
        (("--out", tmp_path / "other"), "names other structures than the dataset"),
        (("--out", tmp_path / "file"), "is a file, and --out is a folder"),
        (("--out", tmp_path / "x.nii.gz"), "has the name of a .nii.gz file"),
        (("--out", folder), "lies in the dataset"),
        (("--out", tmp_path / "link" / "deeper"), "lies in the dataset"),
        (("--exam", "e9", "--out", tmp_path / "new"), "no exam 'e9'"),
    ]
    for argv, message in cases:
        assert export(folder, *argv) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, argv
    assert files_of(folder) == before and not (tmp_path / "new").exists()
    assert files_of(tmp_path / "out") == {"e2/ct.nii.gz": b"mine"}
    assert export(tmp_path / "other", "--out", tmp_path / "new") == 1
    assert "no dataset" in capsys.readouterr().err


def test_a_damaged_exam_costs_itself_alone(made, tmp_path, capsys):
    folder, _ = made
    copy = tmp_path / "set"
    for name, data in files_of(folder).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    path = exam_path(copy, "e1")
    path.write_bytes(path.read_bytes()[:-2000])
    assert export(copy, "--out", tmp_path / "out") == 1
    assert "skipped e1" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"e2", "bare", "labels.json"}
    assert export(copy, "--out", tmp_path / "strict", "--strict", "--exam", "e1", "--exam", "e2") == 1
    assert not (tmp_path / "strict" / "e2").exists()
