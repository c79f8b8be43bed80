"""Split files and nested subsets."""

from __future__ import annotations

import json

import pytest
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.exams.parts import Parts, read_parts, subset

IDS = [f"pt_{i}" for i in range(12)]


def split(folder, content):
    path = folder / "splits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_every_exam_is_in_the_part_that_the_file_names(tmp_path):
    parts = read_parts(
        split(
            tmp_path,
            {"train": ["pt_3", "pt_1"], "validation": ["pt_2"], "test": ["pt_0"], "labelled": ["pt_3"]},
        )
    )
    assert parts.training(IDS) == ["pt_1", "pt_3"]
    assert parts.learnable(IDS) == ["pt_3"]
    assert parts.scoring(IDS) == ["pt_0"] and parts.scoring(IDS, "validation") == ["pt_2"]
    assert parts.scoring(IDS, "train") == ["pt_1", "pt_3"]


def test_what_a_file_leaves_out_is_trained_on(tmp_path):
    parts = read_parts(split(tmp_path, {"validation": IDS[:3]}))
    assert parts.training(IDS) == parts.learnable(IDS) == IDS[3:]
    assert parts.scoring(IDS) == IDS[:3]
    with pytest.raises(DataError, match="names no part 'test'; it has validation"):
        parts.scoring(IDS, "test")
    # Where no part is for scoring, what was not trained on is.
    assert read_parts(split(tmp_path, {"train": IDS[:10]})).scoring(IDS) == IDS[10:]
    assert read_parts(split(tmp_path, {"labelled": IDS[:2]})).learnable(IDS) == IDS[:2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": []}, "train is empty"),
        ({"train": ["a"], "test": ["b", "a"]}, "exam a is in train and in test"),
        ({"test": ["a", "b", "a"]}, "test names exam 'a' twice"),
        ({"val": ["a"]}, "unknown part 'val'; "),
        ({"train": "a"}, "train is no list of exam ids"),
        ({"train": [1]}, "train is no list of exam ids"),
        ({"train": ["a"], "labelled": ["b"]}, "labelled names exam b, which is not in train"),
        ({"test": ["a"], "labelled": ["a"]}, "labelled names exam a, which is in test"),
        ([], "not a JSON object of parts"),
        ("{", "not JSON"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, words):
    path = split(tmp_path, content)
    with pytest.raises(DataError) as error:
        read_parts(path)
    assert words in one_line(error.value) and str(path) in str(error.value)


def test_a_missing_file_and_an_unknown_exam_are_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_parts(tmp_path / "none.json")
    parts = Parts(tmp_path / "s.json", validation=("pt_1", "pt_99"))
    with pytest.raises(DataError, match="validation names exam 'pt_99', which the data lack; did you mean"):
        parts.check(IDS)
    # An exam that cannot be used is skipped with its own reason.
    parts.check(IDS, {"pt_99": "damaged"})


def test_smaller_subsets_lie_within_larger_ones():
    ids = [f"exam {i}" for i in range(1000)]
    sizes = [0.01, 0.1, 250, 0.5, 1000]
    subsets = [subset(ids, limit, 7) for limit in sizes]
    assert [len(s) for s in subsets] == [10, 100, 250, 500, 1000]
    for small, large in zip(subsets, subsets[1:], strict=False):
        assert set(small) < set(large)
    # In the order of the cohort, and the same whatever the order that it is given in.
    assert all(s == [i for i in ids if i in set(s)] for s in subsets)
    assert set(subset(ids[::-1], 0.1, 7)) == set(subsets[1])
    # Another seed takes others; an exam that is named is always there.
    assert subset(ids, 0.1, 8) != subsets[1]
    missing = next(i for i in ids if i not in subsets[0])
    assert missing in subset(ids, 0.01, 7, keep={missing})
    # A cohort that grows loses none that a fixed number had taken but to the new ones.
    grown = set(subset([*ids, *(f"new {i}" for i in range(10))], 250, 7))
    assert {i for i in grown if i.startswith("exam")} <= set(subsets[2])


def test_no_more_exams_than_there_are():
    with pytest.raises(DataError, match="data.limit=13: there are only 12 exams to train on"):
        subset(IDS, 13, 0)
    assert subset(IDS, 1.0, 0) == IDS and len(subset(IDS, 0.001, 0)) == 1
