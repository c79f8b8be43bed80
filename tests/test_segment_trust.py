"""``deepatlas segment`` with trust: what is left out, where trust is written, and what an earlier run left behind."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from affine_model import LABELS, AffineModel, exam, grid_of
from make_dicom import write_ct

from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.errors import DeepAtlasError
from deepatlas.io.codec import write_volume
from deepatlas.localize.segment import segment
from deepatlas.localize.template.build import build_template
from deepatlas.localize.trust.estimate import Trust

TOLD = {
    "liver": Trust(0.9, 0.8),
    "spleen": Trust(0.5, 0.4),
    "heart": Trust(None, None, "no labelled exam of the calibration shows it"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A labelled exam, the same anatomy as a DICOM series, and a template that says that it is calibrated."""
    root = tmp_path_factory.mktemp("trust")
    ct, seg = exam(grid_of(spacing=(3.0, 3.0, 3.0)), "e1")
    write_volume(root / "data" / "e1" / "ct.nii.gz", ct)
    write_volume(root / "data" / "e1" / "seg.nii.gz", seg)
    (root / "data" / "labels.json").write_text(json.dumps(LABELS))
    template = build_template(AffineModel(), root / "data", ["e1"], size=64)
    template.save(root / "plain.h5")
    replace(template, meta={**template.meta, "trust": {"version": 1}}).save(root / "t.h5")
    oblique = grid_of(spacing=(2.6, 3.0, 4.5), degrees=(14.0, -9.0, 20.0))
    ct, _ = exam(oblique)
    write_ct(root / "scan", ct.array, oblique.affine)
    return SimpleNamespace(
        root=root, exam=root / "data" / "e1", scan=root / "scan", volume=ct, template=template
    )


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """The model of the anatomy, and what a calibration would say of its masks."""

    def known(name, **settings):
        model = AffineModel()
        model.refine, model.average = settings["refine"], settings["average"]
        return model

    monkeypatch.setattr(Model, "load", known)
    monkeypatch.setattr(
        "deepatlas.localize.segment.exam_trust",
        lambda *_, threshold, places: SimpleNamespace(structures=TOLD),
    )


def run(capsys, made, exam_path, out, *more, template="t.h5"):
    where = ["--model", "m", "--template", str(made.root / template), str(exam_path), "--out", str(out)]
    code = cli.main(["segment", *where, "--quiet", *map(str, more)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(path):
    with path.open(newline="") as file:
        return {row["structure"]: row for row in csv.DictReader(file)}


def test_masks_below_and_masks_that_nobody_can_judge_are_left_out_everywhere(made, tmp_path, capsys):
    code, text, err = run(
        capsys,
        made,
        made.exam,
        tmp_path,
        "--min-trust",
        "0.75",
        "--masks",
        "--statistics",
        "--probabilities",
        "--json",
    )
    assert code == 0
    low, untold = (
        "predicted Dice 0.50, below 0.75",
        "no predicted Dice: no labelled exam of the calibration shows it",
    )
    assert err == f"deepatlas: e1: left out by --min-trust: spleen: {low}; heart: {untold}\n"
    shown = np.unique(np.asarray(nibabel.load(tmp_path / "e1.nii.gz").dataobj)).tolist()
    assert shown == [0, LABELS["liver"]]
    assert sorted(p.name for p in (tmp_path / "e1").rglob("*.nii.gz")) == ["liver.nii.gz", "liver.nii.gz"]
    table = rows(tmp_path / "trust.csv")
    assert [table[name]["reason"] for name in ("liver", "spleen", "heart")] == [
        "",
        f"left out: {low}",
        f"left out: {untold}",
    ]
    measured = rows(tmp_path / "statistics.csv")
    assert list(measured) == ["liver"]
    assert (measured["liver"]["trust"], measured["liver"]["bound"]) == ("0.900", "0.800")
    data = json.loads(text)
    assert data["left_out"] == {"e1": [f"spleen: {low}", f"heart: {untold}"]}
    assert data["exams"]["e1"]["structures"]["spleen"]["left_out"] == low
    assert "left_out" not in data["exams"]["e1"]["structures"]["liver"]


def test_a_template_without_a_calibration_cannot_choose_masks(made, tmp_path, capsys):
    code, _, err = run(capsys, made, made.exam, tmp_path, "--min-trust", "0.5", template="plain.h5")
    assert code == 1 and "--min-trust" in err and "`deepatlas calibrate`" in err and err.count("\n") == 1
    code, _, err = run(capsys, made, made.exam, tmp_path, "--min-trust", "0.5", "--threshold", "0.6")
    assert code == 1 and "used with --threshold 0.6; give one of the two" in err
    with pytest.raises(DeepAtlasError, match="no calibration"):
        segment(AffineModel(), made.volume, made.template, least_trust=0.5)


@pytest.mark.parametrize("form", ["seg-nrrd", "dicom-seg", "rtstruct"])
def test_segmentations_and_dicom_say_the_predicted_dice(made, tmp_path, capsys, form):
    pytest.importorskip("highdicom")
    assert run(capsys, made, made.scan, tmp_path, "--min-trust", "0.4", "--format", form)[0] == 0
    if form == "seg-nrrd":
        (path,) = tmp_path.glob("*.seg.nrrd")
        header = nrrd.read_header(str(path))
        said = {header[f"Segment{i}_Name"]: header[f"Segment{i}_Tags"] for i in range(2)}
        said = {name: tag.removeprefix("DeepATLAS.Remark:").removesuffix("|") for name, tag in said.items()}
    elif form == "dicom-seg":
        (path,) = tmp_path.glob("*.seg.dcm")
        said = {s.SegmentLabel: s.SegmentDescription for s in pydicom.dcmread(path).SegmentSequence}
    else:
        (path,) = tmp_path.glob("*.rtstruct.dcm")
        said = {r.ROIName: r.ROIDescription for r in pydicom.dcmread(path).StructureSetROISequence}
    assert said == {
        "liver": "predicted Dice 0.90, which reaches 0.80 in 9 of 10 exams",
        "spleen": "predicted Dice 0.50, which reaches 0.40 in 9 of 10 exams",
    }


def test_what_an_earlier_run_said_of_other_masks_does_not_stay(made, tmp_path, capsys):
    assert run(capsys, made, made.exam, tmp_path, "--trust", "--statistics", "--masks", "--preview")[0] == 0
    assert len(rows(tmp_path / "trust.csv")) == len(rows(tmp_path / "statistics.csv")) == 3
    code, _, err = run(capsys, made, made.exam, tmp_path, "--threshold", "0.6", "--statistics")
    assert code == 0
    assert not rows(tmp_path / "trust.csv") and len(rows(tmp_path / "statistics.csv")) == 3
    tables, files = err.splitlines()
    assert "what tables said of the masks before was taken out (1 entry)" in tables
    assert "e1.png, e1/liver.nii.gz" in files and "from an earlier run" in files
    # Where everything is written again there is nothing to tell, and tables of another kind are not touched.
    (tmp_path / "trust.csv").write_text("a,b\n1,2\n")
    code, _, err = run(capsys, made, made.exam, tmp_path, "--masks", "--preview", "--statistics")
    assert (code, err) == (0, "")
    assert (tmp_path / "trust.csv").read_text() == "a,b\n1,2\n"
