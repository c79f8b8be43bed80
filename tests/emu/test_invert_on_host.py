"""The functors of inversion that CUDA runs and the blocked CPU kernels agree, under sanitizers, without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent.parent / "csrc"

BUILDS = [
    pytest.param(["-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], id="memory"),
    pytest.param([], id="portable"),
    pytest.param(["-march=native", "-fsanitize=thread"], id="races", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("flags", BUILDS)
def test_functors_and_cpu_kernels_agree(flags, tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "invert_on_host"
    sources = [str(Path(__file__).with_name("invert_on_host.cpp")), str(CSRC / "invert.cpp")]
    command = [compiler, "-std=c++17", "-O0", "-g1", "-Wall", "-Wextra", "-pthread", f"-I{CSRC}"]
    built = subprocess.run([*command, *flags, *sources, "-o", str(program)], capture_output=True, text=True)
    if built.returncode != 0 and "cannot find" in built.stderr:
        pytest.skip(f"the sanitizer's library is not installed: {built.stderr.strip().splitlines()[0]}")
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "0 failures\n"
