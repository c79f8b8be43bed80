"""``deepatlas prepare`` on a dask cluster of two workers, each in its own process."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3

import pytest
from small_exams import write_cohort

from deepatlas.errors import DataError
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.intake.run import work
from deepatlas.intake.run.outcome import Outcome
from deepatlas.intake.run.pipeline import Options, prepare
from deepatlas.intake.run.work import prepare_exam

dask = pytest.importorskip("dask", reason="dask is not installed (pip install '.[dask]')")
distributed = pytest.importorskip(
    "distributed", reason="dask's distributed is not installed (pip install '.[dask]')"
)
pytest.importorskip("joblib", reason="joblib is not installed (pip install '.[dask]')")


# Each worker of the cluster imports PyTorch.
pytestmark = pytest.mark.slow(4)


@pytest.fixture(scope="module")
def address():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=60
    ) as cluster:
        yield cluster.scheduler_address


def deadly_exam(job) -> Outcome:
    """As prepare_exam, but e2 kills its process, as a fault in a C library does."""
    if job.attempts is not None and job.plan.name == "e2" and work.count_attempt(job.attempts):
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare_exam(job)


def same_salt(folder):
    """Pseudonyms are equal in two datasets only if these have the same salt."""
    (folder / "there.private").mkdir(mode=0o700)
    shutil.copy(folder / "here.private" / "salt", folder / "there.private")


def test_a_dask_cluster_makes_the_same_dataset(tmp_path, address):
    src = write_cohort(tmp_path / "src", 4)
    options = {"progress": False, "keep_ids": True}
    prepare(src, tmp_path / "here", Options(workers=1, **options))
    same_salt(tmp_path)
    summary = prepare(src, tmp_path / "there", Options(engine="dask", address=address, **options))
    assert summary.exams == summary.made == 4
    tables = [list(sqlite3.connect(tmp_path / n / "manifest.sqlite").iterdump()) for n in ("here", "there")]
    assert tables[0] == tables[1]
    for name in ("dataset.json", "packed.h5", "manifest.sqlite", "report.html"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    assert not list((tmp_path / "there.private" / "attempts").iterdir())
    again = prepare(src, tmp_path / "there", Options(engine="dask", address=address, **options))
    assert again.made == 0 and len(Dataset(tmp_path / "there")) == 4


def test_an_exam_that_kills_its_worker_is_refused_alone(tmp_path, address, monkeypatch):
    src = write_cohort(tmp_path / "src", 3)
    monkeypatch.setattr(work, "prepare_exam", deadly_exam)
    summary = prepare(
        src, tmp_path / "dst", Options(engine="dask", address=address, progress=False, keep_ids=True)
    )
    assert Dataset(tmp_path / "dst").ids == ["e1", "e3"]
    assert "died twice" in summary.refused["e2"]


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path):
    src = write_cohort(tmp_path / "src", 1)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(DataError, match="no dask scheduler answers"),
    ):
        prepare(src, tmp_path / "dst", Options(engine="dask", address="tcp://127.0.0.1:9", progress=False))
