"""evaluate_cohort on a cohort whose best possible score is known."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from affine_model import GRIDS, LABELS, AffineModel, exam

import deepatlas_ops as ops
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.evaluate.cohort import evaluate_cohort
from deepatlas.evaluate.exam_figure import atlas_slices
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.evaluate.rows import Row
from deepatlas.evaluate.tables import summary_table
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.file import Template
from deepatlas.space.volume import Volume


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three labelled exams on different grids, one of them without a spleen, and an unlabelled one."""
    root = tmp_path_factory.mktemp("cohort")
    for name, grid in (("e1", "coarse"), ("e2", "sagittal"), ("e10", "oblique"), ("e11", "coarse")):
        ct, seg = exam(GRIDS[grid], name)
        if name == "e10":
            seg = Volume(np.where(seg.array == LABELS["spleen"], 0, seg.array), seg.grid)
        if name != "e11":
            write_volume(root / name / "seg.nii.gz", seg)
        write_volume(root / name / "ct.nii.gz", ct)
    (root / "labels.json").write_text(json.dumps(LABELS))
    return root


@pytest.fixture(scope="module")
def template(cohort):
    return build_template(AffineModel(), cohort, ["e1"], size=64, appearance=False)


@pytest.fixture(scope="module")
def result(cohort, template, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "evaluation"
    lines = []
    return evaluate_cohort(AffineModel(), template, cohort, out, progress=lines.append), out, lines


def test_template_meta_names_its_exams_and_model(template):
    assert template.meta["exams"] == ["e1"] and template.meta["model"] == "affine-model"
    assert template.labels == LABELS


@pytest.mark.slow(1)
def test_metrics_csv_has_a_row_for_every_drawn_structure(result):
    _, out, _ = result
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert list(rows[0]) == Row.columns()
    found = {(r["exam"], r["structure"]) for r in rows}
    assert found == {(e, s) for e in ("e1", "e2", "e10") for s in LABELS} - {("e10", "spleen")}
    assert min(float(r["dice"]) for r in rows) > 0.9
    assert max(float(r["hd95_mm"]) for r in rows) < 3.5  # about a voxel
    assert max(float(r["asd_mm"]) for r in rows) < 1.5 and min(float(r["surface_dice"]) for r in rows) > 0.9
    volumes = {r["structure"]: float(r["reference_ml"]) for r in rows if r["exam"] == "e2"}
    assert volumes["liver"] == pytest.approx(4 / 3 * np.pi * 22 * 17 * 19 / 1000, rel=0.02)


def test_summary_json_holds_what_is_returned(result):
    summary, out, lines = result
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["dice"] == summary["overall"]["dice_mean_of_structures"] > 0.9
    assert summary["structures"]["spleen"]["dice"]["n"] == 2
    assert summary["structures"]["liver"]["dice"]["n"] == summary["overall"]["exams"] == 3
    assert summary["unlabelled"] == ["e11"] and summary["skipped"] == {}
    assert "eq. 16" in summary["conventions"]["hd95"] and summary["conventions"]["tolerance_mm"] == 3.0
    assert set(summary["seconds"]["per_exam"]) == {"e1", "e2", "e10"}
    assert {"deepatlas", "torch", "python"} <= set(summary["versions"])
    assert len(lines) == 3 and "1/3 e1: mean Dice " in lines[0]


def test_report_is_one_file_with_every_picture(result):
    _, out, _ = result
    page = (out / "report.html").read_text()
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}"', page)) == 4
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # nothing is loaded from elsewhere
    assert "eq. 16" in page and "e11" in page and "not drawn: spleen" in page
    names = {p.name for p in (out / "figures").iterdir()}
    assert names == {"e1.png", "e2.png", "e10.png", "dice.png"}


def test_the_exams_of_the_template_are_said_where_they_are_scored(result):
    summary, out, _ = result
    said = "the template was made from e1, whose scores are too good"
    assert summary["in_template"] == ["e1"]
    assert said in summary_table(summary).splitlines() and said in (out / "report.html").read_text()
    assert "too good" not in summary_table(summary | {"in_template": []})


def test_bad_exams_are_listed_and_with_strict_they_end_the_run(cohort, template, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for name in ("e1", "e2"):
        (root / name).symlink_to(cohort / name)
    (root / "labels.json").write_text(json.dumps(LABELS))
    (root / "<b>bad").mkdir()
    (root / "<b>bad" / "ct.nii.gz").write_bytes(b"nothing")
    (root / "<b>bad" / "seg.nii.gz").write_bytes(b"nothing")
    (root / "mismatch").mkdir()
    (root / "mismatch" / "ct.nii.gz").symlink_to(cohort / "e1" / "ct.nii.gz")
    (root / "mismatch" / "seg.nii.gz").symlink_to(cohort / "e2" / "seg.nii.gz")
    out = tmp_path / "out"
    summary = evaluate_cohort(AffineModel(), template, root, out, pictures=False)
    assert set(summary["skipped"]) == {"<b>bad", "mismatch"} and summary["overall"]["exams"] == 2
    page = (out / "report.html").read_text()
    assert "mismatch" in page and "<b>bad" not in page and "&lt;b&gt;bad" in page
    assert not (out / "figures").exists()
    with pytest.raises(DataError, match="bad/ct.nii.gz"):
        evaluate_cohort(AffineModel(), template, root, tmp_path / "strict", strict=True, pictures=False)
    assert not (tmp_path / "strict").exists()
    with pytest.raises(DataError, match="no labelled exam could be read"):
        evaluate_cohort(AffineModel(), template, root, tmp_path / "none", exams=["mismatch"], pictures=False)


def test_requests_that_cannot_be_met_are_refused(cohort, template, tmp_path):
    def refused(words, model=None, **change):
        with pytest.raises(DeepAtlasError, match=words):
            evaluate_cohort(
                model or AffineModel(), template, cohort, tmp_path / "x", pictures=False, **change
            )

    refused("no exam 'e99'", exams=["e99"])
    refused("exam e11 has no seg file", exams=["e11"])
    refused("hd95 must be one of", hd95="p95")
    refused("tolerance must be a finite number of mm", tolerance=-1.0)
    other = AffineModel()
    other.fingerprint = "other"
    refused("made for the model affine-model", model=other)
    with pytest.raises(DataError, match="labels.json: no structure 'kidney'; did you mean|there are"):
        build_template(AffineModel(), cohort, ["e1"], ["kidney"])


def test_structures_that_the_data_spell_otherwise_are_scored_and_the_names_are_said(
    cohort, template, tmp_path
):
    data = tmp_path / "data"
    shutil.copytree(cohort / "e2", data / "e2")
    renamed = {"liver": "Hepar", "spleen": "SPLEEN", "kidney": "kidney"}
    table = {renamed.get(name, name): i for name, i in LABELS.items()}
    (data / "labels.json").write_text(json.dumps(table))
    summary = evaluate_cohort(AffineModel(), template, data, tmp_path / "out", pictures=False)
    assert summary["synonyms"] == {"liver": "Hepar", "spleen": "SPLEEN"}
    assert set(summary["structures"]) == set(LABELS) and summary["dice"] > 0.8
    line = "named otherwise in the data: liver (Hepar), spleen (SPLEEN)"
    assert line in summary_table(summary) and line in (tmp_path / "out" / "report.html").read_text()
    (data / "labels.json").write_text(json.dumps({**table, "Spl-een": 99}))
    with pytest.raises(DataError, match="labels.json: cannot tell whether SPLEEN or Spl-een is Spleen"):
        evaluate_cohort(
            AffineModel(),
            Template(template.masks[:1], ("Spleen",), (1,), template.meta),
            data,
            tmp_path / "o",
        )


def test_the_tolerance_of_surface_dice_is_a_setting(cohort, template, tmp_path):
    one = evaluate_cohort(
        AffineModel(), template, cohort, tmp_path / "a", ["e2"], pictures=False, tolerance=0.0
    )
    two = evaluate_cohort(
        AffineModel(), template, cohort, tmp_path / "b", ["e2"], pictures=False, tolerance=9.0
    )
    scores = [s["overall"]["surface_dice_mean_of_structures"] for s in (one, two)]
    assert scores[0] < scores[1] == 1.0
    assert "9.0 mm" in (tmp_path / "b" / "report.html").read_text()


def test_a_full_disk_ends_the_run_instead_of_skipping_exams(cohort, template, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DataError, match=r"e1\.png: cannot write: the disk is full"):
        evaluate_cohort(AffineModel(), template, cohort, tmp_path / "out")


def test_reference_and_template_may_use_different_ids(cohort, template, tmp_path):
    """Structures are matched by name, so the same masks under other ids must score the same."""
    renamed = Template(template.masks, template.names, (41, 42, 43), template.meta)
    a = evaluate_cohort(AffineModel(), template, cohort, tmp_path / "a", exams=["e2"], pictures=False)
    b = evaluate_cohort(AffineModel(), renamed, cohort, tmp_path / "b", exams=["e2"], pictures=False)
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()
    assert a["dice"] == b["dice"]


def test_the_warped_atlas_lies_on_the_exam():
    """The atlas of the known model is the body, so warped onto an exam it must be the body of the exam."""
    model, (ct, _) = AffineModel(), exam(GRIDS["oblique"])
    ct = ct.canonical()
    found = model.map_exam(ct)
    index = (40, 25, 33)
    cuts = atlas_slices(model.atlas, found.field, ct.grid, index)
    fine = found.field.on(ct.grid)[None]
    whole = ops.resample(model.atlas, fine.clamp(-1, 1))[0, 0].numpy()
    # Where the map leaves the atlas, or the grid of the model ends, there is nothing to show.
    whole[(fine[0].abs() > 1).any(0).numpy() | ~found.field.inside(ct.grid)] = np.nan
    for axis, (cut, at) in enumerate(zip(cuts, index, strict=True)):
        np.testing.assert_allclose(cut, np.take(whole, at, axis=axis), atol=1e-4)
        assert dice(cut[None] > 0.27, np.take(ct.array, at, axis=axis)[None] > -500) > 0.95
