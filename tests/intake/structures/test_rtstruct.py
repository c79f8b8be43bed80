"""Contours on a CT's grid, against matplotlib's point-in-polygon test in millimetres."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_objects import ct_headers, itk_image, on_slice, random_grid, rtstruct, saved, series_of, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from pydicom.uid import generate_uid

from deepatlas.intake.structures.read import read_structures
from deepatlas.io.structures.rtstruct import fill
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


def star(rng, centre, radius, points=24):
    """A polygon that does not cross itself, with corners that lean in and out."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, points))
    reach = radius * rng.uniform(0.4, 1, points)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None] + centre


def inside(polygons, shape):
    """Even-odd over all polygons at the voxel centres, by matplotlib."""
    y, x = np.indices(shape)
    centres = np.stack([x.ravel(), y.ravel()], axis=1)
    odd = np.zeros(len(centres), dtype=bool)
    for polygon in polygons:
        odd ^= Polygon(np.vstack([polygon, polygon[:1]]), closed=True).contains_points(centres)
    return odd.reshape(shape)


def read(tmp_path, grid, slices, structures, labels=None, **keywords):
    file = saved(rtstruct(slices, structures), tmp_path / "rt.dcm")
    labels = labels or {name: i for i, name in enumerate(structures, 1)}
    ct = Volume(np.zeros(grid.shape, np.int16), grid)
    return read_structures([file], ct, labels, series=series_of(slices), **keywords)


# -- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_random_polygons_as_matplotlib_fills_them(seed):
    rng = np.random.default_rng(seed)
    polygons = [star(rng, rng.uniform(0, 40, 2), rng.uniform(3, 25)) for _ in range(rng.integers(1, 5))]
    np.testing.assert_array_equal(fill(polygons, (33, 47)), inside(polygons, (33, 47)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=3, max_size=12),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_any_polygon_is_filled_without_complaint_and_twice_it_is_nothing(points, rows, columns):
    polygon = np.array(points)
    once = fill([polygon], (rows, columns))
    assert once.shape == (rows, columns) and once.dtype == bool
    assert not fill([polygon, polygon[::-1]], (rows, columns)).any()
    np.testing.assert_array_equal(fill([polygon[::-1]], (rows, columns)), once)


def test_a_centre_on_a_border_belongs_to_the_higher_side():
    square = np.array([[1, 1], [4, 1], [4, 4], [1, 4]], dtype=float)
    want = np.zeros((6, 6), dtype=bool)
    want[1:4, 1:4] = True
    for polygon in (square, square[::-1], np.roll(square, 1, axis=0), square + 1e-9, square - 1e-9):
        np.testing.assert_array_equal(fill([polygon], (6, 6)), want)


def test_neighbours_share_no_voxel_and_leave_none_between():
    # Corners on voxel centres and slanted borders through them: the case that rounding decides.
    corners = {
        k: np.array(v, dtype=float) for k, v in dict(a=(0, 0), b=(9, 0), c=(9, 9), d=(0, 9), m=(4, 3)).items()
    }
    count = sum(
        fill([np.array([corners[p], corners[q], corners["m"]])], (10, 10)).astype(int)
        for p, q in ("ab", "bc", "cd", "da")
    )
    assert (count[:9, :9] == 1).all() and count[9].sum() == count[:, 9].sum() == 0


def test_holes_by_an_inner_contour_and_by_a_keyhole_are_the_same():
    outer = np.array([[1.2, 1.2], [12.7, 1.2], [12.7, 12.7], [1.2, 12.7]])
    inner = np.array([[4.3, 4.3], [4.3, 8.6], [8.6, 8.6], [8.6, 4.3]])
    keyhole = np.vstack([outer, outer[:1], inner, inner[:1]])
    by_xor = fill([outer, inner], (15, 15))
    assert by_xor[3, 3] and not by_xor[6, 6] and by_xor.sum() == 11**2 - 4**2
    np.testing.assert_array_equal(fill([keyhole], (15, 15)), by_xor)


# -- in space -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_polygons_on_oblique_flipped_grids_come_back(tmp_path, seed):
    rng = np.random.default_rng(seed)
    grid = random_grid(rng)
    slices = ct_headers(grid)
    drawn = {z: [star(rng, rng.uniform(13, 26, 2), 12) for _ in range(2)] for z in range(2, 7)}
    want = np.zeros(grid.shape, dtype=np.uint8)
    for z, polygons in drawn.items():
        want[z] = inside(polygons, grid.shape[1:])
    contours = [on_slice(grid, polygon, z) for z, polygons in drawn.items() for polygon in polygons]
    # The CT's voxels may be held in any order: the slices then run along any axis of the array.
    ct = turned(Volume(want, grid), rng)
    result = read(tmp_path, ct.grid, slices, {"organ": contours})
    np.testing.assert_array_equal(result.labels.array, ct.array)
    assert result.present == ["organ"] and not result.warnings and not result.ignored and not result.refused
    assert result.labels.grid == ct.grid


def test_every_voxel_against_its_place_in_millimetres(tmp_path):
    """No voxel coordinates in the oracle: SimpleITK's physical points, projected on the contour's own plane."""
    rng = np.random.default_rng(7)
    grid = random_grid(rng, (5, 22, 26))
    polygon = on_slice(grid, star(rng, (12, 11), 10), 2)
    result = read(tmp_path, grid, ct_headers(grid), {"organ": [polygon]})
    image = itk_image(grid)
    centre = polygon.mean(axis=0)
    basis = np.linalg.svd(polygon - centre)[2]
    flat = Polygon(np.vstack([polygon, polygon[:1]]) @ basis[:2].T, closed=True)
    for z, y, x in np.ndindex(grid.shape):
        point = np.array(image.TransformIndexToPhysicalPoint((int(x), int(y), int(z))))
        on_plane = abs((point - centre) @ basis[2]) < grid.spacing[2] / 2
        assert result.labels.array[z, y, x] == (on_plane and flat.contains_point(point @ basis[:2].T))


def test_planes_between_slices_go_to_the_nearest_and_beyond_the_ct_nowhere(tmp_path):
    grid = Grid.from_spacing((6, 20, 20), (1, 1, 3))
    square = np.array([[4.5, 4.5], [9.5, 4.5], [9.5, 9.5], [4.5, 9.5]])
    contours = [on_slice(grid, square, z) for z in (-0.7, 0.3, 1, 1.6, 2.4, 4.05, 5.6)]
    contours[4] = on_slice(grid, square + 3, 2.4)
    result = read(tmp_path, grid, ct_headers(grid), {"organ": contours})
    filled = np.flatnonzero(result.labels.array.any(axis=(1, 2)))
    assert filled.tolist() == [0, 1, 2, 4]
    # 1.6 and 2.4 both lie nearest to slice 2, as far away: the first stands, they are not mixed.
    assert result.labels.array[2].sum() == 25 and result.labels.array[2, 5, 5]
    text = "\n".join(result.warnings)
    assert "2 of 7 contours lie beyond the CT's first or last slice" in text
    assert "3 of 7 contours lie between the CT's slices" in text
    assert "1 of 7 contours left out, others lie closer" in text
    assert "no contour on 1 of the 5 slices" in text


def test_contours_that_are_not_parallel_to_the_slices_are_refused_with_the_reason(tmp_path):
    grid = Grid.from_spacing((6, 20, 20), (1, 1, 3))
    tilt = on_slice(grid, np.array([[4, 4], [9, 4], [9, 9], [4, 9.0]]), 2)
    tilt[2:, 2] += 2
    flat = on_slice(grid, np.array([[4, 4], [9, 4], [9, 9], [4, 9.0]]), 2)
    result = read(tmp_path, grid, ct_headers(grid), {"tilted": [flat, tilt], "level": [flat]})
    assert result.present == ["level"] and "not parallel to the CT's slices" in result.ignored["tilted"]


def test_points_open_short_and_repeated_contours_are_left_out_and_counted(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    square = on_slice(grid, np.array([[4.5, 4.5], [9.5, 4.5], [9.5, 9.5], [4.5, 9.5]]), 2)
    structures = {
        "organ": [square, square, ("OPEN_PLANAR", square), ("POINT", square[:1]), square[:2]],
        "isocenter": [("POINT", square[:1])],
        "nothing": [],
        "speck": [on_slice(grid, np.array([[4.1, 4.1], [4.3, 4.1], [4.3, 4.3]]), 2)],
        "away": [square + [500, 0, 0]],
    }
    result = read(tmp_path, grid, ct_headers(grid), structures)
    assert result.present == ["organ"] and result.labels.array.sum() == 25
    assert "1 x OPEN_PLANAR, 1 x POINT, 1 x drawn twice, 1 x fewer than three points" in result.warnings[0]
    assert "no closed contour (1 x POINT)" in result.ignored["isocenter"]
    assert "no contour was drawn" in result.ignored["nothing"]
    assert "no centre of the CT's voxels" in result.ignored["speck"]
    assert "no centre of the CT's voxels" in result.ignored["away"] and "beyond" in result.ignored["away"]


def test_what_reaches_beyond_the_ct_is_cut_and_said(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    wide = on_slice(grid, np.array([[-4.5, 4.5], [9.5, 4.5], [9.5, 29.5], [-4.5, 29.5]]), 2)
    result = read(tmp_path, grid, ct_headers(grid), {"organ": [wide]})
    want = np.zeros(grid.shape, dtype=np.uint8)
    want[2, 5:, :10] = 1
    np.testing.assert_array_equal(result.labels.array, want)
    assert any("reaches beyond the CT" in warning for warning in result.warnings)


# -- whose it is ----------------------------------------------------------------------------------


def test_another_frame_of_reference_or_series_is_refused(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    square = on_slice(grid, np.array([[4.5, 4.5], [9.5, 4.5], [9.5, 9.5], [4.5, 9.5]]), 2)
    ct = Volume(np.zeros(grid.shape, np.int16), grid)

    def refusal(change):
        ds = rtstruct(slices, {"organ": [square]})
        change(ds)
        result = read_structures([saved(ds, tmp_path / "rt.dcm")], ct, {"organ": 1}, series=series_of(slices))
        assert bool(result.present) != bool(result.refused)
        return result.refused[0].reason if result.refused else ""

    def frame(ds):
        """It names images of another CT; with those of this CT it would belong to it (test_rtstruct_quirks.py)."""
        ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = generate_uid()
        item = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        for image in item.RTReferencedSeriesSequence[0].ContourImageSequence:
            image.ReferencedSOPInstanceUID = generate_uid()

    def roi_frame(ds):
        ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = generate_uid()

    def series(ds, images=True):
        item = (
            ds.ReferencedFrameOfReferenceSequence[0]
            .RTReferencedStudySequence[0]
            .RTReferencedSeriesSequence[0]
        )
        item.SeriesInstanceUID = generate_uid()
        if images:
            item.ContourImageSequence[:] = []

    assert refusal(lambda ds: None) == ""
    assert "frame of reference" in refusal(frame)
    assert "frame of reference" in refusal(roi_frame)
    assert "another series" in refusal(series)
    assert refusal(lambda ds: series(ds, images=False)) == ""  # it names this CT's very images


def test_one_structure_of_another_frame_does_not_take_the_others_along(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    square = on_slice(grid, np.array([[4.5, 4.5], [9.5, 4.5], [9.5, 9.5], [4.5, 9.5]]), 2)
    ds = rtstruct(slices, {"organ": [square], "pet": [square]})
    ds.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = generate_uid()
    ct = Volume(np.zeros(grid.shape, np.int16), grid)
    result = read_structures(
        [saved(ds, tmp_path / "rt.dcm")], ct, {"organ": 1, "pet": 2}, series=series_of(slices)
    )
    assert result.present == ["organ"] and "frame of reference" in result.ignored["pet"]


@pytest.mark.parametrize("damage", ["letters", "missing", "huge", "count", "cut"])
def test_damage_is_one_line_without_values(tmp_path, damage):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    square = on_slice(grid, np.array([[4.5, 4.5], [9.5, 4.5], [9.5, 9.5], [4.5, 9.5]]), 2)
    file = saved(rtstruct(slices, {"organ": [square]}), tmp_path / "rt.dcm")
    data = file.path.read_bytes()
    at = data.index(b"4.5\\")
    if damage == "letters":
        data = data[:at] + b"x.5" + data[at + 3 :]
    elif damage == "missing":
        data = data[:at] + b"4\\5" + data[at + 3 :]
    elif damage == "huge":
        data = data[:at] + b"9e9" + data[at + 3 :]
    elif damage == "count":
        data = data.replace(b"IS\x02\x004 ", b"IS\x02\x005 ")
    else:
        data = data[: at + 5]
    file.path.write_bytes(data)
    result = read_structures([file], Volume(np.zeros(grid.shape, np.int16), grid), {"organ": 1})
    reasons = [*result.ignored.values(), *(refusal.reason for refusal in result.refused)]
    assert not result.present and not result.labels.array.any() and len(reasons) == 1
    assert "\n" not in reasons[0] and str(tmp_path) not in reasons[0]


@pytest.mark.parametrize("undefined", [False, True])
def test_a_cut_file_never_gives_some_of_its_contours(tmp_path, undefined):
    grid = Grid.from_spacing((12, 20, 20))
    slices = ct_headers(grid)
    square = np.array([[4.5, 4.5], [9.5, 4.5], [9.5, 9.5], [4.5, 9.5]])
    ds = rtstruct(slices, {"organ": [on_slice(grid, square, z) for z in range(12)]})

    def delimited(dataset):
        for element in dataset:
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
                    delimited(item)

    if undefined:
        delimited(ds)
    file = saved(ds, tmp_path / "rt.dcm")
    ct = Volume(np.zeros(grid.shape, np.int16), grid)
    data = file.path.read_bytes()
    assert read_structures([file], ct, {"organ": 1}).labels.array.sum() == 12 * 25
    begin = data.index(b"CLOSED_PLANAR")
    for length in range(begin, data.rindex(b"CLOSED_PLANAR"), (len(data) - begin) // 30):
        file.path.write_bytes(data[:length])
        result = read_structures([file], ct, {"organ": 1})
        assert not result.present and len(result.refused) == 1, length
