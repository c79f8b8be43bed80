"""The picture of a report: how many times faster than each peer, one dot a peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "torch body": "#555555",
    "grid_sample": "#2166ac",
    "interpolate": "#2166ac",
    "20 grid_sample": "#2166ac",
    "monai": "#e08214",
    "volresample": "#1b7837",
    "scipy": "#762a83",
    "SimpleITK": "#b2182b",
    "inversion layer": "#35978f",
}
NAMES = {
    "grid_sample": "PyTorch grid_sample / interpolate", "torch body": "the same op in PyTorch", "monai": "MONAI",
    "scipy": "SciPy", "inversion layer": "deformation-inversion-layer",
}  # fmt: skip


def draw(report: dict[str, Any], path: Path) -> Path | str:
    """Write the PNG; the reason as text where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture (matplotlib is not installed)"
    rows = sorted(report["rows"], key=lambda row: (row["device"], row["name"]), reverse=True)
    figure = Figure(figsize=(10, 1.6 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shown = {}
    for place, row in enumerate(rows):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", lw=0)
        for peer, ratio in row["ratio"].items():
            colour = COLOURS.get(peer, "#000000")
            handle = axes.plot(ratio, place, "o", color=colour, ms=6, alpha=0.9)[0]
            shown.setdefault(colour, (handle, NAMES.get(peer, peer)))
            if peer in ("20 grid_sample", "interpolate"):
                shown[colour] = (handle, NAMES["grid_sample"])
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    ticks = [
        t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if _within(t, axes.get_xlim())
    ]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(
        range(len(rows)), [row["name"] + ("" if row["device"] == "cpu" else " (GPU)") for row in rows]
    )
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("times faster than the peer (left of 1: slower)")
    device = ", ".join(report["devices"].values())
    threads = f", {report['threads']} threads" if "cpu" in report["devices"] else ""
    axes.set_title(f"{device}{threads}, PyTorch {report['torch']}, {report['date'][:10]}", fontsize=10)
    figure.legend(
        *zip(*shown.values(), strict=True), loc="outside upper center", ncols=4, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=110)
    return path


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
