"""Compiles a library of kernels on first use, and keeps it in a cache. Knows neither PyTorch nor NumPy.

A :class:`Plan` says what is compiled and how. It is compiled once for each combination of sources, flags, compiler,
processor and what the library is built against, into the folder ``<cache>/<key>/``, from which later processes load it.
The cache is ``DEEPATLAS_OPS_CACHE`` if that is set, otherwise ``deepatlas_ops`` in the cache directory of the user.
Without a compiler, a library that was built for this processor and for what is installed is loaded all the same.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import fnmatch
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from .cache import file_lock, record, records, user_cache, write_record

CACHE_VARIABLE = "DEEPATLAS_OPS_CACHE"
# How long a failed build is not repeated, so that the processes of one job do not all fail one after another.
RETRY_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True)
class BuildInfo:
    """The outcome of a build; ``deepatlas_ops.build_info`` explains the entries."""

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


def find_sources() -> Path:
    """The folder of the C++ sources: inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_csrc", package.parent / "csrc"):
        if any(folder.glob("*.cpp")):
            return folder
    raise BuildError(f"the C++ sources are missing: no .cpp file in {package}/_csrc or {package.parent}/csrc")


def cache_directory() -> Path:
    """The folder that holds one folder for each build."""
    return user_cache("deepatlas_ops", CACHE_VARIABLE)


# ---- what to build ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan(abc.ABC):
    """Everything that determines a build. A library is a subclass, whose further fields are part of the key too."""

    # The name of the file, without its suffix.
    library: ClassVar[str]
    # What the messages call it.
    title: ClassVar[str]
    # Patterns of the sources that are no part of it, and the fields that are no part of the key.
    foreign: ClassVar[tuple[str, ...]] = ()
    unkeyed: ClassVar[tuple[str, ...]] = ("sources",)
    # Whether compiling also loads the library.
    loads_itself: ClassVar[bool] = False

    sources: Path
    compiler: str
    compiler_version: str
    flags: tuple[str, ...]
    processor: str

    @staticmethod
    def versions() -> tuple[str, ...]:
        """Of what the library must find when it is loaded."""
        return (str(sysconfig.get_config_var("SOABI")),)

    @staticmethod
    @abc.abstractmethod
    def open(library: Path) -> Any:
        """Load the library. Raises OSError if the file is damaged."""

    @staticmethod
    def fits(about: dict[str, Any]) -> bool:
        """Whether a library with this record runs on the devices of this machine. Removes what only this reads."""
        return True

    def check(self) -> None:
        """Raise BuildError if a tool is missing, besides the compiler that the plan names."""
        return None

    @abc.abstractmethod
    def compile(self, building: Path) -> None:
        """Compile and link into the folder ``building``.

        Raises a RuntimeError or OSError with the complete output of the tools.
        """

    def fallback(self, reason: str) -> Plan | None:
        """What to build where this fails for ``reason``."""
        return None

    def info(self, directory: Path, seconds: float) -> BuildInfo:
        return BuildInfo(
            native=True,
            compiler=f"{self.compiler}: {self.compiler_version}",
            flags=self.flags,
            arch=self.processor,
            directory=str(directory),
            seconds=seconds,
        )

    def more(self) -> dict[str, Any]:
        """What the record of the library says besides its BuildInfo."""
        return {}

    @property
    def usual_seconds(self) -> float:
        """How long compiling takes on a common machine."""
        return 40.0

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (".cpp",)

    @property
    def files(self) -> list[Path]:
        return [p for p in _sources(self.sources, self.foreign) if p.suffix in self.suffixes]

    @property
    def key(self) -> str:
        values = dataclasses.asdict(self)
        return self.digest(self.sources, (str(v) for k, v in values.items() if k not in self.unkeyed))

    @classmethod
    def digest(cls, sources: Path, more: Iterable[str]) -> str:
        """A hash of the sources, of the versions, and of ``more``."""
        digest = hashlib.sha256(cls.library.encode())
        for path in _sources(sources, cls.foreign):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
        digest.update("\0".join((*more, *cls.versions())).encode())
        return digest.hexdigest()[:20]


def _sources(folder: Path, foreign: Iterable[str]) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in (".h", ".cuh", ".cpp", ".cu")
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in foreign)
    ]


def compiler() -> tuple[str, str]:
    """The C++ compiler with its options, and its version."""
    asked = shlex.split(os.environ.get("CXX", ""))
    candidates = [asked[0]] if asked else ["c++", "g++", "clang++"]
    found = next((c for c in candidates if shutil.which(c)), None)
    if found is None:
        raise BuildError(f"no C++ compiler found (tried {', '.join(candidates)}); install g++ or set CXX")
    return " ".join(asked) or found, _first_line([*(asked or [found]), "--version"])


def flags() -> tuple[str, ...]:
    # -ffast-math would change the treatment of denormals in the whole process. -fno-math-errno and
    # -fno-trapping-math only give up errno and the floating-point exception flags, which no kernel reads, so that the
    # compiler can vectorise floor.
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    return ("-O3", native, "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden")


def processor() -> str:
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


def load(
    kind: type[Plan], make_plan: Callable[[], Plan], runs_on: Callable[[], str]
) -> tuple[BuildInfo, Any]:
    """The library of a kind, built first if the cache does not have it, and what opening it returned.

    Args:
        kind: the subclass of Plan.
        make_plan: how it is built here; raises BuildError where it cannot be.
        runs_on: a hash of what a library must have been built from and for, to run here, whichever compiler built it.

    Raises:
        BuildError: there is no library and none can be built, or the cache cannot be used.
    """
    try:
        with tool_path():
            try:
                plan = make_plan()
            except BuildError:
                # Without a compiler nothing can be built, and what was built can be used.
                if (found := _load_any(kind, runs_on())) is not None:
                    return found
                raise
            try:
                return load_or_build(plan, runs_on)
            except BuildError as error:
                if (smaller := plan.fallback(str(error))) is None:
                    raise
                return load_or_build(smaller, runs_on)
    except OSError as error:
        problem = f"the build cache {cache_directory()} cannot be used ({error})"
        raise BuildError(f"{problem}; set {CACHE_VARIABLE} to another folder") from None


def _load_any(kind: type[Plan], wanted: str) -> tuple[BuildInfo, Any] | None:
    """The newest library in the cache that runs here, loaded; None if there is none."""
    for directory, about in records(cache_directory()):
        # Records of earlier versions do not say what the library runs on.
        if about.pop("runs_on", None) != wanted or not kind.fits(about):
            continue
        # Damaged files are passed over.
        with contextlib.suppress(OSError, TypeError, KeyError):
            info = BuildInfo(**{**about, "flags": tuple(about["flags"]), "directory": str(directory)})
            return info, kind.open(directory / f"{kind.library}.so")
    return None


def load_or_build(plan: Plan, runs_on: Callable[[], str]) -> tuple[BuildInfo, Any]:
    """The library of a plan, and what opening it returned."""
    directory = cache_directory() / plan.key
    directory.parent.mkdir(parents=True, exist_ok=True)
    library = directory / f"{plan.library}.so"
    if not directory.is_dir():
        with _lock_of(directory, plan.title):
            # Another process may have built the library while this one waited.
            if not directory.is_dir():
                return _build(plan, directory, runs_on())
    try:
        opened = plan.open(library)
    except OSError:
        # The library in the cache is damaged. Another process may replace it while this one waits; if not, build it.
        with _lock_of(directory, plan.title):
            try:
                opened = plan.open(library)
            except OSError:
                shutil.rmtree(directory, ignore_errors=True)
                return _build(plan, directory, runs_on())
    return plan.info(directory, record(directory).get("seconds") or 0.0), opened


def _build(plan: Plan, directory: Path, runs_on: str) -> tuple[BuildInfo, Any]:
    """Compile in a separate folder and rename that when it is complete. The caller must hold the file lock."""
    log = directory.with_suffix(".log")
    plan.check()
    _raise_recent_failure(log)
    building = directory.with_suffix(".building")
    # An interrupted build leaves this folder behind, with PyTorch's own lock file in it.
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    earlier = (a.get("seconds") for f, a in records(directory.parent) if (f / f"{plan.library}.so").exists())
    say(f"building {plan.title} (once, about {next(earlier, None) or plan.usual_seconds:.0f} s) ...")
    start = time.perf_counter()
    try:
        plan.compile(building)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        log.write_text(str(error), encoding="utf-8")
        shutil.rmtree(building, ignore_errors=True)
        raise BuildError(f"the build failed, see {log}") from None
    seconds = time.perf_counter() - start
    for leftover in (*building.glob("*.o"), *building.glob("*.cpp")):
        leftover.unlink()
    # PyTorch adds a number to the name if a process builds twice, as after a failed build with CUDA.
    next(building.glob("*.so")).rename(building / f"{plan.library}.so")
    info = plan.info(directory, seconds)
    write_record(building, {**dataclasses.asdict(info), "runs_on": runs_on, **plan.more()})
    os.replace(building, directory)
    log.unlink(missing_ok=True)
    say(f"built {plan.title} in {seconds:.0f} s")
    return info, None if plan.loads_itself else plan.open(directory / f"{plan.library}.so")


def say(line: str) -> None:
    print(f"deepatlas_ops: {line}", file=sys.stderr, flush=True)


def _raise_recent_failure(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - log.stat().st_mtime < RETRY_SECONDS:
            raise BuildError(f"the build failed a short while ago, see {log}; delete it to try again")


@contextlib.contextmanager
def _lock_of(directory: Path, title: str) -> Iterator[None]:
    """Keep other processes from building in ``directory``."""
    waiting = f"deepatlas_ops: waiting for another process that builds {title} in {directory.parent} ..."
    if os.name == "nt":
        raise BuildError("native kernels are built on Linux and macOS only")
    with file_lock(directory.with_suffix(".lock"), waiting):
        yield


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the length of a block."""
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


def tool_path() -> contextlib.AbstractContextManager[None]:
    """Adds the folder of this Python to PATH, where ninja is if a virtual environment has not been activated."""
    folder = os.path.dirname(sys.executable)
    path = os.environ.get("PATH", "")
    return environment({"PATH": os.pathsep.join([path, folder]) if path else folder})
