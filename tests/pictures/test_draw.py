"""Drawing: colours, contours, and PNG files that are written atomically."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from deepatlas.errors import WriteError
from deepatlas.pictures import draw
from deepatlas.pictures.view import View


def test_coordinates_become_rgb_between_0_and_1():
    coords = np.zeros((3, 2, 2))
    coords[0], coords[1], coords[2] = -1, 0, 3
    assert draw.coordinate_colours(coords)[0, 0].tolist() == [0.0, 0.5, 1.0]


def test_every_structure_has_its_own_colour():
    colours = [draw.colour(i) for i in range(1, 121)]
    assert len(set(colours)) == 120 and all(len(c) == 7 and int(c[1:], 16) > 0 for c in colours)


def test_colours_of_many_structures_can_be_told_apart():
    """The distance of Riemersma ("redmean"), of which 100 is plain to see; black and white are 765 apart."""
    rgb = np.array([[int(draw.colour(i)[k : k + 2], 16) for k in (1, 3, 5)] for i in range(1, 33)], float)
    for i, one in enumerate(rgb):
        for other in rgb[:i]:
            red, (r, g, b) = (one[0] + other[0]) / 2, (one - other) ** 2
            assert (2 + red / 256) * r + 4 * g + (2 + (255 - red) / 256) * b > 80**2, (one, other)


def picture(figure) -> np.ndarray:
    return imread(io.BytesIO(draw.png_bytes(figure)))


def test_contours_are_on_the_border_of_the_mask():
    """The pixels in the colour of the label surround the mask, and there are no others."""
    figure = draw.new_figure(4, 4, background="black")
    axes = figure.add_axes((0, 0, 1, 1))
    labels = np.zeros((40, 40), int)
    # The label touches the left edge, where its outline must be closed.
    labels[10:30, 0:16] = 3
    draw.show(axes, np.zeros((40, 40)), View("axial"), (1, 1, 1), letters=False)
    draw.draw_contours(axes, labels, [3, 9], width=3)
    rgb = picture(figure)[..., :3]
    own = np.array([int(draw.colour(3)[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    rows, columns = np.nonzero(np.abs(rgb - own).max(-1) < 0.15)
    scale = rgb.shape[0] / 40
    assert abs(rows.min() / scale - 10) < 0.4 and abs(rows.max() / scale - 30) < 0.4
    assert columns.max() / scale < 16.4
    inside = (rows / scale > 11) & (rows / scale < 29) & (columns / scale > 1) & (columns / scale < 15)
    assert len(rows) > 100 and not inside.any()


def test_a_figure_is_saved_atomically(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.png"
    png = draw.save_figure(draw.new_figure(2, 2), path)
    assert path.read_bytes() == png and png.startswith(b"\x89PNG")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(WriteError, match=r"a\.png: cannot write: the disk is full"):
        draw.save_png(b"x", path)
    monkeypatch.undo()
    assert path.read_bytes() == png
    assert len(list(path.parent.iterdir())) == 1
