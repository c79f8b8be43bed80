"""Exams whose folders have names that are not UTF-8, or as long as names can be, in a store."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_exams import LABELS, write_cohort

from deepatlas.exams.build_store import prepare_cohort
from deepatlas.store.store import Store


@pytest.mark.parametrize("raw", [b"M\xfcl", "Mü 体".encode(), b"x" * 250])
def test_a_store_keeps_the_name_of_every_exam(tmp_path, raw):
    data, name = write_cohort(tmp_path / "data", 2), os.fsdecode(raw)
    try:
        (data / "e1").rename(data / name)
    except OSError:
        pytest.skip("this file system does not take the name")
    path = tmp_path / f"{name[:240]}.h5"
    with prepare_cohort(data, path, progress=False):
        pass
    with Store(path) as store:
        assert set(store.ids) == {name, "e2"} == set(store.sources)
        row = store.index(name)
        assert (
            store.has_label[row].all() and np.count_nonzero(store.labels_64[row]) and LABELS == store.labels
        )
