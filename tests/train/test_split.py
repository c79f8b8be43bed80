"""Which exams a run trains on, tests on, seeds its atlas from and makes its template from."""

from types import SimpleNamespace

import numpy as np
import pytest

from deepatlas.config import DataConfig
from deepatlas.errors import DataError
from deepatlas.space.grid import Grid
from deepatlas.train.request import Request
from deepatlas.train.split import choose_split, widest_exam


def test_the_atlas_is_seeded_from_the_exam_with_the_widest_coverage():
    masks = np.zeros((4, 64, 64, 64), dtype=np.uint8)
    # A wide slab.
    masks[0, 10:20, 8:56, 8:56] = 1
    # The longest, but thin.
    masks[1, 2:62, 30:40, 30:40] = 1
    # Nearly as long, and of typical build.
    masks[2, 3:62, 20:50, 20:50] = 1
    # All slices, but each of them only 1 mm thick.
    masks[3, :, 24:44, 24:44] = 1
    spacing = [5.0, 5.0, 5.0, 1.0]
    store = SimpleNamespace(
        index="abcd".index, mask=masks, grid=lambda i: Grid.from_spacing((64, 64, 64), (5.0, 5.0, spacing[i]))
    )
    assert widest_exam(store, list("abd")) == "b"
    assert widest_exam(store, list("abcd")) in "bc" and widest_exam(store, list("acd")) == "c"


def test_of_crops_without_air_the_most_typical_one_seeds_the_atlas():
    spacing = [1.0, 1.1, 1.05, 2.0]
    store = SimpleNamespace(
        index="abcd".index,
        mask=np.ones((4, 64, 64, 64), dtype=np.uint8),
        grid=lambda i: Grid.from_spacing((64, 64, 64), (1.0, 1.0, spacing[i])),
    )
    assert widest_exam(store, list("abcd")) in "bc", "and not the longest"


# -- what the user decides: a split file, a limit ---------------------------------------------------------------------


def store(labelled: str, unlabelled: str = "", root="data"):
    """What the choice of exams asks of a store; every exam is called by one letter."""
    ids = sorted(labelled + unlabelled)
    return SimpleNamespace(
        ids=ids, index=ids.index, root=str(root), roots=[str(root)], path="store.h5", labels={"bone": 1},
        has_label=np.array([[i in labelled] for i in ids]),
    )  # fmt: skip


def choose(exams, data, settings=None, **request):
    parts = request.pop("parts", None)
    if parts is not None:
        parts = {
            "path": "splits.json",
            "train": None,
            "validation": None,
            "test": None,
            "labelled": None,
        } | parts
    request.setdefault("seed_exam", "a")
    return choose_split(exams, Request("out", data=data, parts=parts, **request), settings or DataConfig(), 3)


def test_a_split_decides_who_is_trained_on_tested_on_and_whose_labels_count(tmp_path):
    exams = store("abcdef", "gh", tmp_path)
    parts = {"train": list("abcgh"), "validation": ["d", "e"], "test": ["f"], "labelled": ["b"]}
    split = choose(exams, str(tmp_path), parts=parts)
    assert split.train == list("abcgh") and split.drawn == split.template == ["b"]
    assert split.test == ["d", "e"] and split.test_data == [str(tmp_path)] and split.held_out(8) == ""
    # Without a validation part the test is scored on; without train, all others are trained on.
    split = choose(exams, str(tmp_path), parts={"test": ["f", "g"]})
    assert split.test == ["f"] and split.train == list("abcdeh") and split.drawn == list("abcde")
    # Where the file names neither, labelled training exams are held out.
    split = choose(exams, str(tmp_path), DataConfig(holdout=2), parts={"labelled": list("abcde")})
    assert len(split.test) == 2 and set(split.test) <= set("bcde") and split.labelled == 5
    assert not set(split.drawn) & set(split.test)


def test_a_split_refuses_what_contradicts_it(tmp_path):
    exams = store("abcd", root=tmp_path)
    with pytest.raises(DataError, match="b is named for the atlas or the template, and is no training exam"):
        choose(exams, str(tmp_path), parts={"train": ["a", "c"]}, template_exams=["b"])
    with pytest.raises(DataError, match="does not list the template exam b as labelled"):
        choose(exams, str(tmp_path), parts={"labelled": ["a"]}, template_exams=["b"])
    with pytest.raises(DataError, match="a is both tested on and named"):
        choose(exams, str(tmp_path), parts={"test": ["a"]})
    with pytest.raises(DataError, match="1 exam left to train on; at least 2"):
        choose(exams, str(tmp_path), parts={"test": ["b", "c", "d"]})


def test_a_limit_takes_nested_subsets_of_what_is_left_to_train_on(tmp_path):
    letters = "abcdefghijklmnopqrst"
    exams = store(letters, "uvwxyz", tmp_path)
    tests = choose(exams, str(tmp_path)).test
    before: set[str] = {"a"}
    for limit, count in ((0.17, 3), (6, 6), (0.5, 9), (18, 18)):
        split = choose(exams, str(tmp_path), DataConfig(limit=limit))
        assert len(split.train) == count and before <= set(split.train) and split.train == sorted(split.train)
        # The same exams are tested on, whatever the limit.
        assert split.test == tests and not set(split.train) & set(tests)
        assert split.drawn == [i for i in split.train if i in letters]
        before = set(split.train)
    with pytest.raises(DataError, match="data.limit=19: there are only 18 exams to train on"):
        choose(exams, str(tmp_path), DataConfig(limit=19))
    with pytest.raises(DataError, match="1 exam left to train on with data.limit=0.01; at least 2"):
        choose(exams, str(tmp_path), DataConfig(limit=0.01))


def test_the_template_is_made_from_a_labelled_exam_that_is_not_trained_on_if_none_is(tmp_path):
    exams = store("z", "abcdefgh", tmp_path)
    split = choose(exams, str(tmp_path), DataConfig(limit=3, holdout=0))
    assert "z" not in split.train and split.drawn == [] and split.template == ["z"]
