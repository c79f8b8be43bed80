"""DICOM-SEG that highdicom wrote, on a CT's grid."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from drawn_objects import ct_headers, itk_image, random_grid, saved, series_of, turned
from drawn_segmentations import segmentation
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from deepatlas.intake.structures.read import read_structures, structure_names
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

LABELS = {"liver": 1, "left_lung": 2, "tumour": 7}
IDS = list(LABELS.values())


def blobs(rng, shape, count=3):
    """Masks that do not overlap, each on some slices alone, the middle one with an empty slice inside."""
    owner = rng.integers(0, count + 1, shape)
    masks = np.stack([owner == i + 1 for i in range(count)], axis=-1)
    masks[0] = masks[-1] = False
    masks[3, ..., 1 % count] = False
    masks[:5, ..., -1] = False
    return masks


def numbered(masks, ids=IDS):
    return sum(mask * value for mask, value in zip(np.moveaxis(masks, -1, 0), ids, strict=False)).astype(
        np.uint8
    )


def read(ds, tmp_path, ct, slices=None, labels=LABELS, **keywords):
    series = series_of(slices) if slices else None
    return read_structures([saved(ds, tmp_path / "seg.dcm")], ct, labels, series=series, **keywords)


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", ExplicitVRLittleEndian),
        ("BINARY", ImplicitVRLittleEndian),
        ("FRACTIONAL", ExplicitVRLittleEndian),
        ("FRACTIONAL", RLELossless),
        ("LABELMAP", ExplicitVRLittleEndian),
        ("LABELMAP", RLELossless),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_masks_on_oblique_flipped_grids_come_back(tmp_path, kind, syntax, seed):
    rng = np.random.default_rng(seed)
    grid = random_grid(rng, (9, 7, 11))  # frames of 77 bits: they do not begin on bytes
    slices = ct_headers(grid)
    masks = blobs(rng, grid.shape)
    ds = segmentation(slices, masks.astype(float) if kind == "FRACTIONAL" else masks, kind, syntax)
    ct = turned(Volume(numbered(masks), grid), rng)
    result = read(ds, tmp_path, ct, slices)
    np.testing.assert_array_equal(result.labels.array, ct.array)
    assert result.present == list(LABELS)
    assert not result.warnings and not result.ignored and not result.refused


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_frames_in_any_order(tmp_path, kind):
    rng = np.random.default_rng(3)
    grid = random_grid(rng, (9, 8, 16))
    slices = ct_headers(grid)
    masks = blobs(rng, grid.shape)
    ds = segmentation(slices, masks, kind)
    order = rng.permutation(ds.NumberOfFrames)
    size = len(ds.PixelData) // ds.NumberOfFrames
    frames = [ds.PixelData[i * size : (i + 1) * size] for i in order]
    assert size * ds.NumberOfFrames == len(ds.PixelData)
    ds.PixelData = b"".join(frames)
    ds.PerFrameFunctionalGroupsSequence = [ds.PerFrameFunctionalGroupsSequence[i] for i in order]
    result = read(ds, tmp_path, Volume(np.zeros(grid.shape), grid), slices)
    np.testing.assert_array_equal(result.labels.array, numbered(masks))


def test_one_slice_and_every_other_slice(tmp_path):
    rng = np.random.default_rng(4)
    grid = random_grid(rng, (9, 8, 16))
    slices = ct_headers(grid)
    ct = Volume(np.zeros(grid.shape), grid)
    for keep in ([4], [0, 5, 7], [8]):
        masks = np.zeros((*grid.shape, 1), dtype=bool)
        masks[keep] = rng.random((len(keep), 8, 16, 1)) < 0.5
        ds = segmentation(slices, masks)
        assert ds.NumberOfFrames == len(keep)
        result = read(ds, tmp_path, ct, slices)
        np.testing.assert_array_equal(result.labels.array, numbered(masks))
        for item in (ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0],):
            item.SpacingBetweenSlices = item.SliceThickness = (
                0.5  # another series' slices: not to be believed
            )
        np.testing.assert_array_equal(read(ds, tmp_path, ct, slices).labels.array, numbered(masks))


def test_half_of_a_fraction_is_in(tmp_path):
    grid = Grid.from_spacing((5, 4, 4), (1, 1, 2))
    slices = ct_headers(grid)
    fractions = np.linspace(0, 1, 80).reshape(5, 4, 4, 1)
    ds = segmentation(slices, fractions, "FRACTIONAL", max_fractional_value=200)
    assert ds.MaximumFractionalValue == 200
    result = read(ds, tmp_path, Volume(np.zeros(grid.shape), grid), slices)
    np.testing.assert_array_equal(result.labels.array, (np.rint(fractions[..., 0] * 200) >= 100))


@pytest.mark.parametrize("labels", [{"liver": 1, "left_lung": 2}, {"left_lung": 2, "liver": 1}])
def test_overlapping_segments_stay_whole_and_the_smaller_is_shown(tmp_path, labels):
    grid = Grid.from_spacing((5, 6, 6), (1, 1, 2))
    slices = ct_headers(grid)
    masks = np.zeros((5, 6, 6, 2), dtype=bool)
    masks[1:4, 1:4, 2:4, 0] = masks[..., 1] = True
    result = read(segmentation(slices, masks), tmp_path, Volume(np.zeros(grid.shape), grid), slices, labels)
    np.testing.assert_array_equal(result.labels.array, np.where(masks[..., 0], 1, 2))
    for place, name in enumerate(("liver", "left_lung")):
        np.testing.assert_array_equal(result.labels.mask(labels[name]), masks[..., place])
    assert not result.warnings


def test_of_overlapping_segments_of_equal_size_the_later_of_the_table_is_shown(tmp_path):
    grid = Grid.from_spacing((5, 6, 6), (1, 1, 2))
    slices = ct_headers(grid)
    masks = np.zeros((5, 6, 6, 2), dtype=bool)
    masks[1:4, 1:4, :, 0] = masks[2:, 3:, :, 1] = True
    ds = segmentation(slices, masks)
    ct = Volume(np.zeros(grid.shape), grid)
    forward = read(ds, tmp_path, ct, slices, {"liver": 1, "left_lung": 2})
    backward = read(ds, tmp_path, ct, slices, {"left_lung": 2, "liver": 1})
    np.testing.assert_array_equal(forward.labels.array, np.where(masks[..., 1], 2, masks[..., 0]))
    np.testing.assert_array_equal(backward.labels.array, np.where(masks[..., 0], 1, masks[..., 1] * 2))
    for result in (forward, backward):
        np.testing.assert_array_equal(result.labels.mask(1), masks[..., 0])
        np.testing.assert_array_equal(result.labels.mask(2), masks[..., 1])
        assert set(result.present) == {"liver", "left_lung"} and not result.warnings


@pytest.mark.parametrize("seed", range(4))
def test_another_grid_is_resampled_as_simpleitk_does_and_warned_of(tmp_path, seed):
    rng = np.random.default_rng(seed)
    grid = random_grid(rng, (9, 20, 22))
    slices = ct_headers(grid)
    z, y, x = np.indices(grid.shape)
    masks = ((z - 4) ** 2 / 9 + (y - 9) ** 2 / 50 + (x - 11) ** 2 / 60 < 1)[..., None]
    ds = segmentation(slices, masks)
    turn = np.eye(4)
    turn[:3, :3] = np.diag([0.8, 1.3, 0.6])
    turn[:3, 3] = rng.uniform(-2, 2, 3)
    target = Grid((14, 16, 28), grid.affine @ turn)
    result = read(ds, tmp_path, Volume(np.zeros(target.shape), target), slices)
    image = sitk.GetImageFromArray(masks[..., 0].astype(np.uint8))
    image.CopyInformation(itk_image(grid))
    want = sitk.GetArrayFromImage(
        sitk.Resample(image, itk_image(target), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    )
    assert want.sum() > 300
    np.testing.assert_array_equal(result.labels.array, want)
    assert "another grid" in result.warnings[0]


def test_segments_beyond_the_ct_are_cut_and_said(tmp_path):
    grid = Grid.from_spacing((9, 6, 6), (1, 1, 2))
    slices = ct_headers(grid)
    masks = np.zeros((9, 6, 6, 2), dtype=bool)
    masks[2:8, ..., 0] = masks[7:, ..., 1] = True
    ds = segmentation(slices, masks)
    part = grid.cropped((0, 1, 0), (5, 5, 8))
    result = read(ds, tmp_path, Volume(np.zeros(part.shape), part), slices)
    want = np.zeros(part.shape, dtype=np.uint8)
    want[2:, :, :6] = 1
    np.testing.assert_array_equal(result.labels.array, want)
    assert "of its voxels lie beyond the CT" in result.warnings[0]
    assert "no centre of the CT's voxels" in result.ignored["Left Lung"]


def test_empty_segments_are_ignored_with_the_reason(tmp_path):
    grid = Grid.from_spacing((5, 6, 6), (1, 1, 2))
    slices = ct_headers(grid)
    masks = np.zeros((5, 6, 6, 2), dtype=bool)
    masks[2, ..., 0] = True
    for kind in ("BINARY", "LABELMAP"):
        result = read(segmentation(slices, masks, kind), tmp_path, Volume(np.zeros(grid.shape), grid), slices)
        assert result.present == ["liver"] and "empty" in result.ignored["Left Lung"]


def test_names_come_from_the_header_alone(tmp_path):
    grid = Grid.from_spacing((5, 6, 6), (1, 1, 2))
    ds = segmentation(ct_headers(grid), np.ones((5, 6, 6, 3), dtype=bool))
    ds.SegmentSequence[2].SegmentLabel = "Tumour of Jonathan"
    assert structure_names([saved(ds, tmp_path / "seg.dcm")]) == ["left_lung", "liver"]


@pytest.mark.slow(1)
def test_another_frame_series_or_kind_of_object_is_refused(tmp_path):
    grid = Grid.from_spacing((5, 6, 6), (1, 1, 2))
    slices = ct_headers(grid)
    ct = Volume(np.zeros(grid.shape), grid)
    masks = np.ones((5, 6, 6, 1), dtype=bool)

    def refusal(change):
        ds = segmentation(slices, masks)
        change(ds)
        result = read(ds, tmp_path, ct, slices)
        assert bool(result.present) != bool(result.refused)
        return result.refused[0].reason if result.refused else ""

    def frame(ds):
        ds.FrameOfReferenceUID = generate_uid()

    def series(ds):
        ds.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
        ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence[:] = []

    def slide(ds):
        for item in ds.PerFrameFunctionalGroupsSequence:
            del item.PlanePositionSequence

    def skewed(ds):
        item = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        item.ImageOrientationPatient = [1, 0, 0, 0.1, 0.995, 0]

    def other(ds):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"

    assert refusal(lambda ds: None) == ""
    assert "frame of reference" in refusal(frame)
    assert "another series" in refusal(series)
    assert "no position" in refusal(slide)
    assert "right angles" in refusal(skewed)
    assert "neither an RTSTRUCT nor a DICOM-SEG" in refusal(other)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_frames_that_are_shifted_as_by_a_tilted_gantry_lie_where_they_say(tmp_path, kind):
    rng = np.random.default_rng(8)
    grid = random_grid(rng, (7, 12, 10))
    slices = ct_headers(grid)
    masks = np.zeros((*grid.shape, 2), dtype=bool)
    masks[:, 3:6, 2:8, 0] = rng.random((7, 3, 6)) < 0.6
    masks[:, 3:6, 2:8, 1] = ~masks[:, 3:6, 2:8, 0]
    ds = segmentation(slices, masks, kind)
    down = grid.affine[:3, 1] * [-1, -1, 1]  # a row further, LPS
    where = {s.ImagePositionPatient[2]: z for z, s in enumerate(slices)}
    # Segments share the object of a position.
    positions = {id(p): p for p in (f.PlanePositionSequence[0] for f in ds.PerFrameFunctionalGroupsSequence)}
    for position in positions.values():
        at = np.array(position.ImagePositionPatient, dtype=float)
        z = where[min(where, key=lambda v: abs(v - at[2]))]
        position.ImagePositionPatient = [float(f"{v:.9g}") for v in at + z * down]
    want = np.stack([np.roll(plane, z, axis=0) for z, plane in enumerate(numbered(masks))])
    result = read(ds, tmp_path, Volume(np.zeros(grid.shape), grid), slices)
    np.testing.assert_array_equal(result.labels.array, want)
    assert not result.warnings


def test_unevenly_spaced_frames_go_to_the_nearest_slice_with_a_warning(tmp_path):
    grid = Grid.from_spacing((6, 6, 6), (1, 1, 2))
    slices = ct_headers(grid)
    masks = np.zeros((*grid.shape, 1), dtype=bool)
    masks[1:5, 1:4, 2:, 0] = True
    ds = segmentation(slices, masks)
    assert ds.NumberOfFrames == 4
    for item, z in zip(ds.PerFrameFunctionalGroupsSequence, (0, 2.5, 6.2, 10.9), strict=True):
        position = item.PlanePositionSequence[0]
        position.ImagePositionPatient = [*position.ImagePositionPatient[:2], z]
    result = read(ds, tmp_path, Volume(np.zeros(grid.shape), grid), slices)
    want = np.zeros(grid.shape, dtype=np.uint8)
    want[[0, 1, 3, 5], 1:4, 2:] = 1
    np.testing.assert_array_equal(result.labels.array, want)
    assert "uneven or shifted slices" in result.warnings[0]
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    tilted = Grid(grid.shape, turn @ grid.affine)
    refused = read(ds, tmp_path, Volume(np.zeros(grid.shape), tilted), slices)
    assert "not parallel to the CT's slices" in refused.ignored["Liver"]


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_missing_pixels_are_not_taken_for_empty_ones(tmp_path, kind):
    grid = Grid.from_spacing((5, 6, 6), (1, 1, 2))
    masks = np.ones((5, 6, 6, 1), dtype=float if kind == "FRACTIONAL" else bool)
    ds = segmentation(ct_headers(grid), masks, kind)
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2 // 2 * 2]
    result = read(ds, tmp_path, Volume(np.zeros(grid.shape), grid))
    assert not result.present and not result.labels.array.any()
    assert "truncated" in result.ignored["Liver"] or "damaged" in result.ignored["Liver"]
    assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentationType == kind
