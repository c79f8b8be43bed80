"""``deepatlas prepare`` from end to end: mixed sources, changes, shards, kills, unusable sources and destinations."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pydicom
import pytest
from drawn_objects import rtstruct, saved
from forked import Forked
from make_dicom import write_ct, write_localizer
from prepare_here import fix_salt, in_this_process, prepare_here
from small_exams import body, one_line, write_cohort

from deepatlas.cli import main as cli
from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset import folder as dataset
from deepatlas.intake.dataset.folder import Dataset, exam_path
from deepatlas.intake.run import work
from deepatlas.intake.run.pipeline import Options, prepare
from deepatlas.intake.run.work import prepare_exam
from deepatlas.locks import held

LONG = bool(os.environ.get("DEEPATLAS_LONG_TESTS"))


pytestmark = pytest.mark.usefixtures("in_this_process")


def run(src, dst, **options):
    return prepare(src, dst, Options(progress=False, **{"workers": 1, **options}))


def dicom_exam(folder, seed=1, **tags):
    """A CT series with a scout, a second series with half of its slices, and an RTSTRUCT; returns the CT."""
    ct, _ = body((12, 40, 40), seed=seed)
    ct.array = np.rint(ct.array.clip(min=-1024))
    study = f"1.2.3.{seed}"
    files = write_ct(folder / "a", ct.array, ct.grid.affine, study=study, frame="1.2.9", tags=tags)
    write_ct(
        folder / "b", ct.array[::2], ct.grid.affine @ np.diag([1, 1, 2, 1]), study=study, number=5, tags=tags
    )
    write_localizer(folder / "scout.dcm", study, tags=tags)
    slices = [pydicom.dcmread(f) for f in files]
    z = slices[3].ImagePositionPatient[2]
    square = np.array([[-20, -20, z], [20, -20, z], [20, 20, z], [-20, 20, z]], float)
    saved(rtstruct(slices, {"Heart": [square]}), folder / "rs.dcm")
    return ct


def arrays(dst) -> dict:
    """Everything that a dataset contains, by exam, to compare two datasets."""
    return {exam.id: (exam.content, exam.path.read_bytes()) for exam in Dataset(dst)}


def leftovers(dst) -> list[str]:
    return [p.name for p in dst.rglob(".*")]


@pytest.mark.slow(1)
def test_a_mixture_of_formats_becomes_one_dataset(tmp_path):
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_cohort(src / "cohort", 2)
    ct = dicom_exam(src / "hospital" / "x", PatientID="P1")
    dicom_exam(tmp_path / "zipped", seed=2, PatientID="P2")
    with zipfile.ZipFile(src / "study.zip", "w") as archive:
        for path in (tmp_path / "zipped").rglob("*.dcm"):
            archive.write(path, path.relative_to(tmp_path))
    shutil.copy(src / "cohort" / "e1" / "ct.nii.gz", src / "loose.nii.gz")
    (src / "README.txt").write_text("not an image")
    summary = run(src, dst)
    assert summary.exams == summary.made == 5 and not summary.refused and summary.files_refused == 0
    assert summary.labels == {"bone": 1, "lung": 2, "heart": 3}
    with open(tmp_path / "dst.private" / "key.csv") as handle:
        names = {line.split(",")[1]: line.split(",")[0] for line in handle}
    assert set(names) == {"name", "cohort/e1", "cohort/e2", "loose", "P1", "P2"}
    dataset = Dataset(dst)
    exam = dataset.exam(names["P1"])
    np.testing.assert_array_equal(exam.volume().canonical().array, ct.canonical().array)
    np.testing.assert_allclose(exam.volume().canonical().grid.affine, ct.canonical().grid.affine, atol=1e-4)
    assert exam.present == ["heart"] and dataset.exam(names["cohort/e1"]).present == ["bone", "lung"]
    source = read_volume(src / "cohort" / "e1" / "ct.nii.gz")
    np.testing.assert_array_equal(dataset.exam(names["cohort/e1"]).volume().array, source.array)
    reasons = dict(dataset.manifest().series())  # exam: its last line
    assert set(reasons) == {names["P1"], names["P2"]}
    assert "Coronal slices" in (dst / "report.html").read_text() and leftovers(dst) == []


@pytest.mark.slow(2)
def test_nothing_is_done_twice_and_changes_are_noticed(tmp_path, monkeypatch):
    src, dst = write_cohort(tmp_path / "src", 3), tmp_path / "dst"
    done = []
    monkeypatch.setattr(work, "prepare_exam", lambda job: done.append(job.plan.name) or prepare_exam(job))
    run(src, dst)
    assert sorted(done) == ["e1", "e2", "e3"]
    before, first = (dst / "dataset.json").stat(), arrays(dst)
    assert run(src, dst).made == 0 and len(done) == 3
    assert (dst / "dataset.json").stat().st_mtime_ns == before.st_mtime_ns
    shutil.copy(src / "e1" / "ct.nii.gz", src / "e2" / "ct.nii.gz")
    os.remove(src / "e3" / "ct.nii.gz")
    shutil.copytree(src / "e1", src / "e4")
    assert run(src, dst, prune=True).exams == 3 and done[3:] == ["e2", "e4"]
    second = arrays(dst)
    assert len(set(first) & set(second)) == 2 and len(list(dst.glob("exams/*/[!.]*.h5"))) == 3
    done.clear()
    assert run(src, dst, crop="foreground").made == 3 and len(done) == 3
    (src / "e1" / "ct.nii.gz").write_bytes(b"broken")
    summary = run(src, dst, crop="foreground", prune=True)
    assert summary.exams == 2 and "e1" in summary.refused and len(list(dst.glob("exams/*/[!.]*.h5"))) == 2
    done.clear()
    run(src, dst, crop="foreground")
    # What is refused for good is not read again.
    assert done == []


@pytest.mark.slow(1)
def test_a_lost_or_damaged_exam_file_is_made_again(tmp_path):
    src, dst = write_cohort(tmp_path / "src", 3), tmp_path / "dst"
    run(src, dst)
    whole = arrays(dst)
    first, second, _ = sorted(dst.glob("exams/*/[!.]*.h5"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:5000])
    assert run(src, dst).made == 2 and arrays(dst) == whole


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("packed.h5", d) for d in ("gone", "header", "cut")),
        ("manifest.sqlite", "cut"),
        ("report.html", "gone"),
    ],
)
def test_a_finished_dataset_that_lost_a_file_gets_it_again(tmp_path, monkeypatch, name, damage):
    src, dst = write_cohort(tmp_path / "src", 2), tmp_path / "dst"
    run(src, dst)
    whole = {path: path.read_bytes() for path in dst.rglob("*.*") if path.is_file()}
    if damage == "gone":
        (dst / name).unlink()
    elif damage == "cut":
        (dst / name).write_bytes(whole[dst / name][:-100])
    else:
        (dst / name).write_bytes(bytes(60) + whole[dst / name][60:])
    monkeypatch.setattr(work, "prepare_exam", None)  # no exam is read again
    summary = run(src, dst)
    assert summary.exams == 2 and summary.made == 0
    assert {path: path.read_bytes() for path in dst.rglob("*.*") if path.is_file()} == whole


@pytest.mark.slow(1)
def test_a_training_array_of_other_exams_is_noticed(tmp_path, monkeypatch):
    src, dst = write_cohort(tmp_path / "src", 3), tmp_path / "dst"
    run(src, dst)
    whole = (dst / "packed.h5").read_bytes()
    run(write_cohort(tmp_path / "one", 1), tmp_path / "other")
    short = (tmp_path / "other" / "packed.h5").read_bytes()
    (dst / "packed.h5").write_bytes(short)
    about = json.loads((dst / "dataset.json").read_text())  # of the size that is stated, and whole in itself
    about["files"]["packed.h5"]["bytes"] = len(short)
    (dst / "dataset.json").write_text(dataset.canonical_text(about))
    run(src, dst)
    assert (dst / "packed.h5").read_bytes() == whole and Dataset(dst).about["exams"] == 3


def test_another_source_is_not_taken_for_the_old_one(tmp_path):
    run(write_cohort(tmp_path / "a", 2), tmp_path / "dst")
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "e1" / "ct.nii.gz", tmp_path / "b" / "x.nii.gz")
    with pytest.raises(DataError, match="none of which is in"):
        run(tmp_path / "b", tmp_path / "dst")
    assert len(Dataset(tmp_path / "dst")) == 2


@pytest.mark.slow(1)
def test_ids_of_the_source_if_asked_for(tmp_path):
    src = write_cohort(tmp_path / "src", 2)
    dicom_exam(src / "d", PatientID="P 1")
    run(src, tmp_path / "dst", keep_ids=True)
    assert Dataset(tmp_path / "dst").ids == ["P_1", "e1", "e2"]


def test_a_name_map_and_a_choice_of_series(tmp_path):
    dicom_exam(tmp_path / "src", PatientID="P1")
    (tmp_path / "names.json").write_text(json.dumps({"Herz": ["heart"], "Milz": ["spleen"]}))
    summary = run(tmp_path / "src", tmp_path / "dst", names=tmp_path / "names.json")
    assert summary.labels == {"Herz": 1, "Milz": 2}
    exam = next(iter(Dataset(tmp_path / "dst")))
    assert exam.present == ["Herz"] and exam.grid.shape[0] == 12
    summary = run(tmp_path / "src", tmp_path / "dst", series={"P1": "5"})
    exam = next(iter(Dataset(tmp_path / "dst")))
    assert exam.grid.shape[0] == 6 and not exam.present and summary.made == 1
    with pytest.raises(DataError, match="--series nobody=…: no such exam"):
        run(tmp_path / "src", tmp_path / "dst", series={"nobody": "5"})


@pytest.mark.slow(1)
def test_shards_and_their_merge_are_the_same_dataset(tmp_path):
    src = write_cohort(tmp_path / "src", 5)
    shutil.copytree(src, tmp_path / "again")
    # With this salt either shard has exams.
    fix_salt(tmp_path / "one")
    fix_salt(tmp_path / "many")
    run(src, tmp_path / "one")
    made = [run(src, tmp_path / "many", shard=(0, 2)).made]
    assert not (tmp_path / "many" / "dataset.json").exists()
    with pytest.raises(DataError, match="not prepared yet"):
        run(src, tmp_path / "many", merge=True)
    made.append(run(src, tmp_path / "many", shard=(1, 2)).made)
    summary = run(src, tmp_path / "many", merge=True)
    assert sum(made) == 5 and min(made) > 0 and summary.exams == 5 and summary.made == 0
    assert arrays(tmp_path / "one") == arrays(tmp_path / "many")
    for name in ("dataset.json", "packed.h5", "manifest.sqlite", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes(), name


def test_strict_stops_at_the_first_bad_exam(tmp_path):
    src = write_cohort(tmp_path / "src", 2)
    (src / "e1" / "ct.nii.gz").write_bytes(b"x" * 500)
    with pytest.raises(DataError) as error:
        run(src, tmp_path / "dst", strict=True)
    assert "e1" in one_line(error.value)


@pytest.mark.parametrize(
    ("src", "dst", "words"),
    [
        ("none", "dst", "no such file or folder"),
        ("src", "src", "is the source itself"),
        ("src", "src/dst", "lies in the source"),
        ("dst/src", "dst", "lies in the dataset"),
        ("src", "other", "holds other things"),
        ("src", "file", "is a file"),
        ("src", "file/dst", "file, not a folder"),
        ("empty", "dst", "no file in it"),
        ("words", "dst", "no exam that can be used"),
    ],
)
def test_bad_places_are_one_line(tmp_path, src, dst, words):
    write_cohort(tmp_path / "src", 1)
    write_cohort(tmp_path / "dst" / "src", 1) if src == "dst/src" else None
    for folder, name in (("empty", ""), ("other", "thesis.tex"), ("words", "notes.txt")):
        (tmp_path / folder).mkdir()
        if name:
            (tmp_path / folder / name).write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=words) as error:
        run(tmp_path / src, tmp_path / dst)
    one_line(error.value)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "x" and (tmp_path / "file").read_text() == "x"


def test_a_lost_private_folder_is_one_line(tmp_path):
    run(write_cohort(tmp_path / "src", 1), tmp_path / "dst")
    shutil.rmtree(tmp_path / "dst.private")
    with pytest.raises(DataError, match="the salt of the ids"):
        run(tmp_path / "src", tmp_path / "dst")


def test_two_runs_do_not_share_a_dataset(tmp_path):
    src = write_cohort(tmp_path / "src", 1)
    run(src, tmp_path / "dst")
    with held(tmp_path / "dst.private" / "lock", "busy"), pytest.raises(DataError, match="another `prepare`"):
        run(src, tmp_path / "dst")


def test_a_source_that_vanishes_is_one_line(tmp_path, monkeypatch):
    src = write_cohort(tmp_path / "src", 3)

    def vanish(job):
        if src.exists():
            src.rename(tmp_path / "gone")
        return prepare_exam(job)

    monkeypatch.setattr(work, "prepare_exam", vanish)
    with pytest.raises(DataError, match="vanished while it was read"):
        run(src, tmp_path / "dst")
    assert not (tmp_path / "dst" / "dataset.json").exists()


def test_a_slice_that_changes_after_its_header_was_read_is_tried_again(tmp_path, monkeypatch):
    """The exam is refused, since its header may tell another position, and prepared in the next run."""
    write_cohort(tmp_path / "src" / "cohort", 1)
    dicom_exam(tmp_path / "src" / "d", PatientID="P1")

    def changed(job):
        if job.plan.name == "P1":
            path = job.plan.source.series.slices[3].path
            ds = pydicom.dcmread(path)
            ds.ImagePositionPatient[2] += 0.5
            ds.save_as(path)
        return prepare_exam(job)

    with monkeypatch.context() as patch:
        patch.setattr(work, "prepare_exam", changed)
        summary = run(tmp_path / "src", tmp_path / "dst")
    assert summary.exams == 1 and "the file changed after its header was read" in summary.refused["P1"]
    again = run(tmp_path / "src", tmp_path / "dst")
    assert again.exams == 2 and again.made == 1 and not again.refused


SCRIPT = """
import sys
from deepatlas.cli import main as cli
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


def command(tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, script, *map(str, arguments)]
    # Processes that a shell starts in the background ignore Ctrl-C, and so would all processes that the tests start.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment,
                            start_new_session=True, preexec_fn=hear)  # fmt: skip


@pytest.mark.slow(5)
@pytest.mark.processes
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    """A limit on the size of files takes the place of a full disk."""
    src, dst = write_cohort(tmp_path / "src", 2), tmp_path / "dst"
    arguments = ["120000", "deepatlas.cli.main", "prepare", str(src), str(dst), "--quiet", "--workers", "1"]
    process = Forked("limited", arguments, os.environ, tmp_path / "printed.txt")
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 1 and printed.count("\n") == 1 and "cannot write" in printed, printed
    assert (
        not (dst / "dataset.json").exists()
        and not list(dst.glob("exams/*/[!.]*.h5"))
        and leftovers(dst) == []
    )


@pytest.mark.slow(9)
@pytest.mark.processes
def test_kills_at_any_moment_lose_nothing(tmp_path, capsys):
    """SIGKILL at random moments. In the end the dataset is as if nothing had happened.

    The first time to the whole session of the command, with its worker; then to a process that does the work itself.
    """
    count, kills = (40, 12) if LONG else (8, 3)
    src = write_cohort(tmp_path / "src", count)
    rng = random.Random(0)
    dst = tmp_path / "dst"
    prepare_here(src, tmp_path / "calm", histograms=True)
    (tmp_path / "dst.private").mkdir(mode=0o700)
    shutil.copy(tmp_path / "calm.private" / "salt", tmp_path / "dst.private")
    seen: set[str] = set()
    for number in range(kills):
        arguments = ["prepare", str(src), str(dst), "--quiet", "--workers", "1"]
        if number == 0:
            process = command(tmp_path, *arguments)
        else:
            process = Forked("prepare_here", arguments, os.environ, tmp_path / "printed.txt")
        target = len(list(dst.glob("exams/*/[!.]*.h5"))) + 1
        deadline = time.monotonic() + 200
        while len(list(dst.glob("exams/*/[!.]*.h5"))) < target and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is None:  # otherwise it was done before the signal came
            os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), err
        now = {p.stem for p in dst.glob("exams/*/[!.]*.h5")}
        assert seen <= now  # nothing is lost
        seen = now
    times = {p: p.stat().st_mtime_ns for p in dst.glob("exams/*/[!.]*.h5")}
    with in_this_process(histograms=True):
        assert (
            cli.main(["prepare", str(src), str(dst), "--quiet", "--workers", "1", "--json", "--check"]) == 0
        )
    out = capsys.readouterr().out
    assert json.loads(out)["damages"] == [] and json.loads(out)["made"] >= count - len(seen)
    again = sum(p.stat().st_mtime_ns != when for p, when in times.items())
    assert again <= 1  # at most the one that was being entered at the last kill is done twice
    assert arrays(dst) == arrays(tmp_path / "calm") and leftovers(dst) == []
    for name in ("dataset.json", "packed.h5", "manifest.sqlite", "report.html"):
        assert (dst / name).read_bytes() == (tmp_path / "calm" / name).read_bytes(), name


@pytest.mark.slow(5)
@pytest.mark.processes
def test_ctrl_c_is_clean(tmp_path):
    src, dst = write_cohort(tmp_path / "src", 2), tmp_path / "dst"
    # So many that the command cannot be done before the signal comes, however late that is.
    for number in range(3, 41):
        (src / f"e{number}").mkdir()
        os.link(src / "e1" / "ct.nii.gz", src / f"e{number}" / "ct.nii.gz")
    process = command(tmp_path, "prepare", src, dst, "--quiet", "--workers", 1)
    deadline = time.monotonic() + 200
    while not list(dst.glob("exams/*/[!.]*.h5")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to everybody
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err, err
    assert not (dst / "dataset.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_destination_is_one_line(tmp_path):
    src = write_cohort(tmp_path / "src", 1)
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(DataError, match="permission denied"):
        run(src, tmp_path / "locked" / "dst")


def test_a_read_only_file_system_is_one_line(tmp_path):
    src = write_cohort(tmp_path / "src", 1)
    with pytest.raises(DataError, match="cannot write") as error:
        run(src, "/proc/dataset")
    one_line(error.value)


def test_check_names_what_is_damaged(tmp_path, capsys):
    src, dst = write_cohort(tmp_path / "src", 2), tmp_path / "dst"
    assert cli.main(["prepare", str(src), str(dst), "--quiet", "--check"]) == 0
    assert capsys.readouterr().out.endswith("undamaged\n")
    path = exam_path(dst, Dataset(dst).ids[0])
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    assert cli.main(["prepare", "--check", str(dst), "--quiet"]) == 1
    assert path.name in capsys.readouterr().err
