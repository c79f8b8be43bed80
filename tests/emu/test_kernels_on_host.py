"""The functors that CUDA runs and the blocked CPU kernels agree, under sanitizers and without a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = [
    Path(__file__).with_name("kernels_on_host.cpp"),
    *(ROOT / "csrc" / name for name in ("resample.cpp", "resize.cpp")),
]

BUILDS = [
    # Reads and writes outside a buffer and undefined arithmetic, with this machine's fast paths.
    pytest.param(["-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], id="memory"),
    # The portable code of any processor: no fast path, half conversions in software.
    pytest.param([], id="portable"),
    pytest.param(["-march=native", "-fsanitize=thread"], id="races", marks=pytest.mark.slow),
]


def build_and_run(paths, flags, tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "kernels_on_host"
    command = [compiler, "-std=c++17", "-O0", "-g1", "-Wall", "-Wextra", "-pthread", f"-I{ROOT / 'csrc'}"]
    built = subprocess.run(
        [*command, *flags, *map(str, paths), "-o", str(program)], capture_output=True, text=True, cwd=tmp_path
    )
    if built.returncode != 0 and "cannot find" in built.stderr:
        pytest.skip(f"the sanitizer's library is not installed: {built.stderr.strip().splitlines()[0]}")
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    done = subprocess.run([str(program)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "0 failures\n"


@pytest.mark.parametrize("flags", BUILDS)
def test_functors_and_cpu_kernels_agree(flags, tmp_path):
    build_and_run(SOURCES, flags, tmp_path)
