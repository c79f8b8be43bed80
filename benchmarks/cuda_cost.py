"""What every CUDA kernel costs, from its machine code: no GPU is needed, and nothing here was measured on one.

    python benchmarks/cuda_cost.py [--cuobjdump PATH] [--write]

compiles the sources of `csrc` for sm_90 and sm_80, disassembles the float32 kernels with cuobjdump, and prints a
table: registers, stack, blocks of 256 threads that fit on a multiprocessor, loads, stores and atomics by width, the
bytes that must move, and the time predicted on an H200 by memory, cache and issue. `--write` puts it into
`benchmarks/results/cuda-cost.md`. The CUDA toolkit holds nvcc and cuobjdump; the wheel of triton has a cuobjdump, too.

The model. A thread handles one item (a voxel, or a piece of a sum). Its instructions are those of the body of its
loop, each once, and those of inner loops as often as `trips` says: an upper bound, since both sides of a branch count.
Issue time is this number for all warps at four instructions a clock and multiprocessor. Cache time counts each load,
store and atomic of a warp as whole, adjacent words at 128 bytes a clock and multiprocessor. Memory time is that of the
bytes that must move once, at the bandwidth of the card. The largest of the three binds.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHES = ("90", "80")
# NVIDIA's figures for the H200 (SXM): memory bandwidth, multiprocessors, and boost clock.
MEMORY_BYTES, PROCESSORS, CLOCK = 4.8e12, 132, 1.785e9
ISSUE = PROCESSORS * 4 * CLOCK
CACHE_BYTES = PROCESSORS * 128 * CLOCK
THREADS, WARP = 256, 32
# For each architecture: registers, warps and bytes of shared memory of a multiprocessor.
LIMITS = {"90": (65536, 64, 227 * 1024), "80": (65536, 64, 163 * 1024)}

# Four pairs of 64³, one channel unless a row says more.
N = 4 * 64**3


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Attributes:
        source: the file in csrc, without suffix.
        pattern: a regular expression for the demangled name of the kernel.
        title: what the table calls it.
        items: the threads' items.
        bytes: what must move to and from memory, each byte once.
        trips: how often each inner loop runs, in the order of their addresses; further ones run once.
    """

    source: str
    pattern: str
    title: str
    items: int
    bytes: int
    trips: tuple[float, ...] = ()


def for_each(functor: str, index: str = "int") -> str:
    return rf"for_each_kernel<{index}, {functor}"


# An inner loop that is unrolled over channels does not run for one channel.
CASES = [
    Case("resample", for_each("SampleForward<float, CoordsSource, 0"), "`resample` forward", N, 20 * N, (0,)),
    Case(
        "resample", for_each("SampleForward<float, DisplacementSource, 0"), "`warp` forward", N, 20 * N, (0,)
    ),
    Case(
        "resample",
        for_each("SampleForward<float, AffineSource, 0"),
        "`affine_resample` forward",
        N,
        8 * N,
        (0,),
    ),
    Case(
        "resample",
        for_each("SampleBackward<float, CoordsSource, 0"),
        "`resample` backward",
        N,
        36 * N,
        (1, 1),
    ),
    Case(
        "resample",
        for_each("SampleBackward<float, DisplacementSource, 0"),
        "`warp` backward",
        N,
        36 * N,
        (1,),
    ),
    Case("resize", for_each("ResizeForward<float"), "`resize` 64³ to 128³ forward", 8 * N, 36 * N),
    Case("resize", for_each("ResizeBackward<float"), "`resize` 64³ to 128³ backward", N, 36 * N, (4, 4, 4)),
    Case("invert", for_each("invert::Pack<float"), "`implicit_warp`: pack", N, 28 * N, (0, 0)),
    Case("invert", for_each("invert::Solve<float"), "`implicit_warp`: 20 steps", N, 40 * N, (20,)),
    Case(
        "invert",
        for_each("invert::ImplicitBackward<float"),
        "`implicit_warp`: implicit gradient",
        N,
        53 * N,
        (0, 0, 1, 1),
    ),
    Case(
        "invert",
        for_each("invert::UnrolledBackward<float"),
        "`implicit_warp`: unrolled gradient, 20 steps",
        N,
        52 * N,
        (1, 20, 20, 1),
    ),
    Case("jacobian", for_each(r"LogJacobianForward<float, int, false"), "`log_jacobian` forward", N, 16 * N),
    Case(
        "jacobian",
        for_each(r"ColumnGradients<float, int, LogJacobianGradient<float, int, false"),
        "`log_jacobian` backward: columns",
        N,
        52 * N,
    ),
    Case("jacobian", for_each("GatherColumns<float"), "`log_jacobian` backward: gather", N, 48 * N),
    Case(
        "jacobian",
        for_each("SmoothnessFirst<float, int, false"),
        "`smoothness_loss`: first sums",
        N // 64,
        12 * N,
        (64,),
    ),
    Case(
        "jacobian",
        for_each(r"ColumnGradients<float, int, SmoothnessGradient<float, int, false"),
        "`smoothness_loss` backward: columns",
        N,
        48 * N,
    ),
    Case(
        "ncc",
        for_each("ncc::device::SumAlongX<float"),
        "`ncc` window 9: sums along x",
        5 * N // 16,
        52 * N,
        (8, 16, 8),
    ),
    Case("ncc", for_each("ncc::device::TermsOfWindows<float"), "`ncc` window 9: terms", N, 64 * N, (9, 1)),
    Case(
        "ncc",
        for_each("ncc::device::GradientFromTerms<float"),
        "`ncc` window 9: gradient",
        N,
        68 * N,
        (9, 9, 9, 9, 9),
    ),
    Case(
        "ncc",
        r"reduce_kernel<256, ncc::device::MomentsOfPiece<float",
        "`ncc` global: moments",
        256 * 512,
        12 * N,
        (0, N / (256 * 512)),
    ),
    Case("ncc", for_each("ncc::device::GlobalGradient<float"), "`ncc` global: gradient", N, 20 * N, (0, 1)),
    Case(
        "edges",
        r"reduce_kernel<256, edges::SumsOfPiece<float, int",
        "`edge_difference`: sums",
        256 * 512,
        12 * N,
        (N / (256 * 512),),
    ),
    Case("edges", for_each("edges::Slopes<float"), "`edge_difference` backward: slopes", N, 24 * N),
    Case("edges", for_each("edges::Gather<float"), "`edge_difference` backward: gather", N, 16 * N),
    Case(
        "piecewise",
        for_each("PiecewiseForward<float", "long"),
        "`piecewise_linear` forward, 8 knots",
        N,
        8 * N,
        (0, 0, 1, 3),
    ),
    Case(
        "piecewise",
        for_each("PiecewiseBackward<float", "long"),
        "`piecewise_linear` backward, 8 knots",
        N,
        12 * N,
        (0, 0, 1, 3),
    ),
]


@dataclass(frozen=True)
class Kernel:
    """A kernel as it was compiled."""

    name: str
    registers: int
    local: int
    shared: int
    # Address, operation and operands.
    code: tuple[tuple[int, str, str], ...]

    def loops(self) -> list[tuple[int, int]]:
        """First and last address of every loop, by address; the last instruction of a kernel jumps to itself."""
        found = []
        for address, operation, operands in self.code:
            target = re.search(r"0x([0-9a-f]+)", operands) if operation.startswith("BRA") else None
            if target and int(target[1], 16) < address:
                found.append((int(target[1], 16), address))
        return sorted(found, key=lambda loop: (loop[0], -loop[1]))

    def executed(self, trips: tuple[float, ...]) -> list[tuple[float, str]]:
        """``(times, operation)`` for each instruction of the loop over items, the longest one."""
        loops = self.loops()
        outer = max(loops, key=lambda loop: loop[1] - loop[0])
        inner = [loop for loop in loops if loop != outer and outer[0] <= loop[0] and loop[1] <= outer[1]]
        out = []
        for address, operation, _ in self.code:
            if not outer[0] <= address <= outer[1]:
                continue
            times = 1.0
            for number, (first, last) in enumerate(inner):
                if first <= address <= last:
                    times *= trips[number] if number < len(trips) else 1
            out.append((times, operation))
        return out

    def blocks(self, arch: str) -> int:
        """Blocks of 256 threads that fit on a multiprocessor at once."""
        registers, warps, shared = LIMITS[arch]
        # A warp gets registers in units of 256.
        each = -(-self.registers * WARP // 256) * 256 * (THREADS // WARP)
        return min(registers // each, warps // (THREADS // WARP), shared // max(1, self.shared + 1024))


def width(operation: str) -> int:
    """The bytes of one thread's access."""
    match = re.search(r"\.(?:U|S)?(8|16|64|128)(?:\.|$)", operation)
    return int(match[1]) // 8 if match else 4


def accesses(executed: list[tuple[float, str]], kind: str) -> Counter[int]:
    """The accesses of one item by width; ``kind`` is a pattern of operations."""
    found: Counter[int] = Counter()
    for times, operation in executed:
        if re.match(kind, operation):
            found[width(operation)] += times  # type: ignore[assignment]
    return found


LOADS, STORES, ATOMICS, SHARED = r"LDG|LDL", r"STG|STL", r"RED(?!UX)|ATOM", r"LDS|STS"


def read_kernels(cuobjdump: str, cubin: Path) -> list[Kernel]:
    """The kernels of a cubin."""
    usage = _filtered(_run(cuobjdump, "-res-usage", str(cubin)))
    facts = {
        m[1].strip(): tuple(map(int, m.groups()[1:]))
        for m in re.finditer(r"Function (.*):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    }
    kernels = []
    for part in re.split(r"\n\s*Function : ", _filtered(_run(cuobjdump, "-sass", str(cubin))))[1:]:
        name = part.split("\n", 1)[0].strip()
        code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)([^;]*);", part)
        registers, stack, shared = facts[name]
        lines = tuple((int(address, 16), operation, operands) for address, operation, operands in code)
        kernels.append(Kernel(name.replace("deepatlas::", ""), registers, stack, shared, lines))
    return kernels


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _filtered(text: str) -> str:
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def compiled(nvcc: str, cuobjdump: str, arch: str, folder: Path) -> dict[str, list[Kernel]]:
    """The kernels of every source for one architecture."""

    def one(source: str) -> list[Kernel]:
        cubin = folder / f"{source}.{arch}.cubin"
        _run(
            nvcc,
            "-O3",
            "-std=c++17",
            f"-arch=sm_{arch}",
            "--cubin",
            "-o",
            str(cubin),
            str(ROOT / "csrc" / f"{source}.cu"),
        )
        return read_kernels(cuobjdump, cubin)

    sources = sorted({case.source for case in CASES})
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(sources, pool.map(one, sources), strict=True))


def table(kernels: dict[str, dict[str, list[Kernel]]]) -> list[str]:
    """The rows of the table, the costliest kernel first."""
    rows = []
    for case in CASES:
        found = {
            arch: [k for k in of[case.source] if re.search(case.pattern, k.name)]
            for arch, of in kernels.items()
        }
        if any(len(of) != 1 for of in found.values()):
            raise SystemExit(
                f"{case.title}: {case.pattern} names {[len(of) for of in found.values()]} kernels, not one"
            )
        kernel = found["90"][0]
        done = kernel.executed(case.trips)
        loads, stores, atomics = (accesses(done, kind) for kind in (LOADS, STORES, ATOMICS))
        instructions = sum(times for times, _ in done)
        moved = sum(
            w * n for group in (loads, stores, atomics, accesses(done, SHARED)) for w, n in group.items()
        )
        times = {
            "memory": case.bytes / MEMORY_BYTES,
            "cache": moved * case.items / CACHE_BYTES,
            "issue": instructions * case.items / WARP / ISSUE,
        }
        binds = max(times, key=lambda name: times[name])
        spills = " / ".join(str(found[arch][0].local) for arch in ARCHES)
        rows.append(
            (
                -max(times.values()),
                f"| {case.title} | {kernel.registers} / {found['80'][0].registers} | {spills} | "
                f"{kernel.blocks('90')} / {found['80'][0].blocks('80')} | {_widths(loads)} | {_widths(stores)} | "
                f"{_widths(atomics)} | {instructions:.0f} | {case.bytes / 1e6:.0f} | "
                + " | ".join(f"{1e6 * times[name]:.1f}" for name in times)
                + f" | {binds} |",
            )
        )
    return [row for _, row in sorted(rows)]


def _widths(found: Counter[int]) -> str:
    return ", ".join(f"{n:.0f} × {w}" for w, n in sorted(found.items()) if n) or "-"


HEAD = [
    "| kernel (float32, 32-bit indices) | registers | stack, bytes | blocks | loads × bytes | stores | atomics | "
    "instructions | MB | memory, µs | cache, µs | issue, µs | binds |",
    "|" + "---|" * 13,
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/cuda-cost.md")
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None or shutil.which(arguments.cuobjdump) is None:
        raise SystemExit("needs nvcc and cuobjdump on PATH (or --cuobjdump PATH)")
    with tempfile.TemporaryDirectory() as folder:
        kernels = {arch: compiled(nvcc, arguments.cuobjdump, arch, Path(folder)) for arch in ARCHES}
    release = re.search(r"release [\d.]+", _run(nvcc, "--version"))
    lines = [*HEAD, *table(kernels)]
    print("\n".join(lines))
    if arguments.write:
        text = [
            "# What every CUDA kernel costs, predicted from its machine code",
            "",
            f"Made by `python benchmarks/cuda_cost.py --write` with nvcc {release[0] if release else '?'}; that file "
            "describes the model. **Nothing here ran on a GPU.** Registers, stack and blocks of 256 threads on a "
            "multiprocessor are those of sm_90 / sm_80, everything else is sm_90. Sizes are four pairs of 64³ with one "
            "channel.",
            "",
            *lines,
        ]
        (ROOT / "benchmarks" / "results" / "cuda-cost.md").write_text(
            "\n".join(text) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
