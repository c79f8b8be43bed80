"""An exam whose first series cannot be used is made of the next best one, and what was tried is reported."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pydicom
import pytest
from drawn_objects import rtstruct, saved
from make_dicom import JPEG2000Lossless, write_ct, write_localizer
from small_exams import body

from deepatlas.cli import main as cli
from deepatlas.errors import DataError
from deepatlas.exams.exam_file import ExamFile
from deepatlas.intake.dataset.check import check_dataset
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.intake.run import work
from deepatlas.intake.run.pipeline import Options, prepare
from deepatlas.io.dicom import read as dicom_read

# {number of a series: number of its slices}.
SIZES = {2: 12, 5: 8, 7: 6}


pytestmark = pytest.mark.usefixtures("in_this_process")


def run(src, dst, **options):
    return prepare(src, dst, Options(progress=False, **{"workers": 1, "keep_ids": True, **options}))


def write_exam(folder, patient="P1", numbers=(2, 5), **more):
    """An exam with several series of different values, an RTSTRUCT for each of them, and a scout."""
    study = f"1.2.3.{patient[1:]}"
    for number in numbers:
        ct, _ = body((SIZES[number], 40, 40), seed=number)
        files = write_ct(
            folder / str(number), np.rint(ct.array.clip(min=-1024)), ct.grid.affine, study=study, number=number,
            frame="1.2.9", tags={"PatientID": patient}, **more,
        )  # fmt: skip
        slices = [pydicom.dcmread(f) for f in files]
        z = slices[3].ImagePositionPatient[2]
        square = np.array([[-20, -20, z], [20, -20, z], [20, 20, z], [-20, 20, z]], float)
        name = {2: "heart", 5: "heart", 7: "liver"}[number]
        saved(rtstruct(slices, {name: [square]}), folder / f"rs{number}.dcm")
    write_localizer(folder / "scout.dcm", study, tags={"PatientID": patient})
    return folder


def changed(path, change):
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path, enforce_file_format=True)


def surplus(folder):
    changed(sorted(folder.iterdir())[4], lambda ds: setattr(ds, "PixelData", ds.PixelData + bytes(64)))


def undecodable(folder):
    def spoil(ds):
        # Zeros replace the bytes that state size and coding.
        ds.PixelData = ds.PixelData[:20] + bytes(200) + ds.PixelData[220:]

    changed(sorted(folder.iterdir())[4], spoil)


def doubled(folder):
    path = sorted(folder.iterdir())[4]
    shutil.copy(path, folder / "again.dcm")

    def another(ds):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5.6.7"
        ds.PixelData = bytes(len(ds.PixelData))

    changed(folder / "again.dcm", another)


def gap(folder):
    by_place = sorted(folder.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    by_place[5].unlink()


def lines(dst, exam="P1"):
    """``{number of the series: reason}``."""
    with Dataset(dst).manifest() as manifest:
        return {line.series.split()[1]: line.reason for i, line in manifest.series() if i == exam}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (surplus, "tried first, but image 4 of 12: PixelData holds 64 bytes more"),
        (undecodable, "tried first, but image 4 of 12: its pixels cannot be decoded"),
        (doubled, "tried first, but two different images lie at slice"),
        (gap, "1 slice missing of 12: 1 after slice 5"),  # headers tell, so it is not tried
    ],
)
def test_the_next_best_series_is_taken_and_the_first_one_named(tmp_path, damage, why):
    syntax = {"syntax": JPEG2000Lossless} if damage is undecodable else {}
    src, dst = write_exam(tmp_path / "src", **syntax), tmp_path / "dst"
    damage(src / "2")
    summary = run(src, dst)
    assert summary.exams == 1 and not summary.refused and summary.labels == {"heart": 1}
    exam = Dataset(dst).exam("P1")
    assert exam.grid.shape[0] == SIZES[5] and exam.present == ["heart"]
    reasons = lines(dst)
    assert reasons["2"].startswith("not taken: ") and why in reasons["2"]
    assert reasons["5"].startswith("taken: ") and "localizer" in reasons["1"]
    page = (dst / "report.html").read_text()
    assert why.split(":")[0] in page and "series 2 (axial, 1" in page
    if damage is not gap:
        assert reasons["5"].endswith("of those that can be used")
        (warning,) = [w for w in exam.warnings if "tried first" in w]
        assert warning.startswith("series 2 (axial, 12 x 40 x 40, 4 x 4 x 5 mm): tried first, but ")
    with Dataset(dst).manifest() as manifest:  # what was drawn on the other series, once
        (refusal,) = manifest.refusals()
    assert refusal[1:] == ("series", "RTSTRUCT of a series that was not taken")
    assert check_dataset(dst) == []
    assert run(src, dst).made == 0


def test_one_after_the_other_is_tried(tmp_path):
    src, dst = write_exam(tmp_path / "src", numbers=(2, 5, 7)), tmp_path / "dst"
    surplus(src / "2")
    doubled(src / "5")
    assert run(src, dst).exams == 1
    exam, reasons = Dataset(dst).exam("P1"), lines(dst)
    assert exam.grid.shape[0] == SIZES[7]
    assert reasons["2"].startswith("not taken: tried first, but ")
    assert reasons["5"].startswith("not taken: tried next, but ")
    assert reasons["7"].startswith("taken: the only axial soft-tissue reconstruction")
    # The label table was made of what is drawn on the series that are chosen first.
    assert not exam.present and any("not chosen first" in w for w in exam.warnings)


def test_a_name_map_knows_what_is_drawn_on_the_next_series(tmp_path):
    src, dst = write_exam(tmp_path / "src", numbers=(2, 7)), tmp_path / "dst"
    surplus(src / "2")
    (tmp_path / "names.json").write_text('{"Leber": ["liver"], "Herz": ["heart"]}')
    run(src, dst, names=tmp_path / "names.json")
    assert Dataset(dst).exam("P1").present == ["Leber"]


def test_where_none_can_be_used_every_reason_is_given(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_exam(src / "a", "P1")
    write_exam(src / "b", "P2")
    write_exam(src / "c", "P3", numbers=(2,))
    surplus(src / "a" / "2")
    doubled(src / "a" / "5")
    surplus(src / "c" / "2")
    summary = run(src, dst)
    assert summary.exams == 1 and set(summary.refused) == {"P1", "P3"}
    assert summary.refused["P1"].startswith("no series can be taken: series 2 (axial, 12 x 40 x 40")
    assert "tried first, but image 4 of 12" in summary.refused["P1"]
    assert "tried next, but two different images" in summary.refused["P1"]
    assert summary.refused["P3"].startswith("image 4 of 12: PixelData")  # it has no other: as it was
    with pytest.raises(DataError, match="^P1: no series can be taken"):
        run(src, dst, strict=True)


def test_strict_does_not_mind_a_series_or_drawing_that_was_passed_over(tmp_path):
    src = write_exam(tmp_path / "src")
    surplus(src / "2")
    assert run(src, tmp_path / "dst", strict=True).exams == 1


@pytest.mark.slow(1)
def test_a_series_that_was_asked_for_has_no_second(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_exam(src / "a", "P1")
    write_exam(src / "b", "P2")
    surplus(src / "a" / "2")
    summary = run(src, dst, series={"P1": "2"})
    assert summary.exams == 1 and summary.refused["P1"].startswith("image 4 of 12: PixelData holds")
    assert run(src, dst).exams == 2 and lines(dst)["5"].startswith("taken")


@pytest.mark.parametrize("where", ["pixels", "header", "header of the next"])
def test_a_disk_that_fails_makes_no_other_exam(tmp_path, monkeypatch, where):
    """The contents of the files decide, not the state of the network at that moment."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_exam(src / "a", "P1")
    write_exam(src / "b", "P2")
    first = work.prepare_exam
    taken = 2
    if where == "header of the next":
        surplus(src / "a" / "2")
        taken = 5
    bad = sorted((src / "a" / str(taken)).iterdir())[4]

    def failing(job):
        if job.plan.name != "P1":
            return first(job)
        if where != "pixels":
            bad.rename(tmp_path / "kept")
        try:
            return first(job)
        finally:
            (tmp_path / "kept").rename(bad)

    read = dicom_read.read_pixels

    def gone(path, header):
        if path == bad:
            path.rename(tmp_path / "kept")
        return read(path, header)

    with monkeypatch.context() as patch:
        patch.setattr(work, "prepare_exam", failing)
        if where == "pixels":
            patch.setattr(dicom_read, "read_pixels", gone)
        summary = run(src, dst)
    assert summary.exams == 1 and set(summary.refused) == {"P1"}
    assert taken == 5 or os.strerror(errno.ENOENT) in summary.refused["P1"]
    assert run(src, dst).exams == 2 and Dataset(dst).exam("P1").grid.shape[0] == SIZES[taken]


def test_no_memory_makes_no_other_exam(tmp_path, monkeypatch):
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_exam(src / "a", "P1")
    write_exam(src / "b", "P2")
    slices = dicom_read._slices

    def full(series, *rest):
        if series.patient == "P1":
            raise MemoryError
        return slices(series, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(dicom_read, "_slices", full)
        assert "no memory" in run(src, dst).refused["P1"]
    assert run(src, dst).exams == 2 and Dataset(dst).exam("P1").grid.shape[0] == SIZES[2]


@pytest.mark.slow(2)
@pytest.mark.processes
def test_shards_and_processes_make_the_same_dataset(tmp_path, capsys):
    src = tmp_path / "src"
    for number in range(1, 5):
        write_exam(src / str(number), f"P{number}")
    surplus(src / "1" / "2")
    surplus(src / "3" / "2")
    command = ["prepare", str(src), str(tmp_path / "many"), "--quiet", "--workers", "1", "--keep-ids"]
    for part in (["--shard", "0/2"], ["--shard", "1/2"], ["--merge"]):
        assert cli.main([*command, *part]) == 0
    (tmp_path / "one.private").mkdir(mode=0o700)
    shutil.copy(tmp_path / "many.private" / "salt", tmp_path / "one.private")
    run(src, tmp_path / "one", workers=2)
    names = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(names) == 8 and ExamFile(tmp_path / "one" / names[1]).id
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes(), name
