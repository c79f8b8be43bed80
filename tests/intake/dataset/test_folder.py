"""The folder of a dataset: its files, what makes it finished, and how others read it."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from small_dataset import add_exam, files_of, write_dataset, write_report
from small_exams import LABELS, body, one_line

from deepatlas.errors import DataError
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.cohort import find_exams
from deepatlas.exams.exam_file import ExamFile, write_exam
from deepatlas.exams.read import read_volume
from deepatlas.intake.dataset.folder import (
    Dataset,
    assemble_packed,
    exam_name,
    exam_path,
    finish_dataset,
    label_table,
    read_dataset_json,
)
from deepatlas.intake.dataset.manifest import Manifest
from deepatlas.space.volume import Volume
from deepatlas.store.store import Store, is_dataset, is_store


def test_a_dataset(tmp_path):
    folder = tmp_path / "set"
    dataset = write_dataset(folder)
    assert dataset.ids == ["e1", "e2", "e3"] and len(dataset) == 3 and dataset.labels == LABELS
    assert [exam.id for exam in dataset] == dataset.ids and dataset.crop is None
    assert dataset.exam("e2").labels().array.any() and not dataset.exam("e3").has_labels
    with pytest.raises(DataError, match="no exam 'x'"):
        dataset.exam("x")
    assert set(files_of(folder)) == {
        "dataset.json", "manifest.sqlite", "packed.h5", "report.html", *(exam_name(i) for i in dataset.ids)
    }  # fmt: skip
    with dataset.manifest() as manifest:
        assert manifest.rows() == {"e1": 0, "e2": 1, "e3": 2}


@pytest.mark.slow(1)
def test_the_same_exams_give_the_same_bytes(tmp_path):
    """Whether they are prepared at once, in shards, one after the other, or again."""
    ids = ("e1", "e2", "e10", "b")
    whole = files_of(write_dataset(tmp_path / "set", ids).folder)
    assert Dataset(tmp_path / "set").ids == ["b", "e1", "e2", "e10"]
    assert files_of(write_dataset(tmp_path / "shards", ids, shards=3).folder) == whole
    later = tmp_path / "later"
    manifest = tmp_path / "m.sqlite"
    for i, exam in enumerate(ids):
        with Manifest(manifest) as opened:
            add_exam(later, opened, exam, i + 1, labelled=i < 3)
            opened.add_refusal("5f3a.txt", "file", "not an image")
        finish_dataset(later, [manifest], report=write_report)
    assert files_of(later) == whole
    finish_dataset(later, [later / "manifest.sqlite"], report=write_report)
    assert files_of(later) == whole


def test_new_exams_do_not_open_old_ones(tmp_path):
    """Unchanged rows come from the packed file instead of the exams, unless that file is damaged."""
    folder = tmp_path / "set"
    dataset = write_dataset(folder)
    before = [dataset.store.hu[row] for row in range(3)]
    with dataset.manifest() as manifest:
        exams = list(manifest.exams())
    with Manifest(tmp_path / "m.sqlite") as manifest:
        new = add_exam(folder, manifest, "e0", 9)
    for exam in ("e1", "e2", "e3"):
        exam_path(folder, exam).rename(tmp_path / f"{exam}.h5")
    assert assemble_packed(folder, [*exams, new]) == ["e0", "e1", "e2", "e3"]
    store = Store(folder)
    for row in range(3):
        np.testing.assert_array_equal(store.hu[row + 1], before[row])
    with pytest.raises(DataError, match="e1.h5"):  # this packed file is not the one that dataset.json knows
        assemble_packed(folder, exams)
    np.testing.assert_array_equal(Store(folder).hu[1], before[0])  # and it is left as it was


def test_exams_that_do_not_fit_together(tmp_path):
    folder = tmp_path / "set"
    ct, seg = body()
    a = write_exam(exam_path(folder, "a"), ct, seg, LABELS, {}, [])
    b = write_exam(exam_path(folder, "b"), ct, seg, {"bone": 2, "lung": 1}, {}, [])
    c = write_exam(exam_path(folder, "c"), ct, seg, LABELS, {}, [], crop="foreground")
    with pytest.raises(DataError, match="one label table"):
        assemble_packed(folder, [a, b])
    with pytest.raises(DataError, match="same --crop"):
        assemble_packed(folder, [a, c])
    with pytest.raises(DataError, match="no exam"):
        assemble_packed(folder, [])
    assert not (folder / "packed.h5").exists()


def test_an_exam_under_the_name_of_another(tmp_path):
    folder = tmp_path / "set"
    ct, seg = body()
    a, b = (write_exam(exam_path(folder, name), ct, seg, LABELS, {}, []) for name in "ab")
    exam_path(folder, "a").replace(exam_path(folder, "b"))
    with pytest.raises(DataError, match="not the exam that the manifest lists"):
        assemble_packed(folder, [b])
    with pytest.raises(DataError, match="no such exam file"):
        assemble_packed(folder, [a])


def test_label_tables_are_united(tmp_path):
    folder = tmp_path / "set"
    ct, seg = body()
    few = write_exam(exam_path(folder, "a"), ct, seg, LABELS, {}, [])
    wide = {"skin": 300, **LABELS}
    many = write_exam(exam_path(folder, "b"), ct, Volume(seg.array * 1, seg.grid), wide, {}, [])
    none = write_exam(exam_path(folder, "c"), ct, None, {}, {}, [])
    assert label_table([few, many, none]) == {"bone": 1, "lung": 2, "skin": 300}
    assemble_packed(folder, [few, many, none])
    store = Store(folder)
    assert store.labels_64.dtype == np.uint16  # of an exam that has bytes, too
    assert store.has_label.tolist() == [[True, True, False]] * 2 + [[False] * 3]
    np.testing.assert_array_equal(store.labels_64[0], store.labels_64[1])


def test_unfinished_and_edited(tmp_path):
    folder = write_dataset(tmp_path / "set").folder
    text = (folder / "dataset.json").read_text()
    for wrong in (text.replace('"exams": 3', '"exams": 4'), text.rstrip(), text[:50], "[]", '{"format": 1}'):
        (folder / "dataset.json").write_text(wrong)
        with pytest.raises(DataError) as error:
            read_dataset_json(folder)
        one_line(error.value)
    (folder / "dataset.json").unlink()
    assert not is_dataset(folder)
    for read in (read_dataset_json, find_exams, Dataset):
        with pytest.raises(DataError, match="run (it|prepare) again"):
            read(folder)


# -- consumers --------------------------------------------------------------------------------------


def test_reads_as_a_cohort_and_as_a_store(tmp_path):
    dataset = write_dataset(tmp_path / "set")
    moved = tmp_path / "elsewhere"
    # Nothing in a dataset depends on its place.
    dataset.folder.rename(moved)
    cohort = find_exams(moved)
    assert [e.id for e in cohort.exams] == ["e1", "e2", "e3"] and cohort.labels == LABELS
    assert cohort.exam("e3").seg is None
    ct, seg = body(seed=1)
    read = read_volume(cohort.exam("e1").ct)
    assert read.array.dtype == np.float32 and read.grid == ct.grid
    assert np.abs(read.array - ct.array).max() <= 0.5
    np.testing.assert_array_equal(read_volume(cohort.exam("e1").seg, labels=True).array, seg.array)
    assert is_store(moved) and is_dataset(moved)
    for path in (moved, moved / "packed.h5"):
        store = Store(path)
        assert store.root == str(moved) and store.source(0) == cohort.exam("e1").ct
    assert prepare_cohort(moved, tmp_path / "unused.h5").ids == store.ids
    with pytest.raises(DataError, match="crop=None, not crop=foreground"):
        prepare_cohort(moved, tmp_path / "unused.h5", crop="foreground")
    assert not (tmp_path / "unused.h5").exists()


def test_newer_formats_are_refused(tmp_path):
    dataset = write_dataset(tmp_path / "set", ("e1",))
    path = exam_path(dataset.folder, "e1")
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 3
    with pytest.raises(DataError, match="exam format 3, this program reads 1 and 2") as error:
        ExamFile(path)
    one_line(error.value)
    about = json.loads((dataset.folder / "dataset.json").read_text())
    (dataset.folder / "dataset.json").write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(DataError, match="dataset format 2, this program reads 1") as error:
        Dataset(dataset.folder)
    one_line(error.value)


def test_what_is_not_allowed_is_not_in_the_files(tmp_path):
    write_dataset(tmp_path / "set", ("e1", "e2"))
    assert not [
        name for name, data in files_of(tmp_path / "set").items() if b"Doe" in data or b"Jane" in data
    ]
