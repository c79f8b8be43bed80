"""Interleaved, paired timing and its report: median and spread, bandwidth, ratio to each peer."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import memory
import torch
from peers import OUTSIDE_PYTORCH
from torch import Tensor

SECONDS = 1.2  # a benchmark runs its candidates in turn for about so long
LEAST_ROUNDS, MOST_ROUNDS = 5, 200


@dataclasses.dataclass
class Row:
    """One benchmark. Times in milliseconds; ``ratio[peer]`` says how many times faster the native op is."""

    name: str
    device: str
    megabytes: float  # what must be read and written at least
    milliseconds: dict[str, float]  # medians
    spread: dict[str, float]  # interquartile range as a fraction of the median
    ratio: dict[str, float]  # median over the rounds of peer / native of the same round
    gigabytes_per_second: float
    bandwidth_fraction: float  # of the machine's measured copy bandwidth
    rounds: int
    peak_megabytes: dict[str, float]  # beyond the inputs, of what allocates through PyTorch

    def line(self) -> str:
        first, *peers = self.milliseconds
        return (
            f"{self.name:42s} {self.device:5s} {self.milliseconds[first]:9.3f} ms ±{self.spread[first]:4.0%} "
            f"{self.gigabytes_per_second:7.1f} GB/s {self.bandwidth_fraction:6.1%} "
            f"{self.peak_megabytes.get(first, 0):7.1f} MB  " + "  ".join(map(self._against, peers))
        )

    def _against(self, peer: str) -> str:
        peak = f", {self.peak_megabytes[peer]:.1f} MB" if peer in self.peak_megabytes else ""
        return f"{self.ratio[peer]:6.2f}x {peer} ({self.milliseconds[peer]:.3f} ms{peak})"


def tensors(result: object) -> list[Tensor]:
    """All tensors of what a candidate returned."""
    if isinstance(result, Tensor):
        return [result.detach()]
    return [t for part in result for t in tensors(part)] if isinstance(result, Iterable) else []


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(
    name: str, candidates: dict[str, Callable[[], object]], bytes_moved: int, device: torch.device
) -> Row:
    """Time the candidates in turn, round after round, so that a disturbance hits them alike."""
    first, *peers = candidates
    for run in candidates.values():
        _seconds(run, device)
    one_round = sum(_seconds(run, device) for run in candidates.values())
    rounds = min(max(int(SECONDS / one_round), LEAST_ROUNDS), MOST_ROUNDS)
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate, run in candidates.items():
            times[candidate].append(_seconds(run, device))
    median = {candidate: statistics.median(t) for candidate, t in times.items()}
    quartiles = {candidate: statistics.quantiles(t, n=4) for candidate, t in times.items()}
    rate = bytes_moved / median[first] / 1e9
    return Row(
        name=name,
        device=device.type,
        megabytes=bytes_moved / 1e6,
        milliseconds={candidate: 1e3 * m for candidate, m in median.items()},
        spread={candidate: (q[2] - q[0]) / median[candidate] for candidate, q in quartiles.items()},
        ratio={
            peer: statistics.median(b / a for a, b in zip(times[first], times[peer], strict=True))
            for peer in peers
        },
        gigabytes_per_second=rate,
        bandwidth_fraction=rate / copy_bandwidth(device.type),
        rounds=rounds,
        peak_megabytes={
            candidate: memory.peak_megabytes(run, device)
            for candidate, run in candidates.items()
            if candidate not in OUTSIDE_PYTORCH
        },
    )


@functools.cache
def copy_bandwidth(device: str) -> float:
    """GB/s read plus written of the best of several copies, far larger than any cache."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    best = min(_seconds(lambda: target.copy_(source), torch.device(device)) for _ in range(8))
    return 2 * source.numel() * source.element_size() / best / 1e9


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        return re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def report(rows: list[Row], build: dict[str, Any]) -> dict[str, Any]:
    devices = sorted({row.device for row in rows})
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": {d: device_name(d) for d in devices},
        "copy_gigabytes_per_second": {d: copy_bandwidth(d) for d in devices},
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": {key: build[key] for key in ("compiler", "flags", "cuda")},
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['date']}, PyTorch {result['torch']}, {result['threads']} CPU threads"]
    for device, name in result["devices"].items():
        rate = result["copy_gigabytes_per_second"][device]
        lines.append(
            f"{device}: {name}, copies at {rate:.1f} GB/s; % is of that; MB: peak beyond the inputs; "
            "2.00x: twice as fast as the peer"
        )
    return "\n".join([*lines, *(Row(**row).line() for row in result["rows"])])


def save(result: dict[str, Any], folder: Path) -> Path:
    names = "-".join(re.sub(r"\W+", "-", name).strip("-") for name in result["devices"].values())
    path = folder / f"{result['date'][:10]}-{names}-{os.getpid()}.json"
    folder.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)
    return path
