"""Disks without file locks: what is finished is read, and what needs locks is refused in one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from no_locks import without_locks
from small_dataset import write_dataset
from small_exams import LABELS, write_cohort

from deepatlas.exams.build_store import prepare_cohort
from deepatlas.localize.template.file import Template

READ = """
import fcntl, os, sys
from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.exam_file import ExamFile
from deepatlas.intake.dataset.check import check_dataset
from deepatlas.localize.template.file import Template
from deepatlas.store.store import Store
try:
    fcntl.flock(0, fcntl.LOCK_SH)
except OSError as error:
    assert error.errno == int(os.environ["NO_LOCKS"])
else:
    sys.exit("there are locks")
for path in ("set", "s.h5"):
    with Store(path) as store:
        assert store.hu[0].any() and store.labels_64[0].any()
with ExamFile(next(__import__("pathlib").Path("set").glob("exams/*/e1.h5"))) as exam:
    exam.verify()
Template.load("t.h5")
assert not list(check_dataset("set", progress=False))
prepare_cohort("data", "new.h5", progress=False).close()
print("read", flush=True)
from deepatlas.cli.main import main
sys.exit(main(["prepare", "data", "dst"]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_dataset(root / "set")
    write_cohort(root / "data", 2)
    prepare_cohort(root / "data", root / "s.h5", progress=False).close()
    masks = np.zeros((2, 8, 8, 8), np.float32)
    masks[:, 2:5, 2:5, 2:5] = 1
    Template(masks, tuple(LABELS), tuple(LABELS.values()), {"model": None}).save(root / "t.h5")
    return root


@pytest.mark.slow(4)
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_finished_files_are_read_and_prepare_says_why_it_cannot_write(made, tmp_path, error):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **without_locks(tmp_path, error)}
    run = {"cwd": made, "env": environment, "capture_output": True, "encoding": "utf-8", "timeout": 300}
    done = subprocess.run([sys.executable, "-c", READ], check=False, **run)
    assert done.stdout.startswith("read\n"), done.stderr
    (made / "new.h5").unlink()
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "its disk has no file locks" in done.stderr and "choose a folder on another disk" in done.stderr
