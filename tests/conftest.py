"""Fixtures for all tests. This file also puts its folder on the import path, for modules such as ``small_exams``."""

from __future__ import annotations

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


def pytest_collection_modifyitems(config, items):
    """Slow files come first, shared out among the processes of pytest-xdist, so that none has a long one at the end.

    At the beginning every process gets an equal number of tests, in the order of the items, and processes that have
    finished take over from the end of the others' parts. So each part begins with its share of the slow tests. The
    tests of a file stay together, because they share what its fixtures make.
    """
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    files: dict[Path, list] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    seconds = {path: sum(map(_seconds, of)) for path, of in files.items()}
    most = len(items) // processes
    parts: list[list] = [[] for _ in range(processes)]
    work = [0.0] * processes
    for path in sorted((p for p in files if seconds[p]), key=lambda p: -seconds[p]):
        least = work.index(min(work))
        if len(parts[least]) + len(files[path]) <= most:
            parts[least] += files.pop(path)
            work[least] += seconds[path]
    rest = [item for of in files.values() for item in of]
    for part in parts:
        missing = most - len(part)
        part += rest[:missing]
        del rest[:missing]
    items[:] = [item for part in parts for item in part] + rest


def _seconds(item) -> float:
    """What the mark ``slow`` of a test says of its length: 10 seconds, or those that it names."""
    mark = item.get_closest_marker("slow")
    return 0.0 if mark is None else mark.args[0] if mark.args else 10.0
