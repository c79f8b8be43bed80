"""Every CUDA source compiles with nvcc alone, without a warning and without spilled registers.

tests/ops/test_sanitizer.py compiles the PyTorch side of a CUDA build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import compile_cache
import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SOURCES = sorted(CSRC.glob("*.cu"))
ARCHITECTURES = ("80", "90")
LONG = bool(os.environ.get("DEEPATLAS_LONG_TESTS"))


def find_nvcc() -> str | None:
    if found := shutil.which("nvcc"):
        return found
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").is_file():
            return str(Path(home) / "bin" / "nvcc")
    return None


def spilled(report: str) -> list[str]:
    """The kernels in a report of ``ptxas -v`` that spill registers, with their architectures."""
    kernels, name = [], "?"
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            name = f"{entry[1]} on {entry[2]}"
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if spills and (int(spills[1]) or int(spills[2])):
            kernels.append(name)
    return kernels


def compiler_output(command: list[str], source: Path) -> str:
    """What a compiler prints for a source that includes headers of csrc/. It must compile. The output is cached."""

    def compile_source(folder: Path) -> None:
        done = subprocess.run([*command, str(source)], capture_output=True, encoding="utf-8", cwd=folder)
        assert done.returncode == 0, done.stderr
        for path in folder.glob("object.*"):
            path.unlink()
        (folder / "output").write_text(done.stderr)

    parts = (*command, compile_cache.version_of(command[0]))
    files = [source, *compile_cache.headers_in(CSRC)]
    return (compile_cache.compiled(parts, files, compile_source) / "output").read_text()


def test_the_spill_report_is_understood():
    report = """ptxas info    : Compiling entry function '_Zgood' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Zbad' for 'sm_90'
    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads"""
    assert spilled(report) == ["_Zbad on sm_90"]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_without_warnings_and_spills(source):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: neither on PATH nor under CUDA_HOME or /usr/local/cuda")
    # This level is for the host side alone, which only launches. What is compiled for the device is always optimised.
    command = [nvcc, "-O0", "-std=c++17", "-Xptxas", "-v", "-Werror", "all-warnings"]
    if LONG:
        for arch in ARCHITECTURES:
            command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    else:
        # No source asks for an architecture, so one pass of the compiler serves the assemblers of all.
        codes = ",".join(f"sm_{arch}" for arch in ARCHITECTURES)
        command += ["-gencode", f"arch=compute_{ARCHITECTURES[0]},code=[{codes}]"]
    # Without -c, the code of the host is read, but not compiled: tests/emu does that.
    output = ["-c", "-o", "object.o"] if LONG else ["-fatbin", "-o", "object.fatbin"]
    report = compiler_output([*command, *output], source)
    assert "warning" not in report, report
    for arch in ARCHITECTURES:
        assert f"for 'sm_{arch}'" in report, "ptxas reported no kernel"
    assert spilled(report) == []


def test_no_source_asks_for_an_architecture():
    for path in CSRC.iterdir():
        assert not re.search(r"__CUDA_ARCH__\s*[<>=!]", path.read_text()), path.name


def test_only_the_ops_files_include_torch():
    for path in CSRC.iterdir():
        includes = re.findall(r"#include\s*<((?:torch|ATen|c10)/[^>]+)>", path.read_text())
        assert not includes or path.name.startswith("ops"), f"{path.name}: {includes}"
