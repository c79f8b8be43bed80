"""One process at a time trains a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fast_settings import FAST
from small_exams import write_cohort

from deepatlas.errors import DataError
from deepatlas.locks import held
from deepatlas.train.__main__ import main

HOLD = """
import sys
from pathlib import Path
from deepatlas.locks import held
with held(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""
SETTINGS = [s for s in FAST if "phantom" not in s]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    return write_cohort(tmp_path / "data", 2)


def start(data, out, *more):
    return ["--data", str(data), "--preset", "tiny", "--out", str(out), "--device", "cpu", *SETTINGS, *more]


@pytest.mark.parametrize("way", ["--out", "--resume"])
def test_a_second_process_is_refused_in_one_line_and_changes_nothing(data, tmp_path, capsys, way):
    out = tmp_path / "run"
    out.mkdir()
    # What the first process has begun with.
    assert main([*start(data, out, "train.batch=0"), "--quiet"]) == 1
    capsys.readouterr()
    (out / "config.json").write_text(
        json.dumps({"config": {}, "request": {"out": str(out), "data": str(data)}})
    )
    before = (out / "config.json").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        arguments = start(data, out, "--quiet") if way == "--out" else ["--resume", str(out), "--quiet"]
        assert main(arguments) == 1
        err = capsys.readouterr().err
        other.stdin.close()
    assert (
        err
        == f"deepatlas: error: {out}: another process trains this run; wait until it has ended, or choose "
        "another --out\n"
    )
    assert (out / "config.json").read_bytes() == before
    assert {p.name for p in out.iterdir()} == {"config.json", "lock"}


def test_the_lock_is_held_while_a_run_works_and_ends_with_it(data, tmp_path, capsys, monkeypatch):
    out, seen = tmp_path / "run", []

    def stop(*_, **__):
        with pytest.raises(DataError, match="busy"), held(out / "lock", "busy"):
            pass
        seen.append(True)
        raise DataError("stopped")

    monkeypatch.setattr("deepatlas.train.experiment.open_store", stop)
    assert main([*start(data, out), "--quiet"]) == 1
    assert seen and "stopped" in capsys.readouterr().err
    assert main(["--resume", str(out), "--quiet"]) == 1
    assert len(seen) == 2 and "stopped" in capsys.readouterr().err
    with held(out / "lock", "busy") as there:
        assert there


def test_a_disk_without_locks_is_named(data, tmp_path, capsys, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(95, "Operation not supported")

    def stop(*_, **__):
        raise DataError("stopped")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr("deepatlas.train.experiment.open_store", stop)
    assert main([*start(data, tmp_path / "run"), "--quiet"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "its disk has no file locks; see that no other" in lines[0]


def test_the_lock_of_another_user_that_may_only_be_read_can_be_held(tmp_path, monkeypatch):
    path, open_file = tmp_path / "lock", os.open

    def as_another_user(name, flags, *mode):
        if flags & os.O_RDWR and os.path.exists(name):
            raise PermissionError(13, "Permission denied", str(name))
        return open_file(name, flags, *mode)

    umask = os.umask(0o022)
    try:
        with held(path, "busy", anybody=True), held(tmp_path / "own", "busy"):
            assert [p.stat().st_mode & 0o777 for p in (path, tmp_path / "own")] == [0o644, 0o600]
    finally:
        os.umask(umask)
    monkeypatch.setattr(os, "open", as_another_user)
    with held(path, "busy") as there:
        assert there
        with pytest.raises(DataError, match="busy"), held(path, "busy"):
            pass
