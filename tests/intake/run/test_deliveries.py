"""Exams that come in deliveries, and exams that leave: nothing of a dataset goes unless that was said."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from prepare_here import fix_salt, prepare_here
from small_exams import body, one_line

from deepatlas.cli import main as cli
from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.check import check_dataset
from deepatlas.intake.dataset.folder import Dataset, exam_path
from deepatlas.intake.run import pipeline, work
from deepatlas.io.codec import write_volume
from deepatlas.space.volume import Volume


def exam_at(folder, seed, names=("bone", "lung"), *, drawn=True):
    """Write an exam whose label ids follow the order of ``names``."""
    ct, seg = body((12, 40, 40), seed=seed)
    write_volume(folder / "ct.nii.gz", Volume(np.rint(ct.array).astype(np.int16), ct.grid))
    if drawn:
        write_volume(folder / "seg.nii.gz", seg)
    (folder / "labels.json").write_text(json.dumps({name: i for i, name in enumerate(names, 1)}))


def sources(tmp_path):
    """Two deliveries of two exams each; ``heart`` has in the second the id that ``bone`` has in the first."""
    for name, seed in (("a1", 1), ("a2", 2)):
        exam_at(tmp_path / "one" / name, seed)
    for name, seed in (("b1", 3), ("b2", 4)):
        exam_at(tmp_path / "two" / name, seed, ("heart", "lung"))
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both deliveries, and in ``dst`` the dataset of the first."""
    folder = tmp_path_factory.mktemp("made")
    one, _ = sources(folder)
    prepare_here(one, folder / "dst")
    return folder


@pytest.fixture
def first(made, tmp_path):
    """A copy of them for one test, with the times of the files: the two deliveries and the dataset."""
    for name in ("one", "two", "dst", "dst.private"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path / "one", tmp_path / "two", tmp_path / "dst"


def keys(dst):
    with open(dst.with_name(f"{dst.name}.private") / "key.csv", newline="") as handle:
        return {row["name"]: row["id"] for row in csv.DictReader(handle)}


def everything(dst):
    return {path: path.read_bytes() for path in dst.rglob("*") if path.is_file()}


def whole(dst):
    return check_dataset(dst) == []


@pytest.mark.slow(1)
def test_a_delivery_joins_what_is_there_and_ids_of_structures_stay(first):
    one, two, dst = first
    before = everything(dst / "exams")
    summary = prepare_here(two, dst, add=True)
    assert (summary.exams, summary.made, summary.kept) == (4, 2, 2)
    assert summary.labels == {"bone": 1, "lung": 2, "heart": 3} == Dataset(dst).labels
    assert {path: path.read_bytes() for path in before} == before and whole(dst)
    assert set(keys(dst)) == {"a1", "a2", "b1", "b2"}
    data = Dataset(dst)
    of_two = data.exam(keys(dst)["b1"])
    _, seg = body((12, 40, 40), seed=3)
    np.testing.assert_array_equal(of_two.mask("heart").array, seg.array == 1)
    np.testing.assert_array_equal(of_two.mask("lung").array, seg.array == 2)
    assert (
        sorted(map(sorted, (exam.present for exam in data)))
        == [["bone", "lung"]] * 2 + [["heart", "lung"]] * 2
    )
    # The same delivery again changes nothing, and neither does the first one.
    after = everything(dst)
    assert prepare_here(two, dst, add=True).made == 0 and everything(dst) == after


@pytest.mark.parametrize("what", ["fewer", "others", "some of both"])
def test_a_source_that_lacks_exams_is_refused_before_any_work(tmp_path, first, monkeypatch, what):
    one, two, dst = first
    if what == "fewer":
        shutil.rmtree(one / "a2")
    elif what == "some of both":
        (one / "a2").rename(tmp_path / "elsewhere")
        shutil.copytree(two / "b1", one / "b1")
    before = everything(dst)
    monkeypatch.setattr(work, "prepare_exam", None)
    with pytest.raises(DataError) as error:
        prepare_here(two if what == "others" else one, dst)
    text = one_line(error.value)
    number = "holds 2 exams, none of which is" if what == "others" else "holds 1 exams that are not"
    assert number in text and f"{keys(dst)['a2']} = a2" in text and "--add to keep" in text
    assert ("--prune to remove" in text) == (what != "others")
    assert everything(dst) == before and whole(dst)


def test_exams_leave_with_prune_alone(first):
    one, two, dst = first
    gone = keys(dst)["a2"]
    shutil.rmtree(one / "a2")
    assert prepare_here(one, dst, prune=True).exams == 1
    assert not exam_path(dst, gone).exists() and whole(dst) and set(keys(dst)) == {"a1"}
    before = everything(dst)
    with pytest.raises(DataError, match="none of which is in .*, so that --prune would remove all"):
        prepare_here(two, dst, prune=True)
    assert everything(dst) == before
    with pytest.raises(DataError, match="--add keeps .* --prune removes .* give one of the two"):
        prepare_here(one, dst, add=True, prune=True)


def test_an_exam_that_cannot_be_read_any_more_does_not_leave_unasked(first):
    one, _, dst = first
    before, exam = everything(dst / "exams"), keys(dst)["a1"]
    data = (one / "a1" / "ct.nii.gz").read_bytes()
    (one / "a1" / "ct.nii.gz").write_bytes(data[: len(data) // 2])
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"(cannot give any longer|not in .*, or cannot be used).*--prune"
        ):
            prepare_here(one, dst)
        assert everything(dst / "exams") == before
    assert prepare_here(one, dst, add=True).exams == 2 and whole(dst)
    assert everything(dst / "exams") == before
    assert prepare_here(one, dst, prune=True).exams == 1 and whole(dst)
    assert not exam_path(dst, exam).exists()


@pytest.mark.slow(1)
def test_another_exam_of_the_same_name_does_not_replace_the_first(first):
    one, two, dst = first
    (two / "b1").rename(two / "a1")
    before = everything(dst / "exams")
    for made in (1, 0):
        summary = prepare_here(two, dst, add=True)
        assert (summary.exams, summary.made) == (3, made) and whole(dst)
        assert "an exam of this id with another CT, which stays" in summary.refused["a1"]
    assert {path: path.read_bytes() for path in before} == before
    # The cure that the message names: all from one source.
    shutil.copytree(one / "a2", two / "a2")
    summary = prepare_here(two, dst)
    ct, _ = body((12, 40, 40), seed=3)
    replaced = Dataset(dst).exam(keys(dst)["a1"])
    np.testing.assert_array_equal(replaced.ct[...], np.rint(ct.array).astype(np.int16))
    assert summary.exams == 3 and not summary.refused and whole(dst)


@pytest.mark.slow(1)
def test_an_exam_that_comes_again_keeps_its_structures(first):
    one, two, dst = first
    exam_at(two / "a1", 1, drawn=False)
    summary = prepare_here(two, dst, add=True)
    assert "structures that the source lacks (bone, lung), and it stays as it is" in summary.refused["a1"]
    assert Dataset(dst).exam(keys(dst)["a1"]).present == ["bone", "lung"] and whole(dst)


@pytest.mark.slow(1)
def test_an_exam_that_comes_again_with_some_of_its_structures_stays_as_it_is(first):
    one, two, dst = first
    before = everything(dst / "exams")
    # The same CT, and the lung alone.
    exam_at(two / "a1", 1)
    path = two / "a1" / "seg.nii.gz"
    seg = read_volume(path, labels=True)
    write_volume(path, Volume(np.where(seg.array == 2, 2, 0).astype(np.uint8), seg.grid))
    summary = prepare_here(two, dst, add=True)
    assert "(bone)" in summary.refused["a1"] and whole(dst)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow(1)
def test_the_same_ct_under_another_name_does_not_come_twice(first):
    one, two, dst = first
    shutil.copytree(one / "a2", two / "again")
    for made in (2, 0):
        summary = prepare_here(two, dst, add=True)
        assert (summary.exams, summary.made) == (4, made) and whole(dst)
        assert f"the same CT already, as exam {keys(dst)['a2']}" in summary.refused["again"]
    # Once the first one has left, it may come.
    shutil.copytree(one / "a1", two / "a1")
    prepare_here(two, dst, prune=True)
    assert "again" in keys(dst) and len(Dataset(dst)) == 4 and whole(dst)


@pytest.mark.slow(1)
def test_exams_that_the_dataset_has_twice_both_stay(tmp_path):
    (one, _), dst = sources(tmp_path), tmp_path / "dst"
    shutil.copytree(one / "a1", one / "twin")
    assert prepare_here(one, dst).exams == 3
    # Only one of the two comes again, and is made again because of a new structure.
    shutil.rmtree(one / "a1")
    shutil.rmtree(one / "a2")
    exam_at(one / "b1", 3, ("heart", "lung"))
    summary = prepare_here(one, dst, add=True)
    assert (summary.exams, summary.made, summary.refused) == (4, 2, {}) and whole(dst)


@pytest.mark.slow(1)
def test_refusals_of_earlier_deliveries_stay_in_report_and_table(tmp_path):
    (one, two), dst = sources(tmp_path), tmp_path / "dst"
    (one / "bad.nii.gz").write_bytes(b"x" * 400)
    (two / "worse.nii.gz").write_bytes(b"x" * 400)
    prepare_here(one, dst)
    prepare_here(two, dst, add=True)

    def refused():
        with open(tmp_path / "dst.private" / "refused.csv", newline="") as handle:
            return sorted(row["name"] for row in csv.DictReader(handle))

    assert len(Dataset(dst).manifest().refusals()) == 2 and len(refused()) == 2
    # Mended in the meantime: its refusal goes.
    shutil.copy(two / "b1" / "ct.nii.gz", two / "worse.nii.gz")
    (two / "b1" / "ct.nii.gz").write_bytes((one / "a1" / "ct.nii.gz").read_bytes())
    prepare_here(two, dst, add=True)
    assert "bad" in refused() and "worse" not in refused()


@pytest.mark.parametrize(
    ("way", "when"),
    [
        ("add", "preparing"),
        pytest.param("add", "finishing", marks=pytest.mark.slow(2)),
        pytest.param("prune", "preparing", marks=pytest.mark.slow(2)),
        pytest.param("prune", "finishing", marks=pytest.mark.slow(2)),
        ("prune", "removing"),
    ],
)
def test_a_run_that_is_killed_loses_nothing_and_is_continued(tmp_path, first, monkeypatch, way, when):
    """The death of the process is an exception that nothing catches, raised where a file is written or removed."""
    one, two, dst = first
    for suffix in ("", ".private"):
        shutil.copytree(tmp_path / f"dst{suffix}", tmp_path / f"straight{suffix}")
    source = two
    if way == "prune":
        source = tmp_path / "mixed"
        shutil.copytree(one / "a1", source / "a1")
        exam_at(source / "b1", 3)
        exam_at(source / "b2", 4)
    gone = keys(dst)["a2"]
    there = everything(dst / "exams")

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        if when == "preparing":
            done = []
            make = work.prepare_exam
            patch.setattr(work, "prepare_exam", lambda job: die() if done else done.append(1) or make(job))
        elif when == "finishing":
            patch.setattr(pipeline, "finish", die)
        else:
            real = exam_path
            patch.setattr(pipeline, "exam_path", lambda dst, exam: die() if exam == gone else real(dst, exam))
        with pytest.raises(Killed):
            prepare_here(source, dst, **{way: True})
    assert {path: path.read_bytes() for path in there} == there
    # A source that lacks what is there is still refused, and the same command goes on.
    with pytest.raises(DataError, match="--add to keep"):
        prepare_here(two, dst)
    prepare_here(source, dst, **{way: True})
    prepare_here(source, tmp_path / "straight", **{way: True})
    assert whole(dst)
    for name in ("manifest.sqlite", "packed.h5", "report.html", "dataset.json"):
        assert (dst / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_a_stopped_first_run_is_continued_without_a_word_about_exams_that_lack(tmp_path, monkeypatch):
    (one, _), dst = sources(tmp_path), tmp_path / "dst"
    make, done = work.prepare_exam, []

    def stop(job):
        if done:
            raise KeyboardInterrupt
        done.append(job.id)
        return make(job)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(work, "prepare_exam", stop)
        prepare_here(one, dst)
    summary = prepare_here(one, dst)
    assert (summary.exams, summary.made) == (2, 1) and whole(dst)


@pytest.mark.slow(2)
def test_a_delivery_in_shards_is_that_of_one_run(tmp_path):
    (one, two), dst, straight = sources(tmp_path), tmp_path / "dst", tmp_path / "straight"
    for folder in (dst, straight):
        fix_salt(folder)
        prepare_here(one, folder)
    with pytest.raises(DataError, match="none of which is in"):
        prepare_here(two, dst, shard=(0, 2))
    assert whole(dst)
    made = [prepare_here(two, dst, shard=(i, 2), add=True).made for i in range(2)]
    summary = prepare_here(two, dst, merge=True, add=True)
    assert sum(made) == 2 and summary.exams == 4 and summary.made == 0 and whole(dst)
    prepare_here(two, straight, add=True)
    for name in ("manifest.sqlite", "packed.h5", "report.html", "dataset.json"):
        assert (dst / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.slow(2)
def test_a_dataset_without_its_journal_keeps_its_exams(tmp_path, first):
    one, two, dst = first
    (tmp_path / "dst.private" / "journal.sqlite").unlink()
    assert prepare_here(two, dst, add=True).exams == 4 and whole(dst)
    # Nor is the manifest needed.
    (tmp_path / "dst.private" / "journal.sqlite").unlink()
    (dst / "manifest.sqlite").unlink()
    assert prepare_here(two, dst, add=True).exams == 4 and whole(dst)


def test_another_crop_is_refused_before_any_work(tmp_path):
    (one, two), dst = sources(tmp_path), tmp_path / "dst"
    prepare_here(one, dst, crop="foreground")
    before = everything(dst)
    with pytest.raises(
        DataError, match="with crop=foreground, not crop=None; give --crop foreground with --add"
    ):
        prepare_here(two, dst, add=True)
    assert everything(dst) == before


@pytest.mark.slow(1)
def test_a_name_map_goes_on_from_the_ids_of_the_dataset(tmp_path, first):
    one, two, dst = first
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"Cor": ["heart"], "lung": []}))
    assert prepare_here(two, dst, add=True, names=names).labels == {"bone": 1, "lung": 2, "Cor": 3}
    assert whole(dst)
    names.write_text(json.dumps({"Lung": ["pulmo"]}))
    with pytest.raises(DataError, match="calls a structure 'Lung' that .* calls 'lung'; spell it so"):
        prepare_here(two, dst, add=True, names=names)


@pytest.mark.slow(1)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_ids_of_another_kind_are_told_by_that_reason(tmp_path, kept, add):
    (one, two), dst = sources(tmp_path), tmp_path / "dst"
    prepare_here(one, dst, keep_ids=kept)
    said = "with --keep-ids, .* give --keep-ids" if kept else "without --keep-ids, .* leave --keep-ids out"
    for source in (one, two):
        before = everything(dst)
        with pytest.raises(DataError, match=said):
            prepare_here(source, dst, keep_ids=not kept, add=add)
        assert everything(dst) == before
    assert prepare_here(two, dst, keep_ids=kept, add=True).exams == 4


@pytest.mark.slow(1)
def test_the_command_has_both_options(tmp_path, capsys, in_this_process):
    (one, two), dst = sources(tmp_path), tmp_path / "dst"
    assert cli.main(["prepare", str(one), str(dst), "--quiet"]) == 0
    assert cli.main(["prepare", str(two), str(dst), "--quiet"]) == 1
    assert "deepatlas: error:" in (captured := capsys.readouterr()).err and captured.err.count("\n") == 1
    assert cli.main(["prepare", str(two), str(dst), "--quiet", "--add"]) == 0
    assert f"4 exams (2 new, 2 not of {two})" in capsys.readouterr().out
    assert cli.main(["prepare", str(one), str(dst), "--quiet", "--prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exams"] == 2
    with pytest.raises(SystemExit):
        cli.main(["prepare", str(one), str(dst), "--add", "--prune"])
