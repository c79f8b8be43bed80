"""Pictures: which way round, which slice, in what proportion."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.pictures import figures
from deepatlas.pictures.figures import View

SHAPE = (6, 8, 10)


def marked(z: int, y: int, x: int) -> np.ndarray:
    array = np.zeros(SHAPE)
    array[z, y, x] = 1
    return array


@pytest.mark.parametrize(
    ("plane", "convention", "letters"),
    [
        ("axial", "radiological", ("R", "L")),
        ("axial", "neurological", ("L", "R")),
        ("coronal", "radiological", ("R", "L")),
        ("coronal", "neurological", ("L", "R")),
        ("sagittal", "radiological", ("A", "P")),
        ("sagittal", "neurological", ("A", "P")),
    ],
)
def test_the_letters_tell_where_the_patients_sides_are(plane, convention, letters):
    """The last voxel of each canonical axis is the patient's right, front and head."""
    view = View(plane, convention)
    assert view.letters() == letters
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}[plane]
    corner = [5, 7, 9]
    picture = view.slice(marked(*corner), corner[axis])
    (row,), (column,) = np.nonzero(picture)
    assert row == 0  # front (axial) or head up
    end = {"R": 0, "L": -1, "A": 0, "P": -1}[letters[0]]  # where right or front must be shown
    expected = 0 if end == 0 else picture.shape[1] - 1
    assert column == expected


def test_channels_are_kept_and_names_are_checked():
    coords = np.random.default_rng(0).normal(size=(3, *SHAPE))
    view = View("coronal")
    np.testing.assert_array_equal(view.slice(coords, 3)[1], view.slice(coords[1], 3))
    with pytest.raises(DeepAtlasError, match="got 'oblique'"):
        View("oblique")


def test_pixels_have_the_voxels_proportions():
    spacing = (0.5, 1.0, 4.0)
    assert [View(p).aspect(spacing) for p in figures.PLANES] == [2.0, 8.0, 4.0]


def test_slices_go_through_the_structures():
    labels = np.zeros((20, 20, 20), int)
    assert figures.choose_slices(labels) == (9, 9, 9)
    labels[2:6, 3:9, 10:16] = 4
    z, y, x = figures.choose_slices(labels)
    assert 2 <= z < 6 and 3 <= y < 9 and 10 <= x < 16
    labels[4:9, 12:18, 12:18] = 7
    z, _, x = figures.choose_slices(labels)
    assert z in (4, 5) and 12 <= x < 16  # both are seen at once where that is possible
    assert 2 <= figures.choose_slices(labels, [4])[0] < 6


def test_coordinates_as_colours():
    coords = np.zeros((3, 2, 2))
    coords[0], coords[1], coords[2] = -1, 0, 3
    assert figures.coordinate_colours(coords)[0, 0].tolist() == [0.0, 0.5, 1.0]


def test_every_structure_has_its_own_colour():
    colours = [figures.colour(i) for i in range(1, 121)]
    assert len(set(colours)) == 120 and all(len(c) == 7 and int(c[1:], 16) > 0 for c in colours)


def picture(figure) -> np.ndarray:
    return imread(io.BytesIO(figures.png_bytes(figure)))


def test_contours_lie_on_the_border_of_the_mask():
    """Drawn pixels of the label's colour ring the mask and nothing else."""
    figure = figures.new_figure(4, 4, background="black")
    axes = figure.add_axes((0, 0, 1, 1))
    labels = np.zeros((40, 40), int)
    labels[10:30, 0:16] = 3  # touches the left edge: the outline must close there
    figures.show(axes, np.zeros((40, 40)), View("axial"), (1, 1, 1), letters=False)
    figures.draw_contours(axes, labels, [3, 9], width=3)
    rgb = picture(figure)[..., :3]
    own = np.array([int(figures.colour(3)[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    rows, columns = np.nonzero(np.abs(rgb - own).max(-1) < 0.15)
    scale = rgb.shape[0] / 40
    assert abs(rows.min() / scale - 10) < 0.4 and abs(rows.max() / scale - 30) < 0.4
    assert columns.max() / scale < 16.4
    inside = (rows / scale > 11) & (rows / scale < 29) & (columns / scale > 1) & (columns / scale < 15)
    assert len(rows) > 100 and not inside.any()


def test_panels_keep_the_anatomys_proportions():
    """A sphere in anisotropic voxels must come out round in every plane."""
    shape, spacing = (20, 40, 50), (2.0, 2.5, 5.0)
    z, y, x = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    r2 = ((x - 24.5) * 2) ** 2 + ((y - 19.5) * 2.5) ** 2 + ((z - 9.5) * 5) ** 2
    ball = (r2 < 35**2).astype(float)
    cuts = [ball[9], ball[:, 19], ball[:, :, 24]]
    figure = figures.overlay_figure(
        cuts, cuts, [c.astype(int) for c in cuts], None, {"ball": 1}, shape, spacing
    )
    assert len(figure.axes) == 9
    figure.canvas.draw()
    for axes in figure.axes:
        image = axes.get_images()[0]
        box = image.get_window_extent()
        rows, columns = np.nonzero(np.asarray(image.get_array()))
        height = (np.ptp(rows) + 1) / image.get_array().shape[0] * box.height
        width = (np.ptp(columns) + 1) / image.get_array().shape[1] * box.width
        assert height / width == pytest.approx(1, abs=0.12)  # a slice of 5 mm in 70


def test_progress_figure_and_atomic_save(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    exam, coords = rng.random(SHAPE), rng.random((3, *SHAPE)) * 2 - 1
    labels = (marked(3, 4, 5) + marked(3, 4, 6)).astype(int)
    figure = figures.progress_figure(exam, coords, exam, (1, 1, 2), prediction=labels, reference=labels,
                                     names={"dot": 1}, title="step 5")  # fmt: skip
    assert len(figure.axes) == 12
    assert len(figures.progress_figure(exam, coords, exam).axes) == 9
    png = figures.save_figure(figure, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == png and png.startswith(b"\x89PNG")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DataError, match=r"a\.png: cannot write: the disk is full"):
        figures.save_png(b"x", tmp_path / "new" / "a.png")
    monkeypatch.undo()
    assert (tmp_path / "new" / "a.png").read_bytes() == png
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_pyplot_is_never_touched():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from deepatlas.pictures import figures as f;"
        "e = np.zeros((4, 5, 6)); f.png_bytes(f.progress_figure(e, np.zeros((3, 4, 5, 6)), e));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
