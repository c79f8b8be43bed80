"""The amount of free memory, on a GPU or for this process on its machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch


def available_bytes(device: torch.device) -> int | None:
    """Free bytes of a CUDA device, or else this process's share of the free memory of its machine, container or job.

    Processes of one run on one machine (``LOCAL_WORLD_SIZE`` of torchrun) get equal shares. None where the system
    does not report its memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [left for left in (free_on_machine(), *free_in_groups()) if left is not None]
    return min(known) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if known else None


def free_on_machine(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Free bytes of the machine; None where the system does not report them."""
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    # Not Linux: assume that half of the installed memory is free.
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def free_in_groups(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What is left of the memory limits of containers and batch systems (control groups, version 2).

    Only anonymous memory counts as used, because the kernel frees file caches when memory is needed.
    """
    left = []
    with suppress(OSError, IndexError):
        lines = [line for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::")]
        folder = root / lines[0].removeprefix("0::").strip("/")
        for group in (folder, *folder.parents):
            # A group without a limit holds the word "max", which is no integer and is skipped.
            with suppress(OSError, ValueError, KeyError):
                limit = int((group / "memory.max").read_text(encoding="utf-8"))
                used = dict(
                    line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()
                )["anon"]
                left.append(max(0, limit - int(used)))
    return left
