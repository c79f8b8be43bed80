"""Random damage to files of every format. See fuzz_damage for the requirements, fuzz_worker to repeat one case."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from fuzz_damage import difference
from fuzz_formats import FORMATS
from fuzz_worker import Worker

LONG = os.environ.get("DEEPATLAS_LONG_TESTS") == "1"
# The number of cases of each format, and the first one.
CASES = int(os.environ.get("DEEPATLAS_FUZZ_CASES", 160 if LONG else 10))
FIRST = int(os.environ.get("DEEPATLAS_FUZZ_FIRST", "0"))


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.truth])
def test_the_independent_reader_agrees_on_undamaged_files(tmp_path, name):
    folder = tmp_path / "undamaged"
    folder.mkdir()
    FORMATS[name].make(folder)
    arrays, _ = FORMATS[name].read(folder)
    assert difference(arrays, FORMATS[name].truth(folder)) == ""


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_an_error_or_the_right_result(worker, name, record_property):
    outcomes, complaints = Counter(), []
    for number in range(FIRST, FIRST + CASES):
        result = worker.ask(name, number)
        outcomes[result["outcome"]] += 1
        if result["complaint"]:
            complaints.append(f"{name} {number}: {result['what']}: {result['complaint']}")
    record_property("outcomes", dict(outcomes))
    print(name, dict(outcomes))
    assert not complaints, "\n".join(complaints)
    assert outcomes["error"], "no damage was noticed"
