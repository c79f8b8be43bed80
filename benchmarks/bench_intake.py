"""``deepatlas prepare`` at scale: exams per second, memory over time, and the cost of starting again.

pytest benchmarks/bench_intake.py                                   # a few tiny exams
pytest benchmarks/bench_intake.py --benchmark -s                    # 5,000, or DEEPATLAS_INTAKE_EXAMS
"""

from __future__ import annotations

import contextlib
import io
import json
import locale
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from deepatlas.cli.main import main

MEASURED = int(os.environ.get("DEEPATLAS_INTAKE_EXAMS", "5000"))
WORKERS = int(os.environ.get("DEEPATLAS_INTAKE_WORKERS", "1"))
# One in so many exams is a DICOM series; the others are NIfTI.
DICOM_EVERY = 10
SHAPE = (24, 48, 48)


def synthesise(root: Path, count: int) -> None:
    """Small exams of a trunk with different noise and shift, so that no two are equal."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 8, SHAPE)
    for i in range(count):
        body = ((x - rng.uniform(-0.1, 0.1)) / 0.7) ** 2 + (y / 0.5) ** 2 < 1
        hu = np.where(body, 40.0, -1000.0) + np.roll(noise, int(rng.integers(noise.size)))
        image = sitk.GetImageFromArray(np.rint(hu).astype(np.int16))
        image.SetSpacing((8.0, 8.0, 10.0))
        folder = root / f"{i // 1000:03d}" / f"exam{i:05d}"
        folder.mkdir(parents=True)
        if i % DICOM_EVERY:
            sitk.WriteImage(image, str(folder / "ct.nii.gz"))
        else:
            write_dicom(image, folder, i)


def write_dicom(image: sitk.Image, folder: Path, number: int) -> None:
    """Write a CT series with SimpleITK, whose writer leaves the process in the locale C."""
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    root = f"1.2.826.0.1.3680043.2.1125.{number + 1}"
    for k in range(image.GetDepth()):
        part = image[:, :, k]
        tags = {
            "0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0010|0020": f"P{number}", "0020|000d": root, "0020|000e": f"{root}.1", "0008|0018": f"{root}.1.{k + 1}",
            "0020|0052": f"{root}.2", "0020|0011": "2", "0020|0013": str(k), "0028|1052": "0", "0028|1053": "1",
            "0028|1054": "HU",
            "0020|0032": "\\".join(f"{v:g}" for v in image.TransformIndexToPhysicalPoint((0, 0, k))),
            "0020|0037": "1\\0\\0\\0\\1\\0", "0018|0050": "10",
        }  # fmt: skip
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(part)
    locale.setlocale(locale.LC_ALL, before)


class Memory(threading.Thread):
    """Samples the resident memory of a process and its children, in MB, every second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.samples, self.done = pid, [], threading.Event()
        self.began = time.monotonic()
        # Processor seconds of each process, since elapsed time means little on a busy machine.
        self.cpu: dict[int, float] = {}

    def run(self) -> None:
        while not self.done.wait(1.0):
            pids, total, largest = [self.pid], 0, 0
            for pid in pids:
                try:
                    pids += [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
                    times = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
                    self.cpu[pid] = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
                    size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
                except OSError:
                    continue
                total += size
                largest = max(largest, size)
            parent = self.samples[-1][2] if self.samples else 0
            try:
                parent = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096 / 1e6
            except OSError:
                pass
            self.samples.append((time.monotonic() - self.began, total, parent))

    def at(self, share: float) -> tuple[float, float]:
        """Memory of (all processes, the parent) in MB after that share of the time: the median of a tenth around it."""
        if not self.samples:
            return 0.0, 0.0
        n = len(self.samples)
        part = (
            self.samples[int(max(0, share - 0.05) * n) : max(1, int((share + 0.05) * n))] or self.samples[-1:]
        )
        return float(np.median([s[1] for s in part])), float(np.median([s[2] for s in part]))


def prepare(src: Path, dst: Path, measuring: bool) -> tuple[dict, float, Memory]:
    """Run the command; returns its JSON result, the elapsed seconds, and the samples of its memory.

    In a tiny run it is called in this process, because starting others would take most of the time.
    """
    argv = ["prepare", str(src), str(dst), "--json", "--quiet", "--workers", str(WORKERS)]
    began = time.monotonic()
    if not measuring:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(argv) == 0
        return json.loads(printed.getvalue()), time.monotonic() - began, Memory(os.getpid())
    command = [sys.executable, "-m", "deepatlas", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    memory = Memory(process.pid)
    memory.start()
    out, _ = process.communicate()
    memory.done.set()
    memory.join()
    assert process.returncode == 0
    return json.loads(out), time.monotonic() - began, memory


@pytest.mark.slow(3)
def test_intake(request):
    measuring = request.config.getoption("--benchmark")
    count = MEASURED if measuring else 6
    folder = Path(tempfile.mkdtemp(prefix="deepatlas-intake-"))
    try:
        synthesise(folder / "src", count)
        summary, seconds, memory = prepare(folder / "src", folder / "dst", measuring)
        assert summary["exams"] == summary["made"] == count and not summary["refused"]
        again, restart, _ = prepare(folder / "src", folder / "dst", measuring)
        assert again["made"] == 0
        exams = sorted((folder / "dst").glob("exams/*/*.h5"))
        for path in exams[:: max(1, len(exams) // 10)][:10]:
            path.unlink()
        mended, repair, _ = prepare(folder / "src", folder / "dst", measuring)
        assert mended["made"] == len(exams[:: max(1, len(exams) // 10)][:10])
        if not measuring:
            return
        size = sum(p.stat().st_size for p in (folder / "dst").rglob("*") if p.is_file())
        result = {
            "exams": count, "workers": WORKERS, "shape": SHAPE, "machine": platform.processor() or platform.machine(),
            "seconds": round(seconds, 1), "exams_per_second": round(count / seconds, 2),
            "cpu_seconds": round(sum(memory.cpu.values()), 1),
            "restart_seconds": round(restart, 1), "repair_10_seconds": round(repair, 1),
            "dataset_mb": round(size / 1e6),
            "memory_mb": {f"{share:.0%}": [round(v) for v in memory.at(share)] for share in (0.1, 0.3, 0.5, 0.7, 0.9)},
        }  # fmt: skip
        every = len(memory.samples) // 40 + 1
        result["memory_samples"] = [[round(v) for v in sample] for sample in memory.samples[::every]]
        text = json.dumps(result, indent=1)
        print("\n" + text)
        target = request.config.getoption("--results") / "intake.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    pytest.main([__file__, "--benchmark", "-s"])
