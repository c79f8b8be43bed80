"""``deepatlas segment`` in every format, and from DICOM through ``prepare`` back to the same masks."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from affine_model import LABELS, AffineModel, exam, grid_of
from exported_series import masks
from make_dicom import write_ct
from prepare_here import prepare_here

import deepatlas
from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.errors import DataWarning, WriteError
from deepatlas.exams.exam_file import ExamFile
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.intake.structures.read import read_structures
from deepatlas.io.codec import write_volume
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.read import read_folder
from deepatlas.localize.segment import segment
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.file import Template
from deepatlas.model.fit import Fit
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume

OBLIQUE = grid_of(spacing=(2.6, 3.0, 4.5), degrees=(14.0, -9.0, 20.0))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A labelled exam as NIfTI with its template, and the same anatomy as a DICOM series on an oblique grid."""
    root = tmp_path_factory.mktemp("formats")
    ct, seg = exam(grid_of(spacing=(3.0, 3.0, 3.0)), "e1")
    write_volume(root / "data" / "e1" / "ct.nii.gz", ct)
    write_volume(root / "data" / "e1" / "seg.nii.gz", seg)
    (root / "data" / "labels.json").write_text(json.dumps(LABELS))
    build_template(AffineModel(), root / "data", ["e1"], size=64).save(root / "t.h5")
    ct, _ = exam(OBLIQUE)
    write_ct(root / "scan", ct.array, OBLIQUE.affine)
    return root


@pytest.fixture(autouse=True)
def known_model(monkeypatch):
    def known(name, **settings):
        model = AffineModel()
        model.refine, model.average = settings["refine"], settings["average"]
        return model

    monkeypatch.setattr(Model, "load", known)


@pytest.fixture(scope="module")
def truth(files) -> Labels:
    """What the model finds in the series, in memory."""
    return segment(AffineModel(), read_volume(files / "scan"), Template.load(files / "t.h5"))


def run(capsys, files, exam, out, *more) -> tuple[int, dict, str]:
    argv = [
        "segment",
        "--model",
        "affine",
        "--template",
        files / "t.h5",
        exam,
        "--out",
        out,
        "--json",
        "--quiet",
    ]
    code = cli.main([str(a) for a in (*argv, *more)])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


@pytest.mark.parametrize(
    ("format", "name"), [("dicom-seg", "scan.seg.dcm"), ("rtstruct", "scan.rtstruct.dcm")]
)
def test_a_dicom_object_holds_what_was_found(format, name, files, truth, tmp_path, capsys):
    code, result, err = run(capsys, files, files / "scan", tmp_path, "--format", format)
    assert code == 0 and not err and result["segmented"] == {"scan": str(tmp_path / name)}
    assert {p.name for p in tmp_path.iterdir()} == {name}
    reading = read_folder(files / "scan")
    found = read_structures([Found(tmp_path / name, name)], reading.volume, LABELS, series=reading.series)
    assert not found.refused and sorted(found.present) == sorted(LABELS)
    for identity in LABELS.values():
        np.testing.assert_array_equal(found.labels.mask(identity), truth.mask(identity))
    assert pydicom.dcmread(tmp_path / name, stop_before_pixels=True).SoftwareVersions == deepatlas.__version__


@pytest.mark.parametrize("format", ["dicom-seg", "rtstruct", "seg-nrrd"])
def test_a_structure_without_a_voxel_is_told_where_the_format_has_no_place_for_it(
    format, files, tmp_path, capsys, monkeypatch
):
    from deepatlas.localize import segment as module

    whole = module.segment

    def without_spleen(*args, **options):
        labels = whole(*args, **options)
        return replace(labels, array=np.where(labels.array == LABELS["spleen"], 0, labels.array))

    monkeypatch.setattr(module, "segment", without_spleen)
    code, result, err = run(capsys, files, files / "scan", tmp_path, "--format", format)
    assert code == 0
    if format == "seg-nrrd":
        assert "notes" not in result or result["notes"] == {}
    else:
        assert err == "deepatlas: warning: scan: spleen: has no voxel; left out\n"


@pytest.mark.parametrize(("more", "name"), [(("--format", "nrrd"), "scan.nrrd"), (("--suffix", ".mha"), "scan.mha"),
                                            ((), "scan.nii.gz")])  # fmt: skip
def test_a_label_image_comes_with_names_and_colours(more, name, files, truth, tmp_path, capsys):
    code, result, _ = run(capsys, files, files / "scan", tmp_path, *more)
    assert code == 0 and {p.name for p in tmp_path.iterdir()} == {
        name,
        "labels.json",
        "labels.label",
        "labels.ctbl",
    }
    got = read_volume(tmp_path / name, labels=True)
    np.testing.assert_array_equal(got.array, truth.array)
    assert got.grid.matches(truth.grid, 1e-3)


def test_statistics_preview_probabilities_and_masks(files, truth, tmp_path, capsys):
    extras = ("--statistics", "--preview", "--probabilities", "--masks")
    code, result, _ = run(capsys, files, files / "scan", tmp_path, *extras)
    assert code == 0
    whole = json.loads((tmp_path / "statistics.json").read_text())["scan"]
    for name, identity in LABELS.items():
        mask = truth.mask(identity)
        about = whole["structures"][name]
        assert about["voxels"] == mask.sum() and about["coverage"] == pytest.approx(1, abs=0.02)
        assert about["mean"] == pytest.approx(60 + 10 * identity, abs=15)
        soft = read_volume(tmp_path / "scan" / "probabilities" / f"{name}.nii.gz", labels=True)
        assert soft.array.max() > 200 and soft.array[mask].min() > 60
        assert read_volume(tmp_path / "scan" / f"{name}.nii.gz", labels=True).array.sum() == mask.sum()
    assert result["statistics"]["scan"][0]["name"] == next(iter(whole["structures"]))
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "statistics.csv"
    ).exists()


def test_a_truncated_scan_shows_part_of_a_structure(files, tmp_path, capsys):
    ct, _ = exam(grid_of(spacing=(3.0, 3.0, 3.0)), "cut")
    # The liver reaches from -27 to 11 mm along z; the exam ends in its middle.
    z = int(round(float(ct.grid.world_to_voxel([0, 0, -8.0])[2])))
    part = ct.cropped((z, 0, 0), (ct.grid.shape[0] - z, *ct.grid.shape[1:]))
    # The part of a ball beyond a plane; the face of the first voxels is the end of the exam.
    cut = (float(ct.grid.voxel_to_world([0, 0, z - 0.5])[2]) + 8.0) / 19.0
    seen = (2 - 3 * cut + cut**3) / 4
    write_volume(tmp_path / "cut" / "ct.nii.gz", part)
    code, result, _ = run(capsys, files, tmp_path / "cut", tmp_path / "o", "--statistics")
    shares = {s["name"]: s["coverage"] for s in result["statistics"]["cut"]}
    assert code == 0 and shares["liver"] == pytest.approx(seen, abs=0.06) and shares["heart"] > 0.95


@pytest.mark.slow(1)
def test_a_source_that_is_no_series_is_one_line_and_nothing_is_written(files, tmp_path, capsys):
    for format in ("dicom-seg", "rtstruct"):
        code, result, err = run(capsys, files, files / "data" / "e1", tmp_path / "o", "--format", format)
        assert code == 1 and "is no DICOM series, to which --format" in result["failed"]["e1"]
        assert err.count("\n") == 1 and not (tmp_path / "o").exists()
    with pytest.raises(SystemExit):
        run(capsys, files, files / "scan", tmp_path / "o", "--format", "nrrd", "--suffix", ".nii")
    capsys.readouterr()
    code, result, err = run(capsys, files, files / "scan", tmp_path / "o", "--labelmap")
    assert code == 1 and "give --format dicom-seg as well" in result["error"]


def test_dicom_of_an_exam_that_the_model_does_not_know_says_so(truth, tmp_path):
    for fit, words in (
        (Fit(0.1, 0.5), "DeepATLAS structures; EXAM NOT KNOWN TO THE MODEL"),
        (Fit(0.8, 0.5), "DeepATLAS structures"),
    ):
        for format in ("dicom-seg", "rtstruct"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)
                replace(truth, fit=fit).save(tmp_path / "a.dcm", format)
            written = pydicom.dcmread(tmp_path / "a.dcm", stop_before_pixels=True)
            assert written.SeriesDescription == words and len(words) <= 64
            described = written.get("StructureSetDescription", "")
            assert described == (words if format == "rtstruct" and fit.known is False else "")


def test_save_writes_every_format_from_python(files, truth, tmp_path):
    for format, name in (
        ("dicom-seg", "a.dcm"),
        ("rtstruct", "b.dcm"),
        ("nifti", "c.nii.gz"),
        (None, "d.nrrd"),
    ):
        assert truth.save(tmp_path / name, format) == tmp_path / name
    kinds = [pydicom.dcmread(tmp_path / n, stop_before_pixels=True).Modality for n in ("a.dcm", "b.dcm")]
    assert kinds == ["SEG", "RTSTRUCT"]
    np.testing.assert_array_equal(read_volume(tmp_path / "c.nii.gz", labels=True).array, truth.array)
    with pytest.raises(WriteError, match=r"a rtstruct file ends with \.dcm"):
        truth.save(tmp_path / "e.nii.gz", "rtstruct")
    with pytest.raises(WriteError, match="no format 'stl'"):
        truth.save(tmp_path / "e.stl", "stl")
    truth.names["gone"] = 99
    with pytest.warns(DataWarning, match="gone: has no voxel"):
        truth.save(tmp_path / "f.dcm", "rtstruct")
    del truth.names["gone"]
    measured = {s.name: s for s in truth.statistics(read_volume(files / "scan"))}
    assert measured["liver"].coverage is not None
    assert [s.ml for s in deepatlas.statistics(truth, read_volume(files / "scan"))] == [
        s.ml for s in measured.values()
    ]


@pytest.mark.slow(5)
def test_overlapping_structures_go_through_prepare_to_the_same_masks(tmp_path):
    names = {"liver": 4, "kidney_left": 2, "heart": 9, "gtv": 7}
    for number, (format, folder) in enumerate((("dicom-seg", "one"), ("rtstruct", "two"))):
        ct, _ = exam(OBLIQUE)
        series = tmp_path / "src" / folder / "ct"
        write_ct(series, ct.array + number, OBLIQUE.affine, tags={"PatientID": folder})
        grid = read_folder(series).volume.grid
        shapes = masks(grid.shape)
        shapes["heart"] = shapes.pop("tumour (odd)")
        drawn = [(names[n], BoxMask.of(shapes[n])) for n in names]
        labels = Labels.painted(drawn, grid, np.uint8, str(series))
        assert labels.hidden
        deepatlas.write_labels(
            tmp_path / "src" / folder / f"{folder}.dcm", labels, names, format, source=series
        )
    summary = prepare_here(tmp_path / "src", tmp_path / "dst")
    exams = list(Dataset(tmp_path / "dst"))
    assert len(exams) == 2, summary
    for record in exams:
        with ExamFile(record.path) as file:
            assert sorted(file.present) == sorted(names)
            got = file.labels()
            for name in names:
                np.testing.assert_array_equal(got.mask(file.names[name]), shapes[name], err_msg=name)
            assert isinstance(file.volume(), Volume)
