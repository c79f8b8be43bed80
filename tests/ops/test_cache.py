"""Where things are kept, with and without a home; a cached library without a compiler; waiting for another build."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest
import torch

from deepatlas_ops import _build, _jit, cache

needs_tools = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine"
)

# A user id without an entry in /etc/passwd, and no HOME.
NOBODY = """
import os, pwd, sys
for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = getpwuid
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A library of one line, built into a cache of its own."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "ops.cpp").write_text('extern "C" int deepatlas_cached_value() { return 2; }\n')
    monkeypatch.setattr(_jit, "find_sources", lambda: folder)
    monkeypatch.setattr(_build, "_cuda", lambda: (None, None, None))
    monkeypatch.setenv("DEEPATLAS_OPS_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_cache_is_where_the_user_has_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_CACHE", str(tmp_path / "given"))
    assert cache.user_cache("x", "SOME_CACHE") == tmp_path / "given" and not (tmp_path / "given").exists()
    monkeypatch.delenv("SOME_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.user_cache("x", "SOME_CACHE") == tmp_path / "xdg" / "x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.user_cache("x", "SOME_CACHE") == tmp_path / "home" / ".cache" / "x"


def test_without_a_home_the_cache_is_private_below_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = cache.user_cache("x", "SOME_CACHE")
    assert found == tmp_path / f"deepatlas-{os.getuid()}" / "x" == cache.user_cache("x", "SOME_CACHE")
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    # Anybody could have put a library there.
    found.parent.chmod(0o777)
    other = cache.user_cache("x", "SOME_CACHE")
    assert other.parent != found.parent and stat.S_IMODE(other.parent.stat().st_mode) == 0o700


@pytest.mark.slow(6)
def test_commands_and_stores_work_for_a_user_id_without_a_name(tmp_path):
    script = NOBODY + (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from small_exams import write_cohort\n"
        "from deepatlas.cli.main import main\n"
        "from deepatlas.config import Config\n"
        "from deepatlas.train.data import open_store\n"
        "from deepatlas.train.log import NullLog\n"
        "from deepatlas.train.request import Request\n"
        "assert main(['info', 'headneck']) == 0\n"
        "data = write_cohort(Path('data'), 1)\n"
        "print(open_store(data, Config(), Request('out'), NullLog(), progress=False).path)\n"
    )
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "DEEPATLAS_OPS_BACKEND": "torch"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("DEEPATLAS_CACHE", "DEEPATLAS_OPS_CACHE", "HOME"):
        environment.pop(name, None)
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", script, tests],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path / "tmp" / f"deepatlas-{os.getuid()}"))


@needs_tools
def test_a_cached_library_is_used_where_no_compiler_is_found(sources, monkeypatch, capfd):
    built = _build._load()
    assert built.native, built.reason
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    capfd.readouterr()
    found = _build._load()
    assert found.native and found.directory == built.directory and found.compiler == built.compiler
    assert found.flags == built.flags and capfd.readouterr().err == ""
    # Not for other sources, processors or versions of PyTorch, and not without its record.
    with monkeypatch.context() as patch:
        patch.setattr(_jit, "processor", lambda: "another processor")
        assert not _build._load().native
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0.0")
        assert not _build._load().native
    record = cache.record(_jit.cache_directory() / os.path.basename(built.directory))
    cache.write_record(_jit.cache_directory() / os.path.basename(built.directory), {})
    assert _build._load().reason.startswith("no C++ compiler found")
    cache.write_record(_jit.cache_directory() / os.path.basename(built.directory), record)
    assert _build._load().native
    (sources / "ops.cpp").write_text("// other\n")
    assert _build._load().reason.startswith("no C++ compiler found")


@needs_tools
def test_a_cached_library_is_used_without_ninja(sources, monkeypatch):
    assert _build._load().native
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **more: None if name == "ninja" else which(name, **more)
    )
    assert _build._load().native
    (sources / "ops.cpp").write_text("// other\n")
    assert _build._load().reason.startswith("no ninja found")


@pytest.mark.parametrize(
    ("architectures", "devices", "runs"),
    [
        (None, [(9, 0)], True),
        ("8.0;9.0+PTX", [(9, 0), (8, 0)], True),
        ("8.0;9.0+PTX", [(12, 0)], True),
        ("8.0;9.0", [(12, 0)], False),
        ("9.0+PTX", [(8, 0)], False),
        ("9.0a", [(9, 0)], True),
        ("nonsense", [(9, 0)], False),
    ],
)
def test_a_library_for_other_gpus_is_not_used(monkeypatch, architectures, devices, runs):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: devices[i])
    assert _build._runs_on_devices(architectures) == runs


@pytest.mark.slow(1)
def test_who_waits_for_another_process_says_so_once_after_some_seconds(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 0.3)
    lock, done = tmp_path / "a.lock", []

    def wait():
        with cache.file_lock(lock, "waiting for it"):
            done.append(True)

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.1)
        assert capfd.readouterr().err == ""
        thread.join(1)
        assert capfd.readouterr().err == "waiting for it\n" and not done
    thread.join(10)
    assert done
    with cache.file_lock(lock, "waiting for it"):
        assert capfd.readouterr().err == ""


def test_records_are_read_back_the_latest_first_and_damaged_ones_are_empty(tmp_path):
    assert cache.records(tmp_path / "none") == []
    for name in "abc":
        (tmp_path / name).mkdir()
        cache.write_record(tmp_path / name, {"name": name})
    (tmp_path / "c" / cache.RECORD).write_text(json.dumps(["no", "record"]))
    for when, name in enumerate("cab"):
        os.utime(tmp_path / name / cache.RECORD, (when, when))
    assert [(folder.name, about) for folder, about in cache.records(tmp_path)] == [
        ("b", {"name": "b"}), ("a", {"name": "a"}), ("c", {}),
    ]  # fmt: skip
