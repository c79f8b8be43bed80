"""Every CUDA source compiles with nvcc alone, without a warning and without spilled registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SOURCES = sorted(CSRC.glob("*.cu"))
ARCHITECTURES = ("80", "90")


def find_nvcc():
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which("nvcc") or next(
        (
            str(Path(home) / "bin" / "nvcc")
            for home in homes
            if home and (Path(home) / "bin" / "nvcc").is_file()
        ),
        None,
    )


def spilled(report):
    """The kernels of a `ptxas -v` report that spill, with their architecture."""
    kernels, name = [], "?"
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            name = f"{entry[1]} on {entry[2]}"
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if spills and (int(spills[1]) or int(spills[2])):
            kernels.append(name)
    return kernels


def test_the_spill_report_is_understood():
    report = """ptxas info    : Compiling entry function '_Zgood' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Zbad' for 'sm_90'
    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads"""
    assert spilled(report) == ["_Zbad on sm_90"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_warnings_and_spills(source, tmp_path):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: neither on PATH nor under CUDA_HOME or /usr/local/cuda")
    command = [nvcc, "-O3", "-std=c++17", "-Xptxas", "-v", "-Werror", "all-warnings", f"-I{CSRC}"]
    for arch in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command += ["-c", str(source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    for arch in ARCHITECTURES:
        assert f"for 'sm_{arch}'" in done.stderr, "ptxas reported no kernel"
    assert spilled(done.stderr) == []


def test_only_the_ops_files_include_torch():
    for path in CSRC.iterdir():
        includes = re.findall(r"#include\s*<((?:torch|ATen|c10)/[^>]+)>", path.read_text())
        assert not includes or path.name.startswith("ops"), f"{path.name}: {includes}"


@pytest.mark.parametrize("source", sorted(CSRC.glob("ops*.cpp")), ids=lambda path: path.name)
def test_the_torch_side_of_a_cuda_build_compiles(source):
    """A CPU-only PyTorch has all that the ops files need: no CUDA header is involved."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    from torch.utils.cpp_extension import include_paths

    command = [compiler, "-std=c++20", "-fsyntax-only", "-DWITH_CUDA", "-Wall", "-Wextra", "-Werror"]
    for path in include_paths():
        command += ["-isystem", path]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
