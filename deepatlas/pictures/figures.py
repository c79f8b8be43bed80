"""Pictures of exams, coordinates and masks: slices with true proportions, named sides, and contours.

All arrays are in canonical (closest RAS) order ``[D, H, W]``: z to the head, y to the front, x to the
right. Figures are plain ``matplotlib.figure.Figure`` objects, so nothing here touches pyplot's global state
or needs a display.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepatlas.errors import DeepAtlasError
from deepatlas.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLANES = ("axial", "coronal", "sagittal")
_FIXED_AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}
CONVENTIONS = ("radiological", "neurological")
# Okabe-Ito without black, then Tol's bright: distinct for colour-blind readers and on grey CT.
COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#4477EE",
    "#EE6677", "#66CCEE", "#AA3377", "#CCBB44", "#88DD88", "#FF99CC", "#9988FF",
)  # fmt: skip
_BACKGROUND = "#101014"
_INK = "#e8e8ec"


def colour(index: int) -> str:
    """Hex colour of a label id (from 1); the same one in every picture, and no two ids share one."""
    if index <= len(COLOURS):
        return COLOURS[(int(index) - 1) % len(COLOURS)]
    step = int(index) - len(COLOURS)  # golden-angle hues never repeat; lightness and saturation alternate
    rgb = colorsys.hls_to_rgb(
        (0.07 + 0.618034 * step) % 1, (0.52, 0.68, 0.6)[step % 3], (0.95, 0.65)[step % 2]
    )
    return "#" + "".join(f"{round(255 * v):02X}" for v in rgb)


def new_figure(width: float, height: float, dpi: int = 100, background: str = "white") -> Figure:
    """An empty figure in inches, drawn by Agg; DeepAtlasError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DeepAtlasError("pictures need matplotlib; pip install matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=background)
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class View:
    """How a plane of a canonical volume is shown: one orientation for images, contours and letters alike."""

    plane: str
    convention: str = "radiological"

    def __post_init__(self) -> None:
        if self.plane not in PLANES or self.convention not in CONVENTIONS:
            raise DeepAtlasError(
                f"View: plane must be one of {PLANES} and convention one of {CONVENTIONS}, "
                f"got {self.plane!r}, {self.convention!r}"
            )

    def slice(self, array: np.ndarray, index: int) -> np.ndarray:
        """Rows from top to bottom, columns from left to right of the picture; leading channels are kept."""
        return self.orient(np.take(array, index, axis=array.ndim - 3 + _FIXED_AXIS[self.plane]))

    def orient(self, plane: np.ndarray) -> np.ndarray:
        """Turn a plane ``[..., rows, columns]`` in array order into the picture's order."""
        plane = plane[..., ::-1, :]  # front (axial) or head (coronal, sagittal) up
        # Sagittal looks to the patient's left side, front first; radiological has the patient's right on
        # the left.
        flip = self.plane == "sagittal" or self.convention == "radiological"
        return plane[..., ::-1] if flip else plane

    def aspect(self, spacing: Sequence[float]) -> float:
        """Height over width of a pixel; ``spacing`` is (x, y, z) in mm."""
        x, y, z = spacing
        return {"axial": y / x, "coronal": z / x, "sagittal": z / y}[self.plane]

    def letters(self) -> tuple[str, str]:
        """What the left and the right edge of the picture are called."""
        if self.plane == "sagittal":
            return "A", "P"
        return ("R", "L") if self.convention == "radiological" else ("L", "R")


def choose_slices(labels: np.ndarray, ids: Sequence[int] | None = None) -> tuple[int, int, int]:
    """Slice (z, y, x) of each plane that crosses the most structures; of equals, the nearest to their centre.

    Every structure weighs the same in the centroid, however small. Without any label: the middle.
    """
    found = [i for i in (ids if ids is not None else np.unique(labels)) if i]
    centre = [(n - 1) / 2 for n in labels.shape]
    counts = [np.zeros(n) for n in labels.shape]
    centroids = []
    for identity in found:
        mask = labels == identity
        if not mask.any():
            continue
        profiles = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        centroids.append([float(p @ np.arange(len(p)) / p.sum()) for p in profiles])
        for axis in range(
            3
        ):  # a cut counts where it shows at least a third of the structure's largest section
            counts[axis] += profiles[axis] >= profiles[axis].max() / 3
    if centroids:
        centre = np.mean(centroids, axis=0).tolist()
    best = []
    for axis in range(3):
        rank = counts[axis] - np.abs(np.arange(labels.shape[axis]) - centre[axis]) / (2 * labels.shape[axis])
        best.append(int(np.argmax(rank)))
    return best[0], best[1], best[2]


def coordinate_colours(coords: np.ndarray) -> np.ndarray:
    """Coordinates ``[3, ...]`` in [-1, 1] as RGB ``[..., 3]`` in [0, 1]: red x, green y, blue z."""
    return np.moveaxis(np.clip((np.asarray(coords, dtype=np.float32) + 1) / 2, 0, 1), 0, -1)


def show(
    axes: Axes, image: np.ndarray, view: View, spacing: Sequence[float],
    window: tuple[float, float] = (0.0, 1.0), title: str = "", letters: bool = True,
) -> None:  # fmt: skip
    """Draw one oriented slice ``[rows, columns]`` (grey, clipped to ``window``) or RGB ``[..., 3]``."""
    low, high = window
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=view.aspect(spacing), interpolation="nearest")
    axes.autoscale(False)  # contours, drawn on a padded grid, must not shrink the picture
    axes.set_axis_off()
    if title:
        axes.set_title(title, color=_INK, fontsize=9, pad=4)
    if letters:
        for x, letter, align in zip((0.02, 0.98), view.letters(), ("left", "right"), strict=True):
            axes.text(
                x,
                0.5,
                letter,
                transform=axes.transAxes,
                color="#ffd866",
                fontsize=9,
                ha=align,
                va="center",
                weight="bold",
            )


def draw_contours(
    axes: Axes, labels: np.ndarray, ids: Sequence[int], style: str = "solid", width: float = 1.2
) -> None:
    """Outline every label of an oriented slice ``[rows, columns]`` in its colour."""
    padded = np.pad(labels, 1)  # a label that touches the picture's edge gets a closed outline
    rows, columns = (np.arange(-1, n + 1) for n in labels.shape)
    for identity in ids:
        mask = padded == identity
        if mask.any():
            axes.contour(
                columns, rows, mask.astype(np.float32), levels=[0.5], colors=[colour(identity)],
                linewidths=width, linestyles=style,
            )  # fmt: skip


def legend(figure: Figure, names: Mapping[str, int], note: str = "") -> None:
    """Structure colours along the lower edge, with a line of text below them."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour(i), lw=3, label=n) for n, i in names.items()]
    if handles:
        figure.legend(
            handles=handles, loc="lower center", ncols=min(len(handles), 7), frameon=False, fontsize=8,
            labelcolor=_INK, bbox_to_anchor=(0.5, 0.022), handlelength=1.2, columnspacing=1.4,
        )  # fmt: skip
    if note:
        figure.text(0.5, 0.008, note, color="#9a9aa4", fontsize=7, ha="center", va="bottom")


def panel_grid(
    shape: tuple[int, int, int],
    spacing: Sequence[float],
    columns: int,
    names: int,
    title: str,
    width: float = 12.0,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of three rows (the planes) and ``columns`` panels a row, as high as the anatomy."""
    x, y, z = (n * s for n, s in zip(shape[::-1], spacing, strict=True))
    sides = ((x, y), (x, z), (y, z))
    heights = [height / wide for wide, height in sides]
    cell = width / columns
    heights = [min(h, 1.6) for h in heights]
    top, bottom = 0.55, 0.32 + 0.22 * -(-max(names, 1) // 7)
    height = cell * sum(heights) + top + bottom
    figure = new_figure(width, height, background=_BACKGROUND)
    grid = figure.add_gridspec(
        3, columns, height_ratios=heights, left=0.005, right=0.995, wspace=0.02, hspace=0.03,
        top=1 - top / height, bottom=bottom / height,
    )  # fmt: skip
    figure.text(0.5, 1 - 0.06 / height, title, color=_INK, fontsize=11, ha="center", va="top")
    axes = [[figure.add_subplot(grid[r, c]) for c in range(columns)] for r in range(3)]
    for ax in (a for row in axes for a in row):
        ax.set_axis_off()
    return figure, axes


def overlay_figure(
    exam: Sequence[np.ndarray],
    atlas: Sequence[np.ndarray],
    prediction: Sequence[np.ndarray],
    reference: Sequence[np.ndarray] | None,
    names: Mapping[str, int],
    shape: tuple[int, int, int],
    spacing: Sequence[float],
    title: str = "",
    convention: str = "radiological",
) -> Figure:
    """Tri-planar comparison of one exam, as in Figs 4 and 5 of the paper.

    Columns: the exam, the atlas warped onto it with the predicted outlines, the exam with the predicted
    outlines, the exam with the reference outlines. ``exam`` and ``atlas`` hold one slice per plane (axial,
    coronal, sagittal) in array order with values in [0, 1]; ``prediction`` and ``reference`` the label ids
    there, numbered as ``names``. ``shape`` is that of the canonical volume, ``spacing`` (x, y, z) in mm.
    """
    panels = [
        ("exam", exam, None),
        ("atlas warped onto the exam", atlas, prediction),
        ("prediction", exam, prediction),
    ]
    if reference is not None:
        panels.append(("reference", exam, reference))
    figure, axes = panel_grid(shape, spacing, len(panels), len(names), title)
    for row, plane in enumerate(PLANES):
        view = View(plane, convention)
        for column, (label, images, contours) in enumerate(panels):
            ax = axes[row][column]
            show(ax, view.orient(images[row]), view, spacing, title=label if row == 0 else "")
            if contours is not None:
                draw_contours(ax, view.orient(contours[row]), list(names.values()))
    sides = "patient's right on the left" if convention == "radiological" else "patient's left on the left"
    legend(figure, names, f"{convention} convention ({sides}); window -256 to 256 HU")
    return figure


def progress_figure(
    exam: np.ndarray,
    coords: np.ndarray,
    warped: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    prediction: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    names: Mapping[str, int] | None = None,
    title: str = "",
    convention: str = "radiological",
) -> Figure:
    """What a model has learned so far: exam | coordinates as RGB | atlas warped onto it [| contours].

    ``exam`` and ``warped`` ``[D, H, W]`` in [0, 1], ``coords`` ``[3, D, H, W]`` in [-1, 1], label images
    ``[D, H, W]`` with the ids of ``names``; all on one canonical grid of ``spacing`` (x, y, z) mm. The
    contour column shows the prediction solid and the reference dotted.
    """
    names = dict(names or {})
    drawn = [v for v in (reference, prediction) if v is not None]
    index = choose_slices(
        drawn[0] if drawn else np.zeros(exam.shape, dtype=np.uint8), list(names.values()) or None
    )
    figure, axes = panel_grid(exam.shape, spacing, 4 if drawn else 3, len(names), title)
    for row, plane in enumerate(PLANES):
        view, top = View(plane, convention), row == 0
        at = index[_FIXED_AXIS[plane]]
        image = view.slice(exam, at)
        show(axes[row][0], image, view, spacing, title="exam" if top else "")
        rgb = coordinate_colours(view.slice(coords, at))
        show(axes[row][1], rgb, view, spacing, title="coordinates (red x, green y, blue z)" if top else "")
        show(axes[row][2], view.slice(warped, at), view, spacing, title="atlas warped onto it" if top else "")
        if drawn:
            both = "prediction (solid), reference (dotted)" if len(drawn) == 2 else "contours"
            show(axes[row][3], image, view, spacing, title=both if top else "")
            for labels, style in ((reference, "dotted"), (prediction, "solid")):
                if labels is not None:
                    draw_contours(axes[row][3], view.slice(labels, at), list(names.values()), style)
    legend(figure, names, f"{convention} convention")
    return figure


def dice_figure(rows: Sequence, structures: Sequence[str], width: float = 9.0) -> Figure:
    """Dice of every exam, one line of dots per structure, with the mean as a bar."""
    height = 0.9 + 0.32 * max(1, len(structures))
    figure = new_figure(width, height, background=_BACKGROUND)
    axes = figure.add_axes((0.2, 0.55 / height, 0.77, 1 - 0.65 / height))
    axes.set_facecolor(_BACKGROUND)
    for i, name in enumerate(structures):
        values = np.array([r.dice for r in rows if r.structure == name])
        if len(values):
            axes.plot(values, np.full(len(values), i), "o", color=COLOURS[1], alpha=0.7, ms=5, mec="none")
            axes.plot([values.mean()] * 2, [i - 0.32, i + 0.32], color=COLOURS[0], lw=2.5)
    axes.set_yticks(range(len(structures)), structures, color=_INK, fontsize=9)
    axes.set_ylim(len(structures) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xlabel("Dice (dot: exam, bar: mean)", color=_INK, fontsize=9)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.grid(axis="x", color="#33333c", lw=0.7)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def png_bytes(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as a PNG file's bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return out.getvalue()


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def save_png(png: bytes, path: str | Path) -> None:
    """Write a PNG file's bytes, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> bytes:
    """Write a figure as PNG, whole or not at all; returns its bytes."""
    png = png_bytes(figure, dpi)
    save_png(png, path)
    return png
