"""What a run keeps and unpacks is for its owner alone, whatever the umask."""

from __future__ import annotations

import os
import stat
import zipfile

import pytest
from prepare_here import prepare_here
from small_exams import write_cohort

from deepatlas.intake.run import pipeline, work


@pytest.fixture
def loose():
    before = os.umask(0)
    yield
    os.umask(before)


def test_work_folders_and_unpacked_archives_are_private(tmp_path, monkeypatch, loose):
    write_cohort(tmp_path / "data", 2)
    (tmp_path / "src").mkdir()
    with zipfile.ZipFile(tmp_path / "src" / "study.zip", "w") as archive:
        for path in (tmp_path / "data").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path))
    private, seen = tmp_path / "dst.private", {}
    make, finish = work.prepare_exam, pipeline.finish

    def look(result):
        for path in (private, *private.rglob("*")):
            if not path.is_symlink():
                seen[path.relative_to(tmp_path)] = stat.S_IMODE(path.stat().st_mode), path.is_dir()
        return result

    opened = work._read
    monkeypatch.setattr(work, "_read", lambda source: look(opened(source)))
    monkeypatch.setattr(work, "prepare_exam", lambda job: look(make(job)))
    monkeypatch.setattr(pipeline, "finish", lambda *a, **k: look(finish(*a, **k)))
    assert prepare_here(tmp_path / "src", tmp_path / "dst").exams == 2
    assert (
        any(path.name == "ct.nii.gz" for path in seen)
        and any(path.name == "labels.json" for path in seen)
        or any(".table" in path.name for path in seen)
    )
    assert {path: mode for path, (mode, is_dir) in seen.items() if mode != (0o700 if is_dir else 0o600)} == {}
