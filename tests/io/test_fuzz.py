"""Damaged files of every format: see fuzz_formats for what is asked, fuzz_worker for how to repeat a case."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from fuzz_damage import difference
from fuzz_formats import FORMATS
from fuzz_worker import Worker

LONG = os.environ.get("DEEPATLAS_LONG_TESTS") == "1"
CASES = int(os.environ.get("DEEPATLAS_FUZZ_CASES", 160 if LONG else 10))  # of each format
FIRST = int(os.environ.get("DEEPATLAS_FUZZ_FIRST", "0"))  # other cases than the usual ones


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.truth])
def test_the_independent_reader_agrees_on_whole_files(tmp_path, name):
    (tmp_path / "whole").mkdir()
    FORMATS[name].make(tmp_path / "whole")
    arrays, _ = FORMATS[name].read(tmp_path / "whole")
    assert difference(arrays, FORMATS[name].truth(tmp_path / "whole")) == ""


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(worker, name, record_property):
    outcomes, complaints = Counter(), []
    for number in range(FIRST, FIRST + CASES):
        result = worker.ask(name, number)
        outcomes[result["outcome"]] += 1
        if result["complaint"]:
            complaints.append(f"{name} {number}: {result['what']}: {result['complaint']}")
    record_property("outcomes", dict(outcomes))
    print(name, dict(outcomes))
    assert not complaints, "\n".join(complaints)
    assert outcomes["error"], "no damage was noticed at all"
