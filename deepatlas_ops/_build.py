"""Builds and loads the library of PyTorch ops: the CPU kernels and, where there is an nvcc, the CUDA kernels.

:mod:`deepatlas_ops._jit` keeps it in the cache; PyTorch's own tools compile it. A missing or failing compiler does not
raise an error here: :func:`load` gives the reason in ``BuildInfo.reason``, and the PyTorch bodies run.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import torch

from . import _jit, _objects
from ._jit import BuildError, BuildInfo

LIBRARY = "deepatlas_ops_native"
BINDINGS = "bindings.cpp"
# The architectures of a CUDA build on a machine without a GPU: A100 and H100, and PTX for later GPUs.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"

_lock = threading.Lock()
_info: BuildInfo | None = None


def load() -> BuildInfo:
    """Load the compiled library into PyTorch's dispatcher, and build it first if the cache does not have it.

    It may be called from any thread, and does its work once in a process. An unusable compiler raises no error.
    """
    global _info
    if _info is None:
        with _lock:
            if _info is None:
                _info = _load()
    return _info


def info() -> dict[str, Any]:
    """The outcome of :func:`load` as a dictionary; if it has not run yet, ``reason`` says so."""
    found = _info or BuildInfo(native=False, reason="not loaded: no op has been called yet")
    return {"backend": found.backend, **dataclasses.asdict(found)}


def _load() -> BuildInfo:
    try:
        return _jit.load(_Plan, _plan, _runs_on)[0]
    except BuildError as error:
        return BuildInfo(native=False, reason=str(error))


def is_binding(source: Path) -> bool:
    """Whether a source binds kernels to PyTorch, and so includes PyTorch's headers."""
    return source.name.startswith("ops_") and source.suffix == ".cpp"


def write_bindings(sources: Path, folder: Path) -> Path:
    """Write the file that includes every binding of ``sources``, and return its path.

    PyTorch's headers take several seconds, most of the time that a binding takes alone. So they are read once.
    """
    lines = [f'#include "{path.name}"\n' for path in sorted(filter(is_binding, sources.iterdir()))]
    bindings = folder / BINDINGS
    bindings.write_text("".join(lines), encoding="utf-8")
    return bindings


# ---- what to build ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan(_jit.Plan):
    """``cuda_architectures`` is None for a build without CUDA kernels."""

    library: ClassVar[str] = LIBRARY
    title: ClassVar[str] = "native kernels"
    foreign: ClassVar[tuple[str, ...]] = ("array*",)
    unkeyed: ClassVar[tuple[str, ...]] = ("sources", "cuda_reason")
    loads_itself: ClassVar[bool] = True

    cuda_architectures: str | None
    cuda_version: str | None
    cuda_reason: str | None

    @staticmethod
    def versions() -> tuple[str, ...]:
        return (torch.__version__, str(torch.version.git_version), *_jit.Plan.versions())

    @staticmethod
    def open(library: Path) -> None:
        torch.ops.load_library(library)

    @staticmethod
    def fits(about: dict[str, Any]) -> bool:
        return _runs_on_devices(about.pop("cuda_architectures", None))

    def more(self) -> dict[str, Any]:
        return {"cuda_architectures": self.cuda_architectures}

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (".cpp", ".cu") if self.cuda_architectures else (".cpp",)

    def info(self, directory: Path, seconds: float) -> BuildInfo:
        arch = self.processor + (f"; CUDA {self.cuda_architectures}" if self.cuda_architectures else "")
        cuda = self.cuda_architectures is not None
        plain = super().info(directory, seconds)
        return dataclasses.replace(plain, arch=arch, cuda=cuda, cuda_reason=self.cuda_reason)

    def fallback(self, reason: str) -> _Plan | None:
        # If nvcc fails, the CPU kernels are still useful. The PyTorch bodies then serve CUDA tensors.
        if self.cuda_architectures is None:
            return None
        return dataclasses.replace(self, cuda_architectures=None, cuda_version=None, cuda_reason=reason)

    def check(self) -> None:
        if shutil.which("ninja") is None:
            raise BuildError("no ninja found; install it with: pip install ninja")

    @property
    def usual_seconds(self) -> float:
        return 25.0 if self.cuda_architectures is None else 150.0

    def compile(self, building: Path) -> None:
        _compile(self, building)


def _plan() -> _Plan:
    sources = _jit.find_sources()
    compiler, version = _jit.compiler()
    reason, architectures, cuda_version = _cuda()
    return _Plan(
        sources=sources,
        compiler=compiler,
        compiler_version=version,
        flags=_flags(),
        processor=_jit.processor(),
        cuda_architectures=architectures,
        cuda_version=cuda_version,
        cuda_reason=reason,
    )


def _runs_on() -> str:
    return _Plan.digest(_jit.find_sources(), (*_flags(), _jit.processor()))


def _flags() -> tuple[str, ...]:
    # The library is compiled with OpenMP but not linked with it. So it uses the OpenMP runtime of PyTorch, which
    # respects torch.set_num_threads, and there is only one thread pool.
    return _jit.flags() if sys.platform == "darwin" else (*_jit.flags(), "-fopenmp")


def _cuda() -> tuple[str | None, str | None, str | None]:
    """Why the build will have no CUDA kernels, their architectures, and the version of nvcc; each may be None."""
    if torch.version.cuda is None:
        return None, None, None
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = Path(CUDA_HOME or "") / "bin" / "nvcc"
    if CUDA_HOME is None or not nvcc.is_file():
        return "no nvcc found; set CUDA_HOME to a CUDA toolkit", None, None
    version = subprocess.run(
        [nvcc, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stdout
    release = re.search(r"release (\d+)\.\d+", version)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        found = release[1] if release else "of unknown version"
        return f"nvcc {found} does not match CUDA {torch.version.cuda} of PyTorch", None, None
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not architectures and torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        found = sorted({torch.cuda.get_device_capability(i) for i in devices})
        architectures = ";".join(f"{major}.{minor}" for major, minor in found)
    return None, architectures or DEFAULT_CUDA_ARCHITECTURES, version.strip().splitlines()[-1]


def _runs_on_devices(architectures: str | None) -> bool:
    """Whether kernels for these CUDA architectures ("8.0;9.0+PTX"; None: the CPU alone) run on all GPUs here."""
    if architectures is None or not torch.cuda.is_available():
        return True
    pairs = [re.fullmatch(r"(\d+)\.(\d+)\w?(\+PTX)?", a) for a in re.split(r"[; ]+", architectures)]
    known = [((int(p[1]), int(p[2])), p[3]) for p in pairs if p]
    devices = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return all(any(a == device or (ptx and a < device) for a, ptx in known) for device in devices)


# ---- building ---------------------------------------------------------------------------------------


def _compile(plan: _Plan, building: Path) -> None:
    """Compile, link and load the library. A RuntimeError or OSError contains the complete output of the tools."""
    from torch.utils import cpp_extension

    cuda = plan.cuda_architectures is not None
    objects = _objects.kept(plan)
    kernels = [p for p in plan.files if not is_binding(p) and not (objects and p.suffix == ".cpp")]
    environment = {"CXX": plan.compiler}
    if plan.cuda_architectures is not None:
        environment["TORCH_CUDA_ARCH_LIST"] = plan.cuda_architectures
    with _jit.environment(environment):
        cpp_extension.load(
            name=LIBRARY,
            sources=[str(path) for path in (write_bindings(plan.sources, building), *kernels)],
            extra_cflags=[*plan.flags, *(["-DWITH_CUDA"] if cuda else [])],
            extra_cuda_cflags=["-O3"] if cuda else None,
            extra_ldflags=[
                *(shlex.quote(str(path)) for path in objects),
                *(_cuda_library_folders() if cuda else []),
            ],
            extra_include_paths=[str(plan.sources)],
            build_directory=str(building),
            with_cuda=cuda,
            is_python_module=False,
        )
    if not objects:
        _objects.keep(plan, building)


def _cuda_library_folders() -> list[str]:
    """The ``-L`` options that nvcc itself links with.

    PyTorch looks for the libraries beside nvcc, where they are not if the nvcc on PATH is a script that starts another.
    """
    from torch.utils.cpp_extension import CUDA_HOME

    command = [str(Path(CUDA_HOME or "") / "bin" / "nvcc"), "--dryrun", "-c", "-x", "cu", os.devnull]
    shown = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stderr
    found = re.search(r"^#\$ LIBRARIES=(.*)$", shown, re.MULTILINE)
    return shlex.split(found[1]) if found else []
