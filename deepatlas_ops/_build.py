"""Builds and loads the compiled kernels on first use, and keeps them in a cache.

The sources are compiled once for each combination of sources, flags, PyTorch, Python, compiler and processor, into the
folder ``<cache>/<key>/``, from which later processes load the library. The cache is ``DEEPATLAS_OPS_CACHE`` if that is
set, otherwise ``deepatlas_ops`` in the cache directory of the user. Without a compiler, a library that was built for
this PyTorch, Python and processor is loaded all the same. A missing or failing compiler does not raise an error here:
:func:`load` gives the reason in ``BuildInfo.reason``, and the PyTorch bodies run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from .cache import file_lock, record, records, user_cache, write_record

LIBRARY = "deepatlas_ops_native"
BINDINGS = "bindings.cpp"
CACHE_VARIABLE = "DEEPATLAS_OPS_CACHE"
# The architectures of a CUDA build on a machine without a GPU: A100 and H100, and PTX for later GPUs.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# How long a failed build is not repeated, so that the processes of one job do not all fail one after another.
RETRY_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True)
class BuildInfo:
    """The outcome of :func:`load`; ``deepatlas_ops.build_info`` explains the entries."""

    native: bool
    reason: str | None = None
    compiler: str | None = None
    flags: tuple[str, ...] = ()
    arch: str | None = None
    cuda: bool = False
    cuda_reason: str | None = None
    directory: str | None = None
    seconds: float | None = None

    @property
    def backend(self) -> str:
        return "native" if self.native else "torch"


class BuildError(RuntimeError):
    """The library cannot be built or loaded. The message has a single line."""


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


def find_sources() -> Path:
    """The folder of the C++ sources: inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_csrc", package.parent / "csrc"):
        if any(folder.glob("*.cpp")):
            return folder
    raise BuildError(f"the C++ sources are missing: no .cpp file in {package}/_csrc or {package.parent}/csrc")


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


def cache_directory() -> Path:
    """The folder that holds one folder for each build."""
    return user_cache("deepatlas_ops", CACHE_VARIABLE)


# ---- what to build ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything that determines a build. ``cuda_architectures`` is None for a build without CUDA kernels."""

    sources: Path
    compiler: str
    compiler_version: str
    flags: tuple[str, ...]
    cuda_architectures: str | None
    cuda_version: str | None
    cuda_reason: str | None
    processor: str

    def files(self, folder: Path) -> list[Path]:
        """What is compiled: the kernels, and all bindings to PyTorch as one file, which is written to ``folder``."""
        suffixes = (".cpp", ".cu") if self.cuda_architectures else (".cpp",)
        kernels = [p for p in self.sources.iterdir() if p.suffix in suffixes and not is_binding(p)]
        return [write_bindings(self.sources, folder), *sorted(kernels)]

    @property
    def key(self) -> str:
        values = dataclasses.asdict(self)
        return _digest(
            self.sources, (str(v) for k, v in values.items() if k not in ("sources", "cuda_reason"))
        )

    def info(self, directory: Path, seconds: float) -> BuildInfo:
        arch = self.processor + (f"; CUDA {self.cuda_architectures}" if self.cuda_architectures else "")
        return BuildInfo(
            native=True,
            compiler=f"{self.compiler}: {self.compiler_version}",
            flags=self.flags,
            arch=arch,
            cuda=self.cuda_architectures is not None,
            cuda_reason=self.cuda_reason,
            directory=str(directory),
            seconds=seconds,
        )


def _digest(sources: Path, more: Iterable[str]) -> str:
    """A hash of the sources, of this PyTorch and Python, and of ``more``."""
    digest = hashlib.sha256()
    for path in sorted(sources.iterdir()):
        if path.suffix in (".h", ".cuh", ".cpp", ".cu"):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    versions = (torch.__version__, str(torch.version.git_version), str(sysconfig.get_config_var("SOABI")))
    digest.update("\0".join((*more, *versions)).encode())
    return digest.hexdigest()[:20]


def _runs_on() -> str:
    """What a library must have been built from and for, to run here; whichever compiler built it."""
    return _digest(find_sources(), (*_flags(), _processor()))


def _plan() -> _Plan:
    sources = find_sources()
    asked = shlex.split(os.environ.get("CXX", ""))
    candidates = [asked[0]] if asked else ["c++", "g++", "clang++"]
    compiler = next((c for c in candidates if shutil.which(c)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler found (tried {', '.join(candidates)}); install g++ or set CXX")
    reason, architectures, version = _cuda()
    return _Plan(
        sources=sources,
        compiler=" ".join(asked) or compiler,
        compiler_version=_first_line([*(asked or [compiler]), "--version"]),
        flags=_flags(),
        cuda_architectures=architectures,
        cuda_version=version,
        cuda_reason=reason,
        processor=_processor(),
    )


def _flags() -> tuple[str, ...]:
    # -ffast-math would change the treatment of denormals in the whole process. -fno-math-errno and
    # -fno-trapping-math only give up errno and the floating-point exception flags, which no kernel reads, so that the
    # compiler can vectorise floor.
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    flags = ("-O3", native, "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")
    # The library is compiled with OpenMP but not linked with it. So it uses the OpenMP runtime of PyTorch, which
    # respects torch.set_num_threads, and there is only one thread pool.
    return flags if sys.platform == "darwin" else (*flags, "-fopenmp")


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


def _processor() -> str:
    """The model and the features of the processor: code that is compiled with -march=native runs only on these."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        fields = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.M))
        features = fields.get("flags") or fields.get("Features", "")
        name = fields.get("model name", platform.machine())
        return f"{name} ({hashlib.sha256(features.encode()).hexdigest()[:8]})"
    return platform.processor() or platform.machine()


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{shlex.join(command)} does not run ({error})") from None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown version"


# ---- building and loading ---------------------------------------------------------------------------


def _load() -> BuildInfo:
    try:
        with _tool_path():
            try:
                plan = _plan()
            except BuildError:
                # Without a compiler nothing can be built, and what was built can be used.
                if (found := _load_any()) is not None:
                    return found
                raise
            try:
                return _load_or_build(plan)
            except BuildError as error:
                if plan.cuda_architectures is None:
                    raise
                # If nvcc fails, the CPU kernels are still useful. The PyTorch bodies then serve CUDA tensors.
                return _load_or_build(
                    dataclasses.replace(
                        plan, cuda_architectures=None, cuda_version=None, cuda_reason=str(error)
                    )
                )
    except BuildError as error:
        return BuildInfo(native=False, reason=str(error))
    except OSError as error:
        problem = f"the build cache {cache_directory()} cannot be used ({error})"
        return BuildInfo(native=False, reason=f"{problem}; set {CACHE_VARIABLE} to another folder")


def _load_any() -> BuildInfo | None:
    """The newest library in the cache that runs here, loaded; None if there is none."""
    wanted = _runs_on()
    for directory, about in records(cache_directory()):
        # Records of earlier versions do not say what the library runs on.
        if about.pop("runs_on", None) != wanted or not _runs_on_devices(
            about.pop("cuda_architectures", None)
        ):
            continue
        # Damaged files are passed over.
        with contextlib.suppress(OSError, TypeError, KeyError):
            info = BuildInfo(**{**about, "flags": tuple(about["flags"]), "directory": str(directory)})
            torch.ops.load_library(directory / f"{LIBRARY}.so")
            return info
    return None


def _runs_on_devices(architectures: str | None) -> bool:
    """Whether kernels for these CUDA architectures ("8.0;9.0+PTX"; None: the CPU alone) run on all GPUs here."""
    if architectures is None or not torch.cuda.is_available():
        return True
    pairs = [re.fullmatch(r"(\d+)\.(\d+)\w?(\+PTX)?", a) for a in re.split(r"[; ]+", architectures)]
    known = [((int(p[1]), int(p[2])), p[3]) for p in pairs if p]
    devices = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return all(any(a == device or (ptx and a < device) for a, ptx in known) for device in devices)


def _load_or_build(plan: _Plan) -> BuildInfo:
    directory = cache_directory() / plan.key
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not directory.is_dir():
        with _lock_of(directory):
            # Another process may have built the library while this one waited.
            if not directory.is_dir():
                return _build(plan, directory)
    try:
        torch.ops.load_library(directory / f"{LIBRARY}.so")
    except OSError:
        # The library in the cache is damaged. Another process may replace it while this one waits; if not, build it.
        with _lock_of(directory):
            try:
                torch.ops.load_library(directory / f"{LIBRARY}.so")
            except OSError:
                shutil.rmtree(directory, ignore_errors=True)
                return _build(plan, directory)
    return plan.info(directory, record(directory).get("seconds") or 0.0)


def _build(plan: _Plan, directory: Path) -> BuildInfo:
    """Compile in a separate folder and rename that when it is complete. The caller must hold the file lock."""
    log = directory.with_suffix(".log")
    if shutil.which("ninja") is None:
        raise BuildError("no ninja found; install it with: pip install ninja")
    _raise_recent_failure(log)
    building = directory.with_suffix(".building")
    # An interrupted build leaves this folder behind, with PyTorch's own lock file in it.
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    cuda = plan.cuda_architectures is not None
    usual = 150.0 if cuda else 25.0
    expected = next((about.get("seconds") for _, about in records(directory.parent)), None) or usual
    _say(f"building native kernels (once, about {expected:.0f} s) ...")
    start = time.perf_counter()
    try:
        _compile(plan, building)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        log.write_text(str(error), encoding="utf-8")
        shutil.rmtree(building, ignore_errors=True)
        raise BuildError(f"the build failed, see {log}") from None
    seconds = time.perf_counter() - start
    for leftover in (*building.glob("*.o"), building / BINDINGS):
        leftover.unlink()
    # PyTorch adds a number to the name if a process builds twice, as after a failed build with CUDA.
    next(building.glob("*.so")).rename(building / f"{LIBRARY}.so")
    info = plan.info(directory, seconds)
    about = dataclasses.asdict(info)
    write_record(building, {**about, "runs_on": _runs_on(), "cuda_architectures": plan.cuda_architectures})
    os.replace(building, directory)
    log.unlink(missing_ok=True)
    _say(f"built native kernels in {seconds:.0f} s")
    return info


def _say(line: str) -> None:
    print(f"deepatlas_ops: {line}", file=sys.stderr, flush=True)


def _compile(plan: _Plan, building: Path) -> None:
    """Compile, link and load the library. A RuntimeError or OSError contains the complete output of the tools."""
    from torch.utils import cpp_extension

    cuda = plan.cuda_architectures is not None
    environment = {"CXX": plan.compiler}
    if plan.cuda_architectures is not None:
        environment["TORCH_CUDA_ARCH_LIST"] = plan.cuda_architectures
    with _environment(environment):
        cpp_extension.load(
            name=LIBRARY,
            sources=[str(path) for path in plan.files(building)],
            extra_cflags=[*plan.flags, *(["-DWITH_CUDA"] if cuda else [])],
            extra_cuda_cflags=["-O3"] if cuda else None,
            extra_ldflags=_cuda_library_folders() if cuda else None,
            extra_include_paths=[str(plan.sources)],
            build_directory=str(building),
            with_cuda=cuda,
            is_python_module=False,
        )


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


def _raise_recent_failure(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - log.stat().st_mtime < RETRY_SECONDS:
            raise BuildError(f"the build failed a short while ago, see {log}; delete it to try again")


@contextlib.contextmanager
def _lock_of(directory: Path) -> Iterator[None]:
    """Keep other processes from building in ``directory``."""
    waiting = (
        f"deepatlas_ops: waiting for another process that builds native kernels in {directory.parent} ..."
    )
    if os.name == "nt":
        raise BuildError("native kernels are built on Linux and macOS only")
    with file_lock(directory.with_suffix(".lock"), waiting):
        yield


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tool_path() -> contextlib.AbstractContextManager[None]:
    """Adds the folder of this Python to PATH, where ninja is if a virtual environment has not been activated."""
    folder = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", "")
    return _environment({"PATH": os.pathsep.join([path, folder]) if path else folder})
