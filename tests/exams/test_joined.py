"""Cohorts of several data directories, with the splits that lie in them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_dataset import write_dataset
from small_exams import body, one_line

from deepatlas.errors import DataError
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.joined import find_cohort
from deepatlas.exams.selection import Selection
from deepatlas.io.codec import write_volume


def directory(root: Path, ids: str, labels: dict[str, int] | None = None, split: dict | None = None) -> Path:
    """Exams of empty files; those of capital letters have a segmentation."""
    for name in ids:
        (root / name).mkdir(parents=True)
        (root / name / "ct.nii.gz").touch()
        if name.isupper():
            (root / name / "seg.nii.gz").touch()
    if labels is not None:
        (root / "labels.json").write_text(json.dumps(labels))
    if split is not None:
        (root / "splits.json").write_text(json.dumps(split))
    return root


def refused(*data: Path, split=None) -> str:
    with pytest.raises(DataError) as error:
        find_cohort(data, split)
    return one_line(error.value)


def test_several_directories_are_one_cohort(tmp_path):
    a = directory(tmp_path / "a", "AB", {"liver": 1})
    b = directory(tmp_path / "deep" / "b", "Cd", {"spleen": 2, "liver": 1})
    unlabelled = directory(tmp_path / "c", "xy")
    cohort = find_cohort([a, b, unlabelled])
    assert [exam.id for exam in cohort.exams] == list("ABCdxy")
    assert cohort.labels == {"liver": 1, "spleen": 2} and cohort.labels_path == a / "labels.json"
    assert cohort.exam("C").ct == b / "C" / "ct.nii.gz" and cohort.root == tmp_path
    assert cohort.roots == (a, b, unlabelled) and cohort.parts is None


def test_what_clashes_is_one_line(tmp_path):
    a = directory(tmp_path / "a", "AB", {"liver": 1})
    assert "has an exam 'B', as" in refused(a, directory(tmp_path / "b", "CB", {"liver": 1}))
    assert "is given twice as --data" in refused(a, tmp_path / "x" / ".." / "a")
    text = refused(a, directory(tmp_path / "c", "D", {"liver": 2}))
    assert "c/labels.json: says 'liver' = 2" in text and "says 'liver' = 1" in text
    text = refused(a, directory(tmp_path / "d", "E", {"spleen": 1}))
    assert "says 'spleen' = 1" in text and "says 'liver' = 1" in text


def test_a_split_is_that_of_its_directory_or_of_all(tmp_path):
    split = {"train": ["A", "B"], "test": ["C"], "labelled": ["A"]}
    a = directory(tmp_path / "a", "ABCD", {"liver": 1}, split)
    extension = directory(tmp_path / "ext", "EF", {"liver": 1})
    alone = find_cohort(a)
    assert alone.parts and alone.parts.training(list("ABCD")) == ["A", "B"]
    both = find_cohort([a, extension])
    ids = [exam.id for exam in both.exams]
    assert both.parts and both.parts.training(ids) == list("ABEF"), "D is in no part, and E and F in no file"
    assert both.parts.learnable(ids) == ["A"] and both.parts.scoring(ids) == ["C"]
    own = tmp_path / "own.json"
    own.write_text('{"validation": ["D", "E"]}')
    given = find_cohort([a, extension], own)
    assert given.parts and given.parts.training(ids) == list("ABCF") and given.parts.path == own


def test_a_split_names_exams_that_are_there_and_labelled(tmp_path):
    a = directory(tmp_path / "a", "ABx", {"liver": 1}, {"train": ["A", "Z"]})
    assert "train names exam 'Z', which the data lack" in refused(a)
    own = tmp_path / "own.json"
    own.write_text('{"labelled": ["A", "x"]}')
    assert "labelled names exam x, which has no seg" in refused(a, split=own)


def test_labelled_exams_are_those_of_the_part(tmp_path):
    a = directory(tmp_path / "a", "ABCd", {"liver": 1}, {"test": ["C", "d"]})
    cohort = find_cohort(a)
    selection = Selection(cohort, among=cohort.parts.scoring(list("ABCd")))
    assert [exam.id for exam in selection.files] == ["C"] and selection.unlabelled == ["d"]
    with pytest.raises(DataError, match="none of the 1 exams of this part has a seg file"):
        Selection(cohort, among=["d"])
    # What is asked for by name is used.
    assert [exam.id for exam in Selection(cohort, ["A"], among=["C"]).files] == ["A"]


def test_a_store_is_made_of_a_directory_and_a_dataset(tmp_path):
    ct, seg = body(seed=9)
    plain = tmp_path / "plain"
    write_volume(plain / "p1" / "image.nii.gz", ct)
    write_volume(plain / "p1" / "seg.nii.gz", seg)
    (plain / "labels.json").write_text('{"bone": 1, "lung": 2}')
    dataset = write_dataset(tmp_path / "dataset")
    with prepare_cohort([plain, dataset.folder], tmp_path / "s.h5", progress=False) as store:
        assert store.ids == ["p1", "e1", "e2", "e3"] and not store.skipped
        assert store.has_label.any(1).tolist() == [True, True, True, False]
        assert store.roots == [str(plain), str(dataset.folder)] and store.source(1).is_file()
        with prepare_cohort(dataset.folder, tmp_path / "unused.h5", progress=False) as alone:
            np.testing.assert_array_equal(store.hu[1], alone.hu[0])
        fingerprint = store.fingerprint
    with prepare_cohort([plain, dataset.folder], tmp_path / "s.h5", progress=False) as again:
        assert again.fingerprint == fingerprint
    with h5py.File(tmp_path / "s.h5") as file:
        assert json.loads(file["meta"][()])["intensity"] == "hu"
