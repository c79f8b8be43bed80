"""The just-in-time build, with a source of one line: cache, locks, interruptions and failures."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch

import deepatlas_ops as ops
from deepatlas_ops import _build, _jit

SOURCE = 'extern "C" int deepatlas_test_value() { return 1; }\n'

# Another process with the same sources and cache. It reports its actions on stderr and the outcome on stdout.
PROCESS = """
import json, pathlib, sys
from deepatlas_ops import _build, _jit
_jit.find_sources = lambda: pathlib.Path(sys.argv[1])
_build._cuda = lambda: (None, None, None)
_build.load()
print(json.dumps(_build.info()))
"""

needs_tools = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine"
)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "ops.cpp").write_text(SOURCE)
    monkeypatch.setattr(_jit, "find_sources", lambda: folder)
    monkeypatch.setattr(_build, "_cuda", lambda: (None, None, None))
    monkeypatch.setenv("DEEPATLAS_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEEPATLAS_OPS_BACKEND", raising=False)
    return folder


def start(sources, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROCESS, str(sources)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def built_lines(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("deepatlas_ops: ")]


@needs_tools
def test_builds_once_and_says_so(sources, capfd):
    info = _build._load()
    assert info.native, info.reason
    lines = built_lines(capfd)
    assert len(lines) == 2
    assert lines[0].startswith("deepatlas_ops: building native kernels (once, about ")
    assert lines[1].startswith("deepatlas_ops: built native kernels in ")
    assert os.listdir(_jit.cache_directory() / info.directory) != []
    assert not list(_jit.cache_directory().glob("*.building"))

    again = _build._load()
    assert again == info
    assert built_lines(capfd) == []


@pytest.mark.slow
@needs_tools
def test_processes_at_the_same_time_build_once(sources, capfd):
    processes = [start(sources) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert sum(error.count("building native kernels") for _, error in results) == 1
    for output, error in results:
        assert json.loads(output)["backend"] == "native", error
    # A later process, such as this one, does not build.
    assert _build._load().native
    assert built_lines(capfd) == []


@needs_tools
def test_every_input_of_the_build_is_in_its_key(sources, monkeypatch):
    keys = [_build._plan().key, _build._plan().key]
    assert keys[0] == keys[1]
    (sources / "ops.cpp").write_text(SOURCE + "\n")
    keys.append(_build._plan().key)
    (sources / "extra.h").write_text("")
    keys.append(_build._plan().key)
    monkeypatch.setattr(_jit, "processor", lambda: "another processor")
    keys.append(_build._plan().key)
    monkeypatch.setattr(_build, "_flags", lambda: ("-O1",))
    keys.append(_build._plan().key)
    monkeypatch.setattr(_build.torch, "__version__", "0.0.0")
    keys.append(_build._plan().key)
    monkeypatch.setattr(_jit, "_first_line", lambda command: "another compiler")
    keys.append(_build._plan().key)
    assert len(set(keys)) == len(keys) - 1


@needs_tools
def test_an_interrupted_build_is_repeated(sources):
    building = _jit.cache_directory() / f"{_build._plan().key}.building"
    building.mkdir(parents=True)
    # PyTorch would wait forever for the process that has left this file.
    (building / "lock").touch()
    (building / "build.ninja").write_text("nonsense")
    info = _build._load()
    assert info.native, info.reason
    assert not building.exists()


@needs_tools
def test_only_a_lock_that_is_held_blocks_a_build(sources):
    cache = _jit.cache_directory()
    cache.mkdir()
    lock = cache / f"{_build._plan().key}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = []
        thread = threading.Thread(target=lambda: done.append(_build._load()))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and not done
    # The file remains, but its lock ended with the process that held it.
    thread.join(60)
    assert done[0].native, done[0].reason
    assert lock.exists()


@needs_tools
def test_a_damaged_library_is_rebuilt(sources, capfd):
    # The library is damaged before this process maps it, as by a full disk.
    directory = _jit.cache_directory() / _build._plan().key
    directory.mkdir(parents=True)
    (directory / f"{_build.LIBRARY}.so").write_bytes(b"not a library")
    info = _build._load()
    assert info.native, info.reason
    assert len(built_lines(capfd)) == 2


@needs_tools
def test_a_failed_build_gives_one_line_and_a_log_and_is_not_repeated(sources, capfd):
    (sources / "ops.cpp").write_text("this is no C++\n")
    info = _build._load()
    assert not info.native
    assert info.reason.startswith("the build failed, see ") and "\n" not in info.reason
    log = _jit.cache_directory() / f"{_build._plan().key}.log"
    assert str(log) in info.reason
    assert "error" in log.read_text() and "this is no C++" in log.read_text()
    assert not list(_jit.cache_directory().glob("*.building"))
    capfd.readouterr()

    again = _build._load()
    assert not again.native and "delete it to try again" in again.reason
    assert built_lines(capfd) == []

    old = time.time() - 2 * _jit.RETRY_SECONDS
    os.utime(log, (old, old))
    # Other sources have another key, so they are compiled at once.
    (sources / "ops.cpp").write_text("neither is this\n")
    assert _build._load().reason.startswith("the build failed, see ")


@needs_tools
def test_where_nvcc_fails_the_cpu_kernels_are_built(sources, monkeypatch):
    monkeypatch.setattr(_build, "_cuda", lambda: (None, "9.0", "nvcc of a test"))

    def compile_cpu_only(plan, building, compile_plan=_build._compile):
        if plan.cuda_architectures is not None:
            raise RuntimeError("nvcc: no")
        compile_plan(plan, building)

    monkeypatch.setattr(_build, "_compile", compile_cpu_only)
    info = _build._load()
    assert info.native and not info.cuda, info.reason
    assert info.cuda_reason.startswith("the build failed, see ")


def test_without_a_compiler_the_reason_is_one_line(sources, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    info = _build._load()
    assert not info.native
    assert info.reason == "no C++ compiler found (tried /nonexistent/c++); install g++ or set CXX"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    # The folder of the Python environment is searched too. If it contains a compiler, this cannot be tested.
    if not any(shutil.which(c, path=os.path.dirname(sys.executable)) for c in ("c++", "g++", "clang++")):
        assert _build._load().reason.startswith("no C++ compiler found (tried c++, g++, clang++)")
    assert not _jit.cache_directory().exists()


def test_the_reason_for_an_unusable_cache_is_one_line(sources, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEEPATLAS_OPS_CACHE", str(tmp_path / "file" / "cache"))
    info = _build._load()
    assert not info.native
    assert "cannot be used" in info.reason or "no C++ compiler" in info.reason
    assert "\n" not in info.reason


def test_the_torch_backend_never_builds(sources, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_OPS_BACKEND", "torch")
    monkeypatch.setattr(_build, "_info", None)
    ops.resize(torch.zeros(1, 1, 2, 2, 2), (1, 1, 1))
    assert not _jit.cache_directory().exists()


@pytest.mark.slow(2)
def test_importing_builds_nothing_and_without_a_compiler_there_is_one_warning(tmp_path):
    code = (
        "import sys, torch, deepatlas_ops as ops\n"
        "assert 'deepatlas_ops._build' not in sys.modules\n"
        "v = torch.arange(8.).reshape(1, 1, 2, 2, 2)\n"
        "for _ in range(2): print(ops.resize(v, (1, 1, 1)).item())\n"
    )
    environment = {**os.environ, "CXX": "/nonexistent/c++", "DEEPATLAS_OPS_CACHE": str(tmp_path)}
    environment.pop("DEEPATLAS_OPS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.stdout.split() == ["3.5", "3.5"], done.stderr
    lines = [line for line in done.stderr.splitlines() if "deepatlas_ops: " in line]
    assert len(lines) == 1 and "no C++ compiler found (tried /nonexistent/c++)" in lines[0], done.stderr


def test_load_tries_once_for_all_threads(monkeypatch):
    calls = []

    def slow():
        calls.append(1)
        time.sleep(0.05)
        return _build.BuildInfo(native=False, reason="test")

    monkeypatch.setattr(_build, "_load", slow)
    monkeypatch.setattr(_build, "_info", None)
    threads = [threading.Thread(target=_build.load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert _build.load().reason == "test" and _build.info()["backend"] == "torch"


def test_the_tools_of_an_environment_that_is_not_activated_are_found(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    with _jit.tool_path():
        assert os.environ["PATH"].split(os.pathsep) == ["/usr/bin", os.path.dirname(sys.executable)]
    assert os.environ["PATH"] == "/usr/bin"


def test_the_libraries_of_an_nvcc_that_is_a_script_are_found_where_nvcc_says(monkeypatch, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        "#!/bin/sh\necho '#$ TOP=/cuda' >&2\necho '#$ LIBRARIES=  \"-L/a folder\" \"-L/cuda/lib\"' >&2\n"
    )
    nvcc.chmod(0o755)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path))
    assert _build._cuda_library_folders() == ["-L/a folder", "-L/cuda/lib"]
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    assert _build._cuda_library_folders() == []
