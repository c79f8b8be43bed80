"""Worker processes that crash, hang, are renewed or raise."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest

from deepatlas import engines
from deepatlas.engines import Died, default_workers, open_engine
from deepatlas.errors import DataError, WriteError


def work(job: str) -> str:
    """The work of the processes; ``job`` tells how it ends."""
    if job == "segfault":
        ctypes.string_at(0)
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(3)
    if job == "hang":
        time.sleep(100)
    if job == "data":
        raise DataError("one line")
    if job == "write":
        raise WriteError("no room")
    if job == "bug":
        raise KeyError("x")
    if job == "pid":
        return str(os.getpid())
    return job.upper()


@pytest.fixture(scope="module")
def pool():
    with open_engine(workers=2) as engine:
        yield engine


def test_results_come_with_their_jobs(pool):
    jobs = [f"j{i}" for i in range(50)]
    assert sorted(pool.run(work, jobs)) == sorted((j, j.upper()) for j in jobs)
    assert list(pool.run(work, [])) == []


def test_a_worker_that_dies_costs_its_job_alone(pool):
    jobs = ["a", "segfault", "b", "killed", "exit", *"cdefgh"]
    results = dict(pool.run(work, jobs))
    assert {j for j, r in results.items() if r == j.upper()} == set("abcdefgh")
    assert results["segfault"] == Died("its process was ended by SIGSEGV")
    assert results["killed"] == Died("its process was ended by SIGKILL, perhaps for lack of memory")
    assert results["exit"] == Died("its process ended with code 3")


def test_jobs_are_taken_as_they_are_needed(pool):
    taken = []

    def jobs():
        for i in range(100):
            taken.append(i)
            yield f"j{i}"

    results = pool.run(work, jobs())
    for _ in range(3):
        next(results)
    assert len(taken) <= 3 + 2 * 2
    results.close()
    assert list(pool.run(work, ["after"])) == [("after", "AFTER")]


def test_errors_of_the_work_are_raised(pool):
    with pytest.raises(DataError, match="one line"):
        list(pool.run(work, ["data"]))
    with pytest.raises(DataError, match="no room"):
        list(pool.run(work, ["write"]))
    with pytest.raises(RuntimeError, match="KeyError: 'x'"):
        list(pool.run(work, ["bug"]))


@pytest.mark.slow(2)
def test_a_worker_that_hangs_is_ended():
    with open_engine(workers=1, timeout=2) as engine:
        results = dict(engine.run(work, ["a", "hang", "b"]))
    assert results == {"a": "A", "hang": Died("not done after 2 seconds"), "b": "B"}


def test_processes_are_renewed(monkeypatch):
    monkeypatch.setattr(engines, "_RECYCLE", 3)
    with open_engine(workers=1) as engine:
        pids = [pid for _, pid in engine.run(work, ["pid"] * 5)]
    assert len(set(pids)) == 2 and pids[:3] == [pids[0]] * 3


ORPHAN = """
import os, sys, time
sys.path.insert(0, {folder!r})
from test_engines import work
from deepatlas.engines import open_engine
if __name__ == "__main__":
    with open_engine(workers=1) as engine:
        print(next(engine.run(work, ["pid"]))[1], flush=True)
        next(engine.run(work, ["hang"]))
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN.format(folder=os.path.dirname(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, encoding="utf-8", env=environment
    )
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = open(f"/proc/{worker}/stat").read().split(") ")[1][0]
        except OSError:
            return
        if state == "Z":
            # It has ended, but nobody has waited for it.
            return
        time.sleep(0.05)
    pytest.fail(f"worker {worker} lives on")


def test_a_missing_engine_is_one_line_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        DataError, match=r"--engine dask needs more packages; pip install 'deepatlas\[dask\]'"
    ):
        with open_engine("dask"):
            pass


def test_default_workers_fit_the_machine(monkeypatch):
    assert 1 <= default_workers() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 9 << 18, "SC_PAGE_SIZE": 4096}[name])
    assert default_workers() == 3
