"""The native library with its CUDA launchers compiled for the CPU, to call them through the ops and without a GPU.

The `.cu` files are compiled as they are, as C++, with the `cuda_runtime.h` of this folder. Three things are changed
in copies of headers: `kernel<<<...>>>(...)` becomes a call that C++ has, the limit of 32-bit indices can be set, and
nothing is inlined by force, since one large function with the checks of a sanitizer compiles five times as long as many
small ones.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
LARGEST = 2**63 - 1
LAUNCH = re.compile(r"(\w+_kernel)(<[\w, ]+>)\s*<<<([^;]*?)>>>\(([^;]*?)\);")
FORCED = re.compile(r"#define DA_HD inline __attribute__\(\(always_inline\)\)")


def launchers() -> set[str]:
    """The names of all functions of the `.cu` files that launch kernels for an op."""
    return {
        name
        for file in CSRC.glob("*.cu")
        for name in re.findall(r"^const char\* (\w+_cuda)\(", file.read_text("utf-8"), re.M)
    }


def write_sources(folder: Path) -> Path:
    """Copy the sources to a new folder, in the form that a compiler for the CPU takes."""
    folder.mkdir(parents=True)
    for path in CSRC.iterdir():
        shutil.copy(path, folder / (f"cuda_{path.stem}.cpp" if path.suffix == ".cu" else path.name))
    shutil.copy(HERE / "cuda_runtime.h", folder)
    # Under this name it is compiled with the bindings, which include PyTorch's headers already.
    shutil.copy(HERE / "emulated.cpp", folder / "ops_emulated.cpp")
    waits = {"for_each_kernel": "false", "reduce_kernel": "true"}
    _replace(
        folder / "launch.cuh",
        LAUNCH,
        lambda m: f"emulate::launch<{waits[m[1]]}>({m[3]}, [&] {{ {m[1]}{m[2]}({m[4]}); }});",
        2,
    )
    _replace(
        folder / "launch.h",
        re.compile(r"inline bool fits_32_bit\(int64_t elements\) \{\n  return "),
        lambda m: "int64_t emulated_index_limit();\n" + m[0] + "elements <= emulated_index_limit() && ",
        1,
    )
    _replace(folder / "common.h", FORCED, lambda m: "#define DA_HD inline", 1)
    return folder


def _replace(path: Path, pattern: re.Pattern[str], new, count: int) -> None:
    text, found = pattern.subn(new, path.read_text(encoding="utf-8"))
    assert found == count, f"{path.name}: {found} places match {pattern.pattern}, not {count}"
    path.write_text(text, encoding="utf-8")


def use(folder: Path, flags: tuple[str, ...]) -> None:
    """Make `deepatlas_ops` build such a library in this process, with these flags, before it has loaded another."""
    from deepatlas_ops import _build, _jit

    sources = write_sources(folder)
    _jit.find_sources = lambda: sources
    _build._flags = lambda: (*flags, "-DWITH_CUDA", "-DEMULATE_CUDA")


class Emulation:
    """Switches a library that was built after :func:`use` between its CPU kernels and its CUDA launchers."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.emulate_cuda.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        self._library.emulated_launches.restype = ctypes.c_char_p

    @contextmanager
    def cuda(self, blocks: int = LARGEST, limit: int = LARGEST) -> Iterator[None]:
        """Run the CUDA launchers, with at most so many blocks a launch, and 64-bit indices above so many elements."""
        self._library.emulate_cuda(1, blocks, limit)
        try:
            yield
        finally:
            self._library.emulate_cuda(0, LARGEST, LARGEST)

    @property
    def launched(self) -> set[str]:
        """The names of the launchers that were called so far."""
        return set(self._library.emulated_launches().decode().split())
