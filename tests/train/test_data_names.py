"""The store of a data directory with any name is kept in the cache under a name that is short enough."""

from __future__ import annotations

import os

import pytest
from small_exams import write_cohort

from deepatlas.config import Config
from deepatlas.train.data import open_store
from deepatlas.train.log import NullLog
from deepatlas.train.request import Request


@pytest.mark.parametrize("raw", [b"M\xfcl", "Mü 体".encode(), b"x" * 250, b"x" + "ü".encode() * 120])
def test_data_of_any_name_have_a_store(tmp_path, monkeypatch, raw):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / os.fsdecode(raw)
    try:
        data.mkdir()
    except OSError:
        pytest.skip("this file system does not take the name")
    write_cohort(data, 1)
    paths = set()
    for _ in range(2):
        with open_store(data, Config(), Request("out"), NullLog(), progress=False) as store:
            assert store.ids == ["e1"]
            paths.add(store.path)
    assert len(paths) == 1 and len(os.fsencode(paths.pop().name)) < 130
