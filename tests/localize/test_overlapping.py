"""Structures that overlap, from the drawing to the score: each has its whole mask, whatever lies on it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from affine_model import GRIDS, LABELS, AffineModel, exam, world

from deepatlas.cli import main as cli
from deepatlas.evaluate.cohort import evaluate_cohort
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.exams.exam_file import write_exam
from deepatlas.intake.dataset.folder import exam_path, finish_dataset
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.localize.segment import segment
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import Template
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume

# Balls around one place in the liver: PTV holds CTV holds GTV. The PTV reaches out of the liver.
CENTRE, RADII = (22.0, 4.0, -8.0), {"ptv": 24.0, "ctv": 17.0, "gtv": 9.0}
TABLE = {"ptv": 11, "ctv": 12, "gtv": 13, **LABELS}
# From the lowest to the uppermost.
ORDER = ("ptv", "liver", "ctv", "gtv", "heart", "spleen")


def drawn_on(grid) -> tuple[Volume, dict[str, np.ndarray]]:
    ct, seg = exam(grid)
    away = np.linalg.norm(world(grid) - CENTRE, axis=-1)
    masks = {name: away < radius for name, radius in RADII.items()}
    return ct, masks | {name: seg.array == i for name, i in LABELS.items()}


def labels_of(masks, grid) -> Labels:
    return Labels.painted(((TABLE[n], BoxMask.of(masks[n])) for n in ORDER), grid, np.uint8, "exam")


def labelled(model, ct, seg) -> LabelledExam:
    found = model.map_exam(ct)
    return LabelledExam(found.field, seg)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of two exams with overlaps, one of them on an oblique, anisotropic, flipped grid."""
    folder = tmp_path_factory.mktemp("overlaps") / "set"
    with Manifest(folder.parent / "m.sqlite") as manifest:
        for name, grid in (("e1", GRIDS["plain"]), ("e2", GRIDS["sagittal"])):
            ct, masks = drawn_on(grid)
            seg = labels_of(masks, grid)
            manifest.add_exam(write_exam(exam_path(folder, name), ct, seg, TABLE, {}, []), name, [])
    finish_dataset(folder, [folder.parent / "m.sqlite"])
    return folder


@pytest.fixture(scope="module")
def template(dataset):
    return build_template(AffineModel(), dataset, ["e1"], size=64, appearance=False)


@pytest.mark.slow(1)
def test_the_template_of_a_covered_structure_is_that_of_its_mask_alone(dataset, template):
    ct, masks = drawn_on(GRIDS["plain"])
    model = AffineModel()
    for name in RADII:
        alone = Volume(masks[name].astype(np.uint8), ct.grid, "alone")
        expected = estimate_template([labelled(model, ct, alone)], {name: 1}, 64, tolerance=1e-3)
        np.testing.assert_allclose(template.select([name]).masks[0], expected.masks[0], atol=2e-3)
    assert template.masks[template.names.index("ptv")].max() > 0.95
    # The one that the label images show is the upper one.
    pairs = {tuple(pair) for pair in template.meta["overlaps"]}
    assert pairs == {(a, b) for i, a in enumerate(ORDER[:4]) for b in ORDER[i + 1 : 4]}
    assert [template.names[row] for row in template.stack if template.names[row] in ORDER[:4]] == list(
        ORDER[:4]
    )


@pytest.mark.parametrize("name", ["plain", "oblique", "sagittal"])
def test_every_structure_is_found_as_a_whole_on_any_grid(template, name):
    ct, masks = drawn_on(GRIDS[name])
    found = segment(AffineModel(), ct, template)
    scores = {n: dice(masks[n], found.mask(TABLE[n])) for n in masks}
    # The sagittal grid has slices of 3 mm, and the GTV a radius of 9 mm.
    assert min(scores.values()) > (0.91 if name == "sagittal" else 0.93), scores
    # The label image shows the inner ones on top.
    shown = labels_of(masks, ct.grid).array
    assert min(dice(shown == i, found.array == i) for i in TABLE.values()) > 0.88
    # Structures that were not drawn over each other compete for each voxel.
    assert not (found.mask(TABLE["spleen"]) & found.mask(TABLE["liver"])).any()
    assert set(found.hidden) == {TABLE["ptv"], TABLE["ctv"], TABLE["liver"]}


def test_without_overlaps_in_its_exams_a_template_makes_label_images_alone(template):
    ct, _ = drawn_on(GRIDS["plain"])
    bare = Template(template.masks, template.names, template.ids, {})
    found = segment(AffineModel(), ct, bare)
    assert not found.hidden and not bare.overlapping.any()
    some = segment(AffineModel(), ct, template.select(["liver", "spleen", "heart"]))
    assert not some.hidden


def test_contradicting_orders_do_not_matter(template):
    pairs = [["ptv", "ctv"], ["ctv", "gtv"], ["gtv", "ptv"], ["ptv", "nobody"]]
    odd = Template(template.masks, template.names, template.ids, {"overlaps": pairs})
    assert sorted(odd.stack) == list(range(len(odd.names))) and odd.overlapping.sum() == 6


def test_a_little_carelessness_is_no_overlap():
    grid = GRIDS["coarse"]
    ct, masks = drawn_on(grid)
    touching = np.argwhere(masks["spleen"])[0]
    liver = masks["liver"].copy()
    liver[tuple(touching)] = True
    seg = Labels.painted([(5, BoxMask.of(liver)), (2, BoxMask.of(masks["spleen"]))], grid, np.uint8, "exam")
    assert seg.hidden
    made = estimate_template([labelled(AffineModel(), ct, seg)], {"liver": 5, "spleen": 2}, 32)
    assert "overlaps" not in made.meta


def test_scores_are_those_of_whole_masks(dataset, template, tmp_path):
    summary = evaluate_cohort(AffineModel(), template, dataset, tmp_path / "out", ["e2"], pictures=True)
    for name in RADII:
        assert summary["structures"][name]["dice"]["mean"] > 0.91
    _, masks = drawn_on(GRIDS["sagittal"])
    rows = [line.split(",") for line in (tmp_path / "out" / "metrics.csv").read_text().splitlines()]
    place = rows[0].index("reference_ml")
    volumes = {row[1]: float(row[place]) for row in rows[1:]}
    voxel = GRIDS["sagittal"].voxel_volume / 1000
    for name, mask in masks.items():
        assert volumes[name] == pytest.approx(mask.sum() * voxel, rel=1e-4)
    assert (tmp_path / "out" / "figures" / "e2.png").stat().st_size > 10_000


def test_masks_are_written_whole_on_the_exams_own_grid(template, tmp_path, monkeypatch, capsys):
    model = AffineModel()
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *args, **options: model)
    grid = GRIDS["sagittal"]
    ct, masks = drawn_on(grid)
    nifti = nib.Nifti1Image(ct.array.transpose(2, 1, 0).astype(np.int16), grid.affine)
    (tmp_path / "exam").mkdir()
    nib.save(nifti, tmp_path / "exam" / "ct.nii.gz")
    template.save(tmp_path / "t.h5")
    argv = [
        "segment",
        "--model",
        "m",
        "--template",
        str(tmp_path / "t.h5"),
        str(tmp_path / "exam"),
        "--any-model",
    ]
    assert cli.main([*argv, "--out", str(tmp_path / "plain"), "--quiet"]) == 0
    assert {p.name for p in (tmp_path / "plain").iterdir()} == {
        "exam.nii.gz", "labels.json", "labels.label", "labels.ctbl"
    }  # fmt: skip
    assert cli.main([*argv, "--out", str(tmp_path / "out"), "--quiet", "--masks"]) == 0
    assert {p.name for p in (tmp_path / "out" / "exam").iterdir()} == {f"{n}.nii.gz" for n in TABLE}
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    shown = np.asarray(nib.load(tmp_path / "out" / "exam.nii.gz").dataobj)
    for name, identity in labels.items():
        image = nib.load(tmp_path / "out" / "exam" / f"{name}.nii.gz")
        mask = np.asarray(image.dataobj)
        np.testing.assert_allclose(image.affine, grid.affine, atol=1e-4)
        assert image.get_data_dtype() == np.uint8 and set(np.unique(mask)) == {0, 1}
        assert (mask[shown == identity] == 1).all()
        assert dice(masks[name], mask.transpose(2, 1, 0)) > 0.91
    capsys.readouterr()
    # Masks would replace the exam: one of the structures is called as its file.
    Template(template.masks[:1], ("ct",), (1,), {}).save(tmp_path / "ct.h5")
    argv[4] = str(tmp_path / "ct.h5")
    before = (tmp_path / "exam" / "ct.nii.gz").read_bytes()
    assert cli.main([*argv, "--out", str(tmp_path), "--quiet", "--masks"]) == 1
    assert "is read by this command and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "exam" / "ct.nii.gz").read_bytes() == before


def test_structures_whose_masks_would_have_one_file_are_refused(template, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *args, **options: AffineModel())
    ct, _ = drawn_on(GRIDS["coarse"])
    nib.save(nib.Nifti1Image(ct.array.transpose(2, 1, 0), ct.grid.affine), tmp_path / "x.nii.gz")
    Template(template.masks[:2], ("a/b", "A:b"), (1, 2), {}).save(tmp_path / "t.h5")
    argv = ["segment", "--model", "m", "--template", str(tmp_path / "t.h5"), str(tmp_path / "x.nii.gz")]
    assert cli.main([*argv, "--out", str(tmp_path / "out"), "--quiet", "--masks"]) == 1
    assert "'a/b' and 'A:b': their masks would have one file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
