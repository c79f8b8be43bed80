"""The report of a dataset: pictures with outlines, structures that were left out, numbers."""

from __future__ import annotations

import base64
import csv
import io
import re

import numpy as np
import pytest
from drawn_objects import rtstruct, saved
from make_dicom import write_ct
from PIL import Image
from prepare_here import prepare_here
from pydicom import dcmread
from small_exams import body

from deepatlas.exams.exam_file import ExamFile, write_exam
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.intake.dataset.quality import _groups
from deepatlas.intake.dataset.thumbnails import WINDOW, coronal
from deepatlas.intake.privacy.redact import public_text
from deepatlas.pictures.draw import colour
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels
from deepatlas.space.volume import Volume


def polygons(path):
    """The closed polygons of an SVG path, ``[n, 2]`` (x, y) each."""
    return [
        np.array([point.split(",") for point in part.strip("Z ").split()], float)
        for part in path.split("M")[1:]
    ]


def area(polygon):
    """By the shoelace formula."""
    x, y = polygon.T
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def made(tmp_path, flips=(1, 1, 1), permutation=(0, 1, 2)):
    """A body of 40 x 30 x 50 voxels (x, y, z) of 4 x 4 x 3 mm that fills its image; two boxes that overlap."""
    grid = Grid.from_spacing((50, 30, 40), (4.0, 4.0, 3.0))
    hu = np.full(grid.shape, 40, np.int16)
    # Brighter to the head and to the patient's left, so that the picture shows which way round it is.
    hu += (np.arange(50)[:, None, None] * 2 + 0 * np.arange(30)[None, :, None]).astype(np.int16)
    hu += (-np.arange(40) * 3).astype(np.int16)
    hu[:, :2], hu[:, -2:] = -1000, -1000
    liver, lesion = np.zeros((2, *grid.shape), bool)
    liver[10:30, 18:26, 4:16] = True
    lesion[20:35, 19:24, 10:20] = True
    labels = Labels.painted([(1, BoxMask.of(liver)), (2, BoxMask.of(lesion))], grid, np.uint8, "e")
    # The same exam in another voxel order.
    affine = grid.affine.copy()
    index = tuple(slice(None, None, step) for step in flips)
    for axis, step in enumerate(flips):
        if step < 0:
            column = 2 - axis
            affine[:3, 3] += affine[:3, column] * (grid.shape[axis] - 1)
            affine[:3, column] *= -1
    order = [2 - axis for axis in permutation[::-1]]
    turned = affine.copy()
    turned[:, :3] = affine[:, order]

    def stored(array):
        return np.ascontiguousarray(array[index].transpose(permutation))

    there = Grid(stored(hu).shape, turned)
    both = [(1, BoxMask.of(stored(liver))), (2, BoxMask.of(stored(lesion)))]
    labels = Labels.painted(both, there, np.uint8, "e")
    path = tmp_path / "e.h5"
    write_exam(path, Volume(stored(hu), there), labels, {"liver": 1, "lesion": 2}, {}, [])
    return path


@pytest.mark.parametrize(
    ("flips", "permutation"),
    [((1, 1, 1), (0, 1, 2)), ((-1, 1, -1), (0, 1, 2)), ((1, -1, 1), (1, 0, 2)), ((-1, -1, 1), (2, 1, 0))],
)
def test_outlines_lie_on_the_picture_where_the_structures_are(tmp_path, flips, permutation):
    with ExamFile(made(tmp_path, flips, permutation)) as exam:
        png, width, height, contours = coronal(exam)
    # 160 mm from right to left, 150 mm from foot to head.
    assert (width, height) == (250, round(250 * 150 / 160))
    grey = np.asarray(Image.open(io.BytesIO(png))).astype(float)
    assert (
        grey.shape[0] > height and grey[:, 0].mean() < grey[:, -1].mean() and grey[0].mean() > grey[-1].mean()
    )
    assert [(c.name, c.colour) for c in contours] == [("liver", colour(1)), ("lesion", colour(2))]
    scale = 250 / 160
    for contour, (z0, z1, x0, x1) in zip(contours, [(10, 30, 4, 16), (20, 35, 10, 20)], strict=True):
        (polygon,) = polygons(contour.path)
        # The patient's right, where x is large, is on the left of the picture.
        left, right = (250 - x * 4 * scale for x in (x1, x0))
        top, bottom = (height - z * 3 * scale for z in (z1, z0))
        found = [*polygon.min(axis=0), *polygon.max(axis=0)]
        np.testing.assert_allclose(found, [left, top, right, bottom], atol=1.0)
        assert area(polygon) == pytest.approx((right - left) * (bottom - top), rel=0.03)


def test_an_exam_without_structures_shows_its_middle_cut_to_the_patient(tmp_path):
    ct, _ = body((12, 40, 40))
    write_exam(tmp_path / "e.h5", Volume(np.rint(ct.array).astype(np.int16), ct.grid), None, {}, {}, [])
    with ExamFile(tmp_path / "e.h5") as exam:
        png, width, height, contours = coronal(exam)
    assert contours == [] and max(width, height) == 250
    grey = np.asarray(Image.open(io.BytesIO(png)))
    # The body ends near both sides, and is grey.
    middle = grey[len(grey) // 2]
    soft = round((40 - WINDOW[0]) / (WINDOW[1] - WINDOW[0]) * 255)
    assert (np.abs(middle.astype(int) - soft) < 25).mean() > 0.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A study whose structure set has a heart, a lesion called after somebody, and a speck of anatomy."""
    root = tmp_path_factory.mktemp("quality")
    ct, _ = body((12, 40, 40))
    ct.array = np.rint(ct.array.clip(min=-1024))
    files = write_ct(root / "src" / "a", ct.array, ct.grid.affine, study="1.2.3.1", frame="1.2.9")
    slices = [dcmread(f) for f in files]
    z = slices[3].ImagePositionPatient[2]
    square = np.array([[-20, -20, z], [20, -20, z], [20, 20, z], [-20, 20, z]], float)
    speck = np.array([[0, 0, z], [0.1, 0, z], [0.1, 0.1, z]], float)
    drawn = {"Heart": [square], "Quexworthy": [square / 2 + [0, 0, z / 2]], "Aorta": [speck]}
    saved(rtstruct(slices, drawn), root / "src" / "rs.dcm")
    prepare_here(root / "src", root / "dst", histograms=True)
    return root / "dst"


def test_structures_that_were_left_out_are_named_and_somebodys_name_is_private(dataset):
    page = (dataset / "report.html").read_text()
    assert "aorta: left out: no centre of the CT&#39;s voxels" in page.replace("Aorta", "aorta")
    assert "unnamed structure 1: left out: its name is not one of anatomy" in page
    assert "Quexworthy" not in page and all(
        b"uexworthy" not in path.read_bytes() for path in dataset.rglob("*") if path.is_file()
    )
    with open(dataset.with_name("dst.private") / "left_out.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["structure"] for row in rows} == {"Quexworthy", "Aorta"}
    assert (dataset.with_name("dst.private") / "left_out.csv").stat().st_mode & 0o077 == 0


def test_the_page_draws_the_structures_and_explains_their_colours(dataset):
    page = (dataset / "report.html").read_text()
    heart = colour(Dataset(dataset).labels["heart"])
    assert f'stroke="{heart}"><title>heart</title></path>' in page
    assert re.search(rf'class="legend"><span><i style="background: {heart}"></i>heart</span>', page)
    width, height = map(int, re.search(r'<svg viewBox="0 0 (\d+) (\d+)"', page).groups())
    assert max(width, height) == 250
    embedded = re.search(r'<image href="data:image/png;base64,([^"]+)" width="(\d+)" height="(\d+)"', page)
    assert (width, height) == tuple(map(int, embedded.groups()[1:]))
    assert Image.open(io.BytesIO(base64.b64decode(embedded[1]))).format == "PNG"


def test_counts_are_no_identifiers():
    assert public_text(
        "6 voxels of 65536 voxels, 512 x 512 x 107 voxels at 0.512 mm", {"6", "512", "65536", "107"}
    ) == ("6 voxels of 65536 voxels, 512 x 512 x 107 voxels at 0.512 mm")
    assert public_text("1,234,567 of its voxels lie beyond the CT", {"1234567", "234"}).startswith(
        "1,234,567 of"
    )
    # The numbers themselves, wherever they name something.
    assert public_text("exam 65536: damaged", {"65536"}) == "exam …: damaged"
    assert (
        public_text("patient 12 and case_107 and 48151623 voxels", {"12", "case_107"})
        == "patient … and … and … voxels"
    )


def test_a_group_of_lines_says_between_which_numbers_they_lie():
    lines = [
        (f"e{i}", f"heart: {n} of its voxels lie 2.5 mm beyond") for i, n in enumerate(("1,200", "6", "33"))
    ]
    (group,) = _groups(lines)
    assert group["title"] == "heart: 6 to 1,200 of its voxels lie 2.5 mm beyond" and len(group["rows"]) == 3
    (group,) = _groups([("a", "C7: left out"), ("b", "C7: left out")])
    assert group["title"] == "C7: left out"
