"""Exams in archives: when and how often an archive is unpacked, and what its exams become."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections import Counter
from types import SimpleNamespace

import pytest
import SimpleITK as sitk
from make_dicom import write_ct
from prepare_here import fix_salt
from small_exams import body, write_cohort

from deepatlas.errors import DataError
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.intake.find import archives, catalogue, discover
from deepatlas.intake.run import pipeline, work
from deepatlas.intake.run.options import Options
from deepatlas.io.dicom.found import Found

pytestmark = pytest.mark.usefixtures("in_this_process")


def run(src, dst, **options):
    return pipeline.prepare(src, dst, Options(progress=False, **options))


def scratch_disk(monkeypatch, free):
    """A disk of which ``free`` per cent are free."""
    usage = SimpleNamespace(total=100 << 40, free=free << 40)
    monkeypatch.setattr(discover.shutil, "disk_usage", lambda _: usage)


@pytest.fixture(params=["room", "no room"])
def disk(request, monkeypatch):
    """A scratch disk with and without room for archives that stay unpacked."""
    scratch_disk(monkeypatch, free=90 if request.param == "room" else 10)
    return request.param


@pytest.fixture
def unpacked(monkeypatch):
    """Counts how often each archive is unpacked."""
    count = Counter()

    def counted(archive, folder, refused, *limits):
        count[archive.name] += 1
        return archives_extract(archive, folder, refused, *limits)

    archives_extract = archives.extract
    for module in (archives, catalogue, discover):
        monkeypatch.setattr(module, "extract", counted)
    return count


def study(folder, number):
    ct, _ = body((12, 40, 40), seed=number)
    return write_ct(
        folder,
        ct.array.clip(-1024).round(),
        ct.grid.affine,
        study=f"1.2.{number}",
        tags={"PatientID": f"P{number}"},
    )


def zipped(path, *numbers):
    """A zip of some studies, whose files also stay outside the source, in ``plain``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in numbers:
            for one in study(path.parent.parent / "plain" / str(number), number):
                file.write(one, f"{number}/{one.name}")


def masked(path, exam, *names):
    """A zip of a CT and masks, each in a file of its own."""
    with zipfile.ZipFile(path, "w") as file:
        file.write(exam / "ct.nii.gz", "s1/ct.nii.gz")
        for name in names:
            file.write(exam / "seg.nii.gz", f"s1/segmentations/{name}.nii.gz")


@pytest.fixture
def src(tmp_path):
    (tmp_path / "src").mkdir()
    return tmp_path / "src"


def contents(dst):
    return {exam.id: exam.content for exam in Dataset(dst)}


def voxels(dst):
    """The voxels of all exams, without their ids."""
    exams = [(e.volume().array, e.labels() if e.present else None, e.present) for e in Dataset(dst)]
    return sorted(
        (a.shape, hash(a.tobytes()), labels and hash(labels.array.tobytes()), names)
        for a, labels, names in exams
    )


@pytest.mark.slow(2)
def test_studies_in_archives_become_what_they_become_as_folders(src, tmp_path, disk):
    for number in (1, 2):
        zipped(src / f"{number}.zip", number)
    zipped(src / "many.zip", 3, 4, 5, 6, 7)
    write_cohort(tmp_path / "cohort", 2)
    with tarfile.open(src / "cohort.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cohort", ".")
    shutil.copytree(tmp_path / "cohort", tmp_path / "plain" / "cohort")
    (src / "bad.zip").write_bytes(b"PK\3\4")
    summary = run(src, tmp_path / "dst")
    assert summary.exams == 9 and summary.files_refused == 1 and not summary.refused
    assert run(tmp_path / "plain", tmp_path / "other").exams == 9
    assert voxels(tmp_path / "dst") == voxels(tmp_path / "other")
    assert not list((tmp_path / "dst.private").glob("*scratch*"))


@pytest.mark.slow(1)
def test_an_archive_that_is_done_is_not_opened_again(src, tmp_path, disk, unpacked):
    for number in (1, 2, 3):
        zipped(src / f"{number}.zip", number)
    run(src, tmp_path / "dst")
    first = contents(tmp_path / "dst")
    assert set(unpacked.values()) == ({1} if disk == "room" else {2})  # a look, and the images
    unpacked.clear()
    assert run(src, tmp_path / "dst").made == 0 and not unpacked
    zipped(src / "2.zip", 20)
    zipped(src / "4.zip", 4)
    assert run(src, tmp_path / "dst", prune=True).made == 2 and set(unpacked) == {"2.zip", "4.zip"}
    assert len(set(contents(tmp_path / "dst").items()) & set(first.items())) == 2


@pytest.mark.slow(1)
def test_many_exams_share_what_is_unpacked(src, tmp_path, disk, unpacked):
    zipped(src / "many.zip", *range(1, 7))
    assert run(src, tmp_path / "dst").exams == 6 and unpacked == {"many.zip": 1}
    unpacked.clear()
    assert run(src, tmp_path / "dst", crop="foreground").made == 6 and unpacked == {"many.zip": 1}


def test_a_ct_with_many_masks_is_one_exam(src, tmp_path, monkeypatch, unpacked):
    scratch_disk(monkeypatch, free=10)
    write_cohort(tmp_path / "cohort", 2)
    masked(src / "subject.zip", tmp_path / "cohort" / "e1", "rib_1", "rib_2", "rib_3", "heart", "liver")
    assert run(src, tmp_path / "dst").exams == 1
    # A look, the headers of the masks, and the images. An archive of several exams is unpacked once and kept.
    assert unpacked == {"subject.zip": 3}


def test_the_disk_holds_one_archive_at_a_time_for_each_worker(src, tmp_path, monkeypatch, unpacked):
    scratch_disk(monkeypatch, free=10)
    for number in (1, 2, 3):
        zipped(src / f"{number}.zip", number)
    there = []

    def watched(job):
        with archives.opened(job.archives):
            there.append(len(list((tmp_path / "dst.private").glob("*scratch*/a[0-9]*"))))
        return prepare_exam(job)

    prepare_exam = work.prepare_exam
    monkeypatch.setattr(work, "prepare_exam", watched)
    assert run(src, tmp_path / "dst").exams == 3 and there == [1, 1, 1]


@pytest.mark.slow(1)
def test_a_shard_opens_the_archives_of_its_exams_alone(src, tmp_path, unpacked, monkeypatch):
    scratch_disk(monkeypatch, free=10)
    for number in range(1, 7):
        zipped(src / f"{number}.zip", number)
    # With this salt either shard has exams.
    fix_salt(tmp_path / "dst")
    run(src, tmp_path / "dst", shard=(0, 2))
    mine = {name for name, count in unpacked.items() if count == 2}
    assert 0 < len(mine) < 6
    unpacked.clear()
    run(src, tmp_path / "dst", shard=(1, 2))
    assert unpacked == {f"{n}.zip": 1 for n in range(1, 7) if f"{n}.zip" not in mine}
    unpacked.clear()
    assert run(src, tmp_path / "dst", merge=True).exams == 6 and not unpacked


@pytest.mark.parametrize("when", ["planned", "read"])
def test_an_archive_that_goes_meanwhile_is_tried_again(src, tmp_path, monkeypatch, when):
    scratch_disk(monkeypatch, free=10)
    write_cohort(tmp_path / "cohort", 3)
    for number in (1, 2):
        if when == "planned":
            # Planning opens the headers of masks that no label table names.
            masked(src / f"{number}.zip", tmp_path / "cohort" / f"e{number}", "heart")
        else:
            zipped(src / f"{number}.zip", number)
    module, name = (discover, "plan") if when == "planned" else (work, "prepare_exam")
    true = getattr(module, name)

    def late(task):
        if any(a.found.name == "2.zip" for a in task.archives) and (src / "2.zip").exists():
            (src / "2.zip").rename(tmp_path / "away.zip")
        return true(task)

    monkeypatch.setattr(module, name, late)
    summary = run(src, tmp_path / "dst")
    assert summary.exams == 1 and len(summary.refused) == 1
    (reason,) = summary.refused.values()
    assert (
        reason
        == "its archive cannot be unpacked: cannot read: No such file or directory; check the file and disk"
    )
    assert "2.zip" not in (tmp_path / "dst" / "report.html").read_text()
    monkeypatch.setattr(module, name, true)
    (tmp_path / "away.zip").rename(src / "2.zip")
    assert run(src, tmp_path / "dst").exams == 2


@pytest.mark.slow(1)
def test_an_archive_of_many_exams_that_no_longer_unpacks_says_why(src, tmp_path, monkeypatch):
    zipped(src / "many.zip", *range(1, 6))
    run(src, tmp_path / "dst")
    full = archives.Limits(reserve=1 << 60)
    extract = archives.extract
    for module in (archives, catalogue):
        monkeypatch.setattr(module, "extract", lambda a, f, r: extract(a, f, r, full))
    reason = "its archive cannot be unpacked: unpacks to .* and the scratch disk has 0.0 MB to give"
    there = sorted((tmp_path / "dst" / "exams").rglob("*.h5"))
    for prune, words in (
        (False, "holds 5 exams .* cannot give any longer"),
        (True, "none of the 5 exams can be used"),
    ):
        with pytest.raises(DataError, match=f"{words}.*first: .*{reason}"):
            run(src, tmp_path / "dst", crop="foreground", prune=prune)
        assert len(there) == 5 and sorted((tmp_path / "dst" / "exams").rglob("*.h5")) == there


def test_exams_of_an_archive_that_fails_for_now_stay(src, tmp_path, monkeypatch):
    for number in (1, 2):
        zipped(src / f"{number}.zip", number)
    assert run(src, tmp_path / "dst").exams == 2
    zipped(src / "2.zip", 2)  # the same, written anew: it is looked into again
    full = archives.Limits(reserve=1 << 60)
    extract = archives.extract
    monkeypatch.setattr(discover, "extract", lambda a, f, r: extract(a, f, r, full))
    with pytest.raises(
        DataError, match="2.zip: unpacks to .* and the scratch disk has .*nothing was removed"
    ):
        run(src, tmp_path / "dst")
    monkeypatch.setattr(discover, "extract", extract)
    assert run(src, tmp_path / "dst").exams == 2


@pytest.mark.slow(1)
def test_a_label_table_in_an_archive_names_its_structures(src, tmp_path, disk):
    write_cohort(tmp_path / "cohort", 2)
    with zipfile.ZipFile(src / "cohort.zip", "w") as file:
        for path in sorted((tmp_path / "cohort").rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(tmp_path / "cohort"))
    assert run(src, tmp_path / "dst").labels == {"bone": 1, "lung": 2}
    assert pipeline.read_dataset_json(tmp_path / "dst")["exams"] == 2
    assert run(src, tmp_path / "dst", crop="foreground").labels == {"bone": 1, "lung": 2}


@pytest.mark.parametrize("name", ["ct.mhd", "ct.nhdr"])
@pytest.mark.parametrize("place", ["{0}/ct.raw", "../../../out/ct.raw"])
def test_a_header_in_an_archive_takes_no_voxels_from_the_machine(tmp_path, name, place):
    (tmp_path / "out").mkdir()
    ct, _ = body((12, 40, 40), seed=1)
    sitk.WriteImage(sitk.GetImageFromArray(ct.array.astype("int16")), str(tmp_path / "out" / name))
    header = (tmp_path / "out" / name).read_bytes()
    assert b"ct.raw" in header
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(f"bad/{name}", header.replace(b"ct.raw", place.format(tmp_path / "out").encode()))
        file.writestr(f"good/{name}", header)
        file.write(tmp_path / "out" / "ct.raw", "good/ct.raw")
    archive = archives.Archive(Found(tmp_path / "a.zip", "a.zip"), tmp_path / "scratch" / "a")
    found = discover.look(archive)
    (refusal,) = found.refusals
    assert refusal.name == f"a.zip!bad/{name}" and "voxels outside the archive" in refusal.reason
    assert sorted(name for name, _, _ in found.members) == [f"a.zip!good/{name}", "a.zip!good/ct.raw"]
