"""Draw docs/conventions.png, which explains the coordinates of deepatlas_ops. Run from the source tree."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

import deepatlas_ops as ops

BLUE, RED, GREY = "#2166ac", "#b2182b", "#999999"


def identity(size: tuple[int, int, int]) -> torch.Tensor:
    """The absolute coordinates of the voxels themselves, [1, 3, D, H, W]."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])[None]


def corners(ax) -> None:
    """Draw one slice of a volume: its voxels, their centres, and the coordinates of the outermost voxels."""
    width, height = 5, 4
    values = np.random.default_rng(0).uniform(0.35, 0.85, (height, width))
    ax.imshow(values, cmap="gray", vmin=0, vmax=1)
    for y in range(height):
        ax.plot(range(width), [y] * width, ".", color=BLUE, ms=7)
    ax.set_xticks([0, (width - 1) / 2, width - 1], ["-1", "0", "+1"])
    ax.set_yticks([0, (height - 1) / 2, height - 1], ["-1", "0", "+1"])
    ax.set_xlabel("x (last axis, W = 5)")
    ax.set_ylabel("y (H = 4)")
    ax.plot([0, width - 1, width - 1, 0, 0], [0, 0, height - 1, height - 1, 0], color=BLUE, lw=1)
    ax.set_title("-1 and +1 are the centres of the\nfirst and last voxel (corner-aligned)")


def pull(ax) -> None:
    """Draw what ``resample`` does: every output voxel reads the volume at its coordinate."""
    n = 9
    y, x = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    u, v = x + 0.28 * np.cos(1.5 * y), y + 0.22 * np.sin(2 * x)
    ax.plot(x, y, ".", color=GREY, ms=4)
    ax.plot(u, v, ".", color=RED, ms=4)
    ax.quiver(
        x, y, u - x, v - y, angles="xy", scale_units="xy", scale=1, color=GREY, width=0.004, headwidth=5
    )
    ax.add_patch(plt.Rectangle((-1, -1), 2, 2, fill=False, color=BLUE, lw=1))
    ax.set_title("resample pulls: output voxel v (grey)\ntakes the volume's value at coords[v] (red)")
    ax.text(0, 1.45, "outside the blue frame: padding", color=BLUE, ha="center", va="center", fontsize=9)


def inverse(ax) -> None:
    """Draw what ``implicit_warp`` does: a map, and its inverse."""
    n = 33
    here = identity((n, n, n))
    x, y, z = here[0]
    bump = torch.exp(-2.5 * (x**2 + y**2 + z**2))
    moving = here + torch.stack([0.25 * bump * torch.cos(2 * y), 0.2 * bump * torch.sin(3 * x), 0 * z])[None]
    found = ops.implicit_warp(moving, here)
    middle = n // 2
    for field, colour in ((moving, GREY), (here + found.displacement, RED)):
        plane = field[0, :2, middle].numpy()
        for lines in (plane[:, ::4], plane.transpose(0, 2, 1)[:, ::4]):
            ax.plot(lines[0].T, lines[1].T, color=colour, lw=1.2)
    handles = [plt.Line2D([], [], color=c) for c in (GREY, RED)]
    names = ["c", "u = id + displacement"]
    ax.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, frameon=False)
    worst = float(found.residual.max())
    ax.set_title(f"implicit_warp(c, id) solves c(u(v)) = v;\nworst residual here {worst:.0e} voxel")


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.8), layout="constrained")
    corners(axes[0])
    pull(axes[1])
    inverse(axes[2])
    for ax, limit in ((axes[1], 1.6), (axes[2], 1.2)):
        ax.set_aspect("equal")
        ax.set_xlim(-limit, limit)
        ax.set_ylim(limit, -limit)
        ax.axis("off")
    figure.savefig(Path(__file__).with_name("conventions.png"), dpi=110)


if __name__ == "__main__":
    main()
