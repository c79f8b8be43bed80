"""What the kernels are meant to reach: a training step's losses, and ops on two CPU threads, float32, 64^3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LOOP = "20 grid_sample"  # the recursion as PyTorch states it
# Row, peer, how many times faster at least.
SPEED = (
    ("implicit_warp smooth, 20 steps", LOOP, 8),
    ("implicit_warp smooth, 1e-3 voxel", LOOP, 25),
    ("implicit_warp implicit + backward", LOOP, 25),
    ("implicit_warp unrolled + backward", LOOP, 6),
    ("resample 64^3 x 1 smooth", "grid_sample", 3),
    ("resample 64^3 x 8 smooth", "grid_sample", 3),
    ("resample 64^3 x 1 smooth + backward", "grid_sample", 3),
    ("resample 64^3 x 8 smooth + backward", "grid_sample", 3),
    ("smoothness_loss 64^3 + backward", "torch body", 15),
    ("edge_difference 64^3 x 4 + backward", "torch body", 5),
    ("group_norm_leaky_relu 16 x 32^3 x 4 float32 channels last + backward", "pytorch", 2),
    ("group_norm_leaky_relu 16 x 32^3 x 4 bfloat16 channels last + backward", "pytorch", 7),
    ("ncc window 7 64^3 x 8 + backward", "monai", 14),
    ("ncc global 64^3 x 8 + backward", "torch body", 4),
    ("ncc global 64^3 x 1 + backward", "torch body", 4),
)
# Of a training step: everything but the networks, against the PyTorch bodies; on any number of threads.
LOSSES = ("losses of tiny", "losses of headneck", "losses of small", "losses of paper")
LOSSES_LEAST = 5
MEMORY = (("implicit_warp implicit + backward", LOOP, 10),)  # a fraction of the peer's peak memory, 1 / n


def lines(report: dict[str, Any]) -> Iterator[str]:
    """One line for every target whose row is in the report."""
    for row in report["rows"]:
        if row["name"].startswith(LOSSES):
            found, device = row["ratio"]["torch ops"], row["device"]
            text = f"{row['name']}, {device}: {found:.1f} times the PyTorch bodies, meant: {LOSSES_LEAST}"
            yield _line(text, found >= LOSSES_LEAST)
    rows = {row["name"]: row for row in report["rows"] if row["device"] == "cpu"}
    if report["threads"] != 2:
        rows = {}
    for name, peer, least in SPEED:
        if name in rows and peer in rows[name]["ratio"]:
            found = rows[name]["ratio"][peer]
            yield _line(f"{name}: {found:.1f} times {peer}, meant: {least}", found >= least)
    for name, peer, least in MEMORY:
        peaks = rows.get(name, {}).get("peak_megabytes", {})
        if peer in peaks:
            found = peaks[peer] / peaks["native"]
            yield _line(f"{name}: 1/{found:.1f} of the memory of {peer}, meant: 1/{least}", found >= least)


def _line(text: str, reached: bool) -> str:
    return f"{'reached' if reached else 'SHORT  '}  {text}"
