"""Fixtures for all tests. This file also puts its folder on the import path, for modules such as ``small_exams``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from real_exams import real
from small_exams import write_cohort

# The inputs are small: a second thread would only wait, and on a busy machine for a long time.
torch.set_num_threads(1)


@pytest.fixture
def cohort_dir(tmp_path: Path) -> Path:
    """A data directory of three small exams, made for this test."""
    return write_cohort(tmp_path / "data")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real exams (see :mod:`real_exams`)."""
    return real("openkbp/train").parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Processes that have finished take over tests from the end of the others' lists (pytest -n 2)."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_modifyitems(items):
    """Files with many slow tests come first, so that no process is left alone with a long test at the end.

    The tests of a file stay together, because they share what its fixtures make.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
