"""Drawing: slices with true proportions, side letters and contours, and figures as PNG files.

Figures are plain ``matplotlib.figure.Figure`` objects, so that nothing here changes the global state of pyplot or needs
a display.
"""

from __future__ import annotations

import base64
import colorsys
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepatlas.files import atomic_path
from deepatlas.pictures.view import View

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# The palette of Okabe and Ito, without black and with a lighter blue: colour-blind readers can tell its colours apart,
# and they are visible on grey CT. Those from the eighth on were each chosen to be as far as possible (in CIELAB) from
# those before it, among colours that are neither dark nor pale.
COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#4477EE", "#FF00FF",
    "#00FF00", "#FF005A", "#78692D", "#4BA500", "#5A3CFF", "#FFE1A5", "#F01EA5", "#00FF96",
    "#00FFFF", "#E178FF", "#A54B3C", "#B4F096", "#FF0000", "#B4FF3C", "#FFA596", "#6969A5",
    "#96960F", "#D2C3FF", "#C32D69", "#964BA5", "#FF695A", "#A51ED2", "#3C781E", "#87A569",
)  # fmt: skip
BACKGROUND = "#101014"
INK = "#e8e8ec"
# What a picture has no value for: darker than soft tissue, and unlike air.
HIDDEN = "#3d3d52"


def colour(index: int) -> str:
    """The hexadecimal colour of a label id (from 1), which is the same in every picture and different for every id."""
    if index <= len(COLOURS):
        return COLOURS[(int(index) - 1) % len(COLOURS)]
    # Hues that advance by the golden angle never repeat; lightness and saturation alternate.
    step = int(index) - len(COLOURS)
    rgb = colorsys.hls_to_rgb(
        (0.07 + 0.618034 * step) % 1, (0.52, 0.68, 0.6)[step % 3], (0.95, 0.65)[step % 2]
    )
    return "#" + "".join(f"{round(255 * v):02X}" for v in rgb)


def new_figure(width: float, height: float, dpi: int = 100, background: str = "white") -> Figure:
    """An empty figure of ``width`` x ``height`` inches, which Agg draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=background)
    FigureCanvasAgg(figure)
    return figure


def coordinate_colours(coords: np.ndarray) -> np.ndarray:
    """Coordinates ``[3, ...]`` in [-1, 1] as RGB ``[..., 3]`` in [0, 1]: red x, green y, blue z."""
    return np.moveaxis(np.clip((np.asarray(coords, dtype=np.float32) + 1) / 2, 0, 1), 0, -1)


def show(
    axes: Axes, image: np.ndarray, view: View, spacing: Sequence[float],
    window: tuple[float, float] = (0.0, 1.0), title: str = "", letters: bool = True,
) -> None:  # fmt: skip
    """Draw one slice that :class:`View` has oriented.

    Args:
        axes: where to draw.
        image: grey values ``[rows, columns]``, clipped to ``window``, or RGB ``[rows, columns, 3]`` in [0, 1]. Where a
            grey value is NaN there is nothing to show, and the picture has the colour :data:`HIDDEN`.
        view: the view of the slice.
        spacing: voxel size (x, y, z) in mm.
        window: the values that are shown black and white.
        title: a line above the picture.
        letters: whether to draw the letters of the patient's sides.
    """
    low, high = window
    from matplotlib import colormaps

    grey = colormaps["gray"].with_extremes(bad=HIDDEN)
    axes.imshow(image, cmap=grey, vmin=low, vmax=high, aspect=view.aspect(spacing), interpolation="nearest")
    # Contours are drawn on a padded grid, which must not shrink the picture.
    axes.autoscale(False)
    axes.set_axis_off()
    if title:
        axes.set_title(title, color=INK, fontsize=9, pad=4)
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
    """Outline the structures ``ids`` on an oriented slice, each in its colour.

    ``labels`` are their ids ``[rows, columns]``, or, as structures may overlap, their masks ``[K, rows, columns]``.
    """
    masks = labels if labels.ndim == 3 else [labels == identity for identity in ids]
    rows, columns = (np.arange(-1, n + 1) for n in labels.shape[-2:])
    for identity, mask in zip(ids, masks, strict=True):
        # With padding, a structure at the edge of the picture has a closed outline.
        mask = np.pad(mask, 1)
        if mask.any():
            axes.contour(
                columns, rows, mask.astype(np.float32), levels=[0.5], colors=[colour(identity)],
                linewidths=width, linestyles=style,
            )  # fmt: skip


def legend(figure: Figure, names: Mapping[str, int], note: str = "") -> None:
    """Draw the names and colours of the structures along the lower edge, and the line ``note`` below them."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour(i), lw=3, label=n) for n, i in names.items()]
    # The room below the panels is so many inches high, whatever the figure is.
    inch = 1 / figure.get_figheight()
    if handles:
        figure.legend(
            handles=handles, loc="lower center", ncols=min(len(handles), 7), frameon=False, fontsize=8,
            labelcolor=INK, bbox_to_anchor=(0.5, 0.22 * inch), handlelength=1.2, columnspacing=1.4,
        )  # fmt: skip
    if note:
        figure.text(0.5, 0.08 * inch, note, color="#9a9aa4", fontsize=7, ha="center", va="bottom")


def panel_grid(
    shape: tuple[int, int, int],
    spacing: Sequence[float],
    columns: int,
    names: int,
    title: str,
    width: float = 12.0,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a row of ``columns`` panels for each of the three planes, in the proportions of the anatomy.

    Args:
        shape: shape (z, y, x) of the canonical volume.
        spacing: voxel size (x, y, z) in mm.
        columns: panels in a row.
        names: number of structures in the legend.
        title: a line at the top.
        width: width of the figure in inches.
    """
    x, y, z = (n * s for n, s in zip(shape[::-1], spacing, strict=True))
    sides = ((x, y), (x, z), (y, z))
    heights = [height / wide for wide, height in sides]
    cell = width / columns
    heights = [min(h, 1.6) for h in heights]
    top, bottom = 0.55, 0.32 + 0.22 * -(-max(names, 1) // 7)
    height = cell * sum(heights) + top + bottom
    figure = new_figure(width, height, background=BACKGROUND)
    grid = figure.add_gridspec(
        3, columns, height_ratios=heights, left=0.005, right=0.995, wspace=0.02, hspace=0.03,
        top=1 - top / height, bottom=bottom / height,
    )  # fmt: skip
    figure.text(0.5, 1 - 0.06 / height, title, color=INK, fontsize=11, ha="center", va="top")
    axes = [[figure.add_subplot(grid[r, c]) for c in range(columns)] for r in range(3)]
    for ax in (a for row in axes for a in row):
        ax.set_axis_off()
    return figure, axes


def png_bytes(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as the bytes of a PNG file. Texts may hold anything that the name of a file can hold."""
    return _saved(figure, "png", dpi)


def save_pdf(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PDF file atomically. Texts may hold anything that the name of a file can hold."""
    data = _saved(figure, "pdf")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _saved(figure: Figure, kind: str, dpi: int = 100) -> bytes:
    for text in _texts(figure):
        shown = text.get_text()
        # Bytes that are not UTF-8 are lone surrogates, which cannot be drawn.
        if not shown.isascii():
            text.set_text(shown.encode(errors="backslashreplace").decode())
        # A name with dollar signs is no formula; the labels of logarithmic axes are.
        if "$" in shown and "\\math" not in shown:
            text.set_parse_math(False)
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks appears as a box, and is no reason for a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format=kind, dpi=dpi, facecolor=figure.get_facecolor())
    return out.getvalue()


def _texts(artist: Artist) -> Iterator[Text]:
    """Every text in a figure but those of axes that are off, whose ticks would be made for this alone."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    for child in artist.get_children():
        if isinstance(child, Axis) and not child.axes.axison:
            continue
        if isinstance(child, Text):
            yield child
        yield from _texts(child)


def data_uri(png: bytes) -> str:
    """The bytes of a PNG file as a ``data:`` URI for HTML."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def save_png(png: bytes, path: str | Path) -> None:
    """Write the bytes of a PNG file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> bytes:
    """Write a figure as a PNG file atomically, and return the bytes of the file."""
    png = png_bytes(figure, dpi)
    save_png(png, path)
    return png
