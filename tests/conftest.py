"""Fixtures for all tests. This file also puts its folder on the import path, for modules such as ``small_exams``."""

from __future__ import annotations

import faulthandler
import sys
import tempfile
from collections import Counter
from pathlib import Path

# Many tests start processes. What Python compiles for this one is written down (PYTHONDONTWRITEBYTECODE forbids it), or
# each of them would compile the package again.
sys.dont_write_bytecode = False

import pytest  # noqa: E402
import torch  # noqa: E402
from _pytest.faulthandler import fault_handler_stderr_fd_key  # noqa: E402
from real_exams import real  # noqa: E402
from small_exams import write_cohort  # noqa: E402

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


# A worker of pytest-xdist that crashes is replaced so many times.
_REPLACED = 1


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = str(_REPLACED)


def pytest_sessionstart(session):
    """A worker of pytest-xdist that crashes writes down what the thread did that crashed (see below)."""
    told = getattr(session.config, "workerinput", None)
    if told is not None and fault_handler_stderr_fd_key in session.config.stash:
        # Open until the process ends.
        file = open(_crash_file(told["testrunuid"], told["workerid"]), "w")  # noqa: SIM115
        faulthandler.enable(file, all_threads=False)


def pytest_sessionfinish(session):
    told = getattr(session.config, "workerinput", None)
    if told is not None:
        _crash_file(told["testrunuid"], told["workerid"]).unlink(missing_ok=True)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report, sched):
    """What a worker did that crashed, however little of the output somebody sees.

    The first one is listed with the skipped tests, and its test runs again in another process; a second one is a
    failure, and so is one that is not replaced.
    """
    told = report.node.workerinput
    file = _crash_file(told["testrunuid"], told["workerid"])
    stack = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    text = f"{report.longrepr}\n{stack or 'It left no stack: something killed it, such as a lack of memory.'}"
    sched.crashes += 1
    if sched.crashes > min(_REPLACED, int(sched.config.option.maxworkerrestart)):
        report.longrepr = text
    else:
        report.outcome, report.longrepr = (
            "skipped",
            (crashitem, 0, f"Skipped: {text}\n{crashitem} runs again"),
        )


def _crash_file(run: str, worker: str) -> Path:
    return Path(tempfile.gettempdir(), f"deepatlas-tests-{run}-{worker}.txt")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file run in one process, which makes the file's fixtures once (pytest -n 2)."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        crashes = 0

        def remove_node(self, node):
            # The files that a crashed worker has finished would be given out again, without a test in them, and
            # whoever is given one waits for ever for its end.
            files = self.assigned_work[node]
            for file in [name for name, tests in files.items() if all(tests.values())]:
                del files[file]
            return super().remove_node(node)

    # The files go out in the order of pytest_collection_modifyitems.
    config.option.loadscopereorder = False
    return Files(config, log)


def pytest_collection_modifyitems(items):
    """The slowest files come first, so that no process is left alone with a long one at the end."""
    seconds: Counter[Path] = Counter()
    for item in items:
        seconds[item.path] += _seconds(item)  # type: ignore[assignment]
    items.sort(key=lambda item: -seconds[item.path])


def _seconds(item) -> float:
    """What the mark ``slow`` of a test says of its length: 10 seconds, or those that it names; 0.2 without it."""
    mark = item.get_closest_marker("slow")
    if mark is None:
        return 0.2
    return mark.kwargs.get("seconds", mark.args[0] if mark.args else 10.0)
