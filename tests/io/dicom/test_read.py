"""A DICOM series becomes the volume that was written, in its place, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from make_dicom import tilted, uid, write_ct
from scipy.spatial.transform import Rotation

from deepatlas.errors import DataError
from deepatlas.exams.facts import allowed_facts
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.io.dicom.read import read_folder

SHAPE = (7, 12, 10)
HEAD_FIRST = np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])


def body(seed: int = 0, shape=SHAPE, low: int = -1000, high: int = 1500) -> np.ndarray:
    hu = np.random.default_rng(seed).integers(low, high, size=shape).astype(float)
    hu[:, 0, 0], hu[:, -1, -1] = low, high - 1
    return hu


def oblique(seed: int) -> np.ndarray:
    """A rotated affine to RAS whose slices are stacked in either direction."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    axes = Rotation.random(random_state=seed).as_matrix()
    axes[:, 2] *= rng.choice([-1, 1])
    affine[:3, :3] = axes * rng.uniform(0.4, 5, size=3)
    affine[:3, 3] = rng.uniform(-300, 300, size=3)
    return affine


def places(array: np.ndarray, affine: np.ndarray, values) -> np.ndarray:
    """World positions of the voxels with ``values`` (each occurs once), by the arithmetic of nibabel."""
    index = np.array([np.argwhere(array == v)[0][::-1] for v in values])
    return index @ affine[:3, :3].T + affine[:3, 3]


def refused(path) -> str:
    with pytest.raises(DataError) as error:
        read_folder(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    for secret in ("PAT-0001", "Doe", "Jane", "19500102", "4711", "1.2.826"):
        assert secret not in text
    return text


def by_itk(paths) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and corners (RAS) according to SimpleITK's series reader, which must be given the order of the files."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(p) for p in paths])
    image = reader.Execute()
    last = np.array(image.GetSize()) - 1
    corners = [
        image.TransformIndexToPhysicalPoint((np.array(c) * last).tolist()) for c in np.ndindex(2, 2, 2)
    ]
    return sitk.GetArrayFromImage(image), np.array(corners) * (-1, -1, 1)


@pytest.mark.parametrize("seed", range(12))
def test_oblique_series_lie_where_the_affine_says(tmp_path, seed):
    affine = oblique(seed)
    hu = np.arange(np.prod(SHAPE), dtype=float).reshape(SHAPE) - 500
    np.random.default_rng(seed).shuffle(hu.ravel())
    paths = write_ct(tmp_path, hu, affine, shuffle=seed)
    reading = read_folder(tmp_path)
    volume = reading.volume
    assert volume.array.dtype == np.float32 and volume.array.shape == SHAPE
    assert not reading.corrections and not reading.warnings
    assert np.linalg.det(volume.grid.affine[:3, :3]) > 0  # right-handed
    values = np.random.default_rng(seed).choice(hu.ravel(), 40, replace=False)
    np.testing.assert_allclose(
        places(volume.array, volume.grid.affine, values), places(hu, affine, values), atol=1e-6
    )
    if np.linalg.det(affine[:3, :3]) < 0:
        paths, hu = paths[::-1], hu[::-1]
    np.testing.assert_array_equal(volume.array, hu)
    itk, corners = by_itk(paths)
    np.testing.assert_array_equal(volume.array, itk)
    np.testing.assert_allclose(volume.grid.corners(), corners, atol=1e-4)


def test_order_of_files_and_slice_location_say_nothing(tmp_path):
    hu = body()
    for seed in (None, 1, 2):
        write_ct(tmp_path / str(seed), hu, HEAD_FIRST, shuffle=seed)
        np.testing.assert_array_equal(read_folder(tmp_path / str(seed)).volume.array, hu)


def test_a_volume_survives_being_written_as_nifti(tmp_path):
    write_ct(tmp_path / "dicom", body(), oblique(3))
    volume = read_folder(tmp_path / "dicom").volume
    again = read_volume(write_volume(tmp_path / "ct.nii.gz", volume), notes=[])
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.grid.corners(), volume.grid.corners(), atol=1e-3)


# -- tilt ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degrees", "seed"), [(12, 1), (-23.5, 2), (30, 3), (0.4, 4)])
def test_gantry_tilt_is_resampled_to_right_angles(tmp_path, degrees, seed):
    """On a field that is linear in space, linear interpolation is exact: every voxel can be checked."""
    shape = (9, 40, 12)
    affine = oblique(seed)
    affine[:3, :3] *= np.array([0.9, 1.1, 3.0]) / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = tilted(affine, degrees)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)[..., ::-1]
    world = index @ sheared[:3, :3].T + sheared[:3, 3]
    gradient = np.array([1.3, -2.1, 0.8])
    field = (world - world.mean(axis=(0, 1, 2))) @ gradient
    write_ct(tmp_path, field, affine, tilt=degrees, slope=0.01, intercept=-327.68)
    reading = read_folder(tmp_path)
    (note,) = reading.corrections
    assert f"gantry tilt of {abs(degrees):.2f} degrees corrected" in note
    volume = reading.volume
    assert volume.grid.spacing == pytest.approx((0.9, 1.1, 3.0), abs=1e-6)
    back = np.stack(np.meshgrid(*[np.arange(n) for n in volume.grid.shape], indexing="ij"), -1)[..., ::-1]
    place = volume.grid.voxel_to_world(back)
    expected = (place - world.mean(axis=(0, 1, 2))) @ gradient
    inside = np.linalg.solve(sheared[:3, :3], (place - sheared[:3, 3]).reshape(-1, 3).T).T.reshape(
        place.shape
    )
    inside = (inside > -1e-4).all(-1) & (inside < np.array(shape[::-1]) - 1 + 1e-4).all(-1)
    assert inside.sum() > 0.9 * np.prod(shape) * (shape[1] - 1) / shape[1]
    assert np.abs(volume.array - expected)[inside].max() < 0.011  # half a stored step at each neighbour
    outside = np.abs(volume.array - expected) > 1
    assert (volume.array[outside] == -1024).all() if outside.any() else True


def test_whole_pixel_shifts_lose_nothing(tmp_path):
    hu = body()
    degrees = np.degrees(np.arctan(2 * 0.7 / 2.5))  # two rows a slice
    write_ct(tmp_path, hu, HEAD_FIRST, tilt=degrees)
    volume = read_folder(tmp_path).volume
    assert volume.array.shape == (7, 12 + 12, 10)
    for k in range(7):
        (rows,) = np.nonzero((volume.array[k] != -1024).any(axis=1))
        np.testing.assert_allclose(volume.array[k, rows[0] : rows[0] + 12], hu[k], atol=1e-3)
        world = volume.grid.voxel_to_world([0, rows[0], k])
        np.testing.assert_allclose(world, (tilted(HEAD_FIRST, degrees) @ [0, 0, k, 1])[:3], atol=1e-3)


def test_rounded_positions_are_no_tilt(tmp_path):
    rng = np.random.default_rng(0)
    moves = {k: rng.uniform(-0.03, 0.03, size=3) * (1, 1, 0) for k in range(7)}
    write_ct(tmp_path, body(), HEAD_FIRST, moves=moves)
    reading = read_folder(tmp_path)
    assert not reading.corrections
    np.testing.assert_allclose(reading.volume.grid.voxel_to_world([0, 0, 0])[:2], [40, 30], atol=0.03)


# -- missing, duplicate and uneven slices ----------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ((5,), "1 slice missing of 12: 1 after slice 5 (at 10 of 27.5 mm)"),
        ((4, 5), "2 slices missing of 12: 2 after slice 4 (at 7.5 of 27.5 mm)"),
        ((2, 8), "2 slices missing of 12: 1 after slice 2 (at 2.5 of 27.5 mm), 1 after slice 7 (at 17.5"),
    ],
)
def test_missing_slices_are_refused_with_count_and_place(tmp_path, drop, words):
    write_ct(tmp_path, body(shape=(12, 8, 8)), HEAD_FIRST, drop=drop)
    assert words in refused(tmp_path)


def test_slices_missing_at_an_end_cannot_be_known(tmp_path):
    write_ct(tmp_path, body(), HEAD_FIRST, drop=(0, 6))
    assert read_folder(tmp_path).volume.array.shape[0] == 5


def test_equal_duplicates_are_left_out(tmp_path):
    hu = body()
    write_ct(tmp_path, hu, HEAD_FIRST, duplicate=(2, 3))
    reading = read_folder(tmp_path)
    np.testing.assert_array_equal(reading.volume.array, hu)
    assert reading.corrections == ["2 duplicate slices with equal pixels left out"]


def test_different_images_at_one_place_are_refused(tmp_path):
    write_ct(tmp_path, body(), HEAD_FIRST)
    write_ct(
        tmp_path / "b",
        body(1)[2:3],
        HEAD_FIRST @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]),
        study=None,
        series=None,
        tags=_ids(tmp_path),
    )
    assert "two different images lie at slice 3 of 7" in refused(tmp_path)


def _ids(folder) -> dict:
    ds = pydicom.dcmread(sorted(folder.glob("*.dcm"))[0])
    return {
        "StudyInstanceUID": ds.StudyInstanceUID,
        "SeriesInstanceUID": ds.SeriesInstanceUID,
        "FrameOfReferenceUID": ds.FrameOfReferenceUID,
        "AcquisitionNumber": ds.AcquisitionNumber,
    }


def test_two_regular_parts_are_resampled_to_the_finer(tmp_path):
    """A head CT with 2 mm through the base and 4 mm above. Values are linear in z, so that the result is known.

    With slices that stay thin, the wider steps are gaps.
    """
    levels = np.array([0, 2, 4, 6, 8, 12, 16, 20, 24], dtype=float)
    ramp = np.broadcast_to(levels[:, None, None] * 10 - 100, (9, 8, 8)).copy()
    ramp[:, 0, 0] += 50
    affine = np.diag([-1.0, -1, 2, 1])
    moves = {k: (0, 0, levels[k] - 2 * k) for k in range(9)}
    thick = {k: {"SliceThickness": 4} for k in range(4, 9)}
    write_ct(tmp_path / "constant", ramp, affine, moves=moves)
    assert "4 slices missing of 13" in refused(tmp_path / "constant")
    write_ct(tmp_path / "ct", ramp, affine, moves=moves, slice_tags=thick)
    reading = read_folder(tmp_path / "ct")
    assert reading.corrections == ["slice spacing 2 to 4 mm resampled to 2 mm (linear between slices)"]
    assert reading.volume.grid.spacing == pytest.approx((1, 1, 2))
    np.testing.assert_allclose(reading.volume.array[:, 4, 4], np.arange(13) * 20 - 100, atol=1e-3)


def test_irregular_levels_without_a_gap_are_resampled(tmp_path):
    rng = np.random.default_rng(1)
    moves = {k: (0, 0, z) for k, z in enumerate(rng.uniform(-0.4, 0.4, size=12))}
    levels = np.array([2.5 * k + moves[k][2] for k in range(12)])
    ramp = np.broadcast_to(levels[:, None, None] * 10, (12, 8, 8)).copy()
    ramp[:, 0, 0] += 50
    write_ct(tmp_path, ramp, HEAD_FIRST, moves=moves, slope=0.01, intercept=-300)
    reading = read_folder(tmp_path)
    assert "resampled to" in reading.corrections[0]
    z = reading.volume.grid.voxel_to_world(np.arange(len(reading.volume.array))[:, None] * [0, 0, 1])[:, 2]
    np.testing.assert_allclose(reading.volume.array[:, 4, 4], (z + 100) * 10, atol=0.02)


def test_spacing_that_hardly_varies_is_kept_and_said(tmp_path):
    write_ct(tmp_path, body(), HEAD_FIRST, moves={3: (0, 0, 0.08)})
    reading = read_folder(tmp_path)
    assert not reading.corrections and "2.7% of the spacing off" in reading.warnings[0]
    np.testing.assert_array_equal(reading.volume.array, body())


def test_orientation_that_wobbles(tmp_path):
    """A rotation of a slice by 0.03 degrees is rounding and causes a warning; half a degree is another orientation."""
    for name, angle in (("little", 5e-4), ("much", 1e-2)):
        turned = [np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]
        turned = [f"{v:.6f}" for v in turned]
        write_ct(tmp_path / name, body(), HEAD_FIRST, slice_tags={3: {"ImageOrientationPatient": turned}})
    reading = read_folder(tmp_path / "little")
    assert reading.warnings == ["the slices' orientation differs by up to 0.03 degrees"]
    np.testing.assert_array_equal(reading.volume.array, body())
    assert "1 slice missing of 7" in refused(tmp_path / "much")


def test_too_few_slices(tmp_path):
    write_ct(tmp_path, body(shape=(3, 8, 8)), HEAD_FIRST)
    assert "3 slices; a volume needs at least 4" in refused(tmp_path)


# -- multi-frame -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_enhanced_multiframe(tmp_path, seed):
    affine, hu = oblique(seed), body(seed)
    (path,) = write_ct(tmp_path, hu, affine, multiframe=True, shuffle=seed)
    write_ct(tmp_path / "plain", hu, affine)
    one, many = read_folder(path), read_folder(tmp_path / "plain")
    np.testing.assert_array_equal(one.volume.array, many.volume.array)
    np.testing.assert_allclose(one.volume.grid.affine, many.volume.grid.affine, atol=1e-6)
    assert one.facts["multiframe"] and not many.facts["multiframe"]


def test_each_frame_has_its_own_rescale(tmp_path):
    slopes, intercepts = np.array([1, 2, 0.5, 3, 1, 2, 4]), np.array([-1024, -900, -1, 0, -1024, 7, -100])
    hu = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 97 * slopes[:, None, None] + intercepts[:, None, None]
    for multiframe in (False, True):
        folder = tmp_path / str(multiframe)
        write_ct(folder, hu, HEAD_FIRST, slope=slopes, intercept=intercepts, multiframe=multiframe)
        reading = read_folder(folder)
        np.testing.assert_allclose(reading.volume.array, hu, atol=1e-4)
        assert reading.warnings == [
            "RescaleSlope or RescaleIntercept differs between slices; each has its own applied"
        ]


@pytest.mark.parametrize("size", [1, 3])
def test_an_enhanced_image_in_several_files(tmp_path, size):
    """Either a concatenation, or objects of one frame each."""
    hu, study, series = body(shape=(9, 12, 10)), uid("s"), uid("parts")
    for k in range(0, 9, size):
        tags = {"SOPInstanceUID": uid("part", k), "InstanceNumber": 9 - k}
        if size > 1:
            tags |= {"ConcatenationUID": uid("whole"), "InConcatenationTotalNumber": 3}
        affine = HEAD_FIRST.copy()
        affine[:3, 3] += k * affine[:3, 2]
        write_ct(
            tmp_path / str(k),
            hu[k : k + size],
            affine,
            study=study,
            series=series,
            tags=tags,
            multiframe=True,
        )
    volume = read_folder(tmp_path).volume
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_allclose(volume.grid.affine, HEAD_FIRST, atol=1e-9)
    if size > 1:
        (tmp_path / "6" / "IM0001.dcm").unlink()
        assert "2 of the 3 files of one multi-frame image are there" in refused(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_a_multiframe_object_made_by_highdicom(tmp_path, seed):
    """A legacy converted object, by another writer and of another SOP class, whose rescale GDCM ignores."""
    legacy = pytest.importorskip("highdicom.legacy")
    hu, affine = body(seed), oblique(seed)
    more = {
        **{"AcquisitionDate": "20200304", "AcquisitionTime": "101112", "ContentDate": "20200304"},
        **{
            "ContentTime": "101112",
            "PatientSex": "F",
            "ReferringPhysicianName": "",
            "SeriesDate": "20200304",
        },
        **{
            "SeriesTime": "101112",
            "ManufacturerModelName": "M",
            "SoftwareVersions": "1",
            "DeviceSerialNumber": "1",
        },
        **{"PositionReferenceIndicator": "", "PatientAge": "070Y", "BurnedInAnnotation": "NO"},
    }
    paths = write_ct(tmp_path / "classic", hu, affine, tags=more, slope=0.5, intercept=-1200)
    made = legacy.LegacyConvertedEnhancedCTImage(
        [pydicom.dcmread(p) for p in paths], uid("converted", seed), 9, uid("converted", seed, 1), 1
    )
    (tmp_path / "converted").mkdir()
    made.save_as(tmp_path / "converted" / "one.dcm")
    one, many = read_folder(tmp_path / "converted"), read_folder(tmp_path / "classic")
    assert one.facts["multiframe"] and not many.facts["multiframe"]
    np.testing.assert_array_equal(one.volume.array, many.volume.array)
    np.testing.assert_allclose(one.volume.grid.affine, many.volume.grid.affine, atol=1e-6)


def test_multiframe_traps_are_those_of_a_series(tmp_path):
    hu = body(shape=(10, 12, 10))
    write_ct(tmp_path / "gap", hu, HEAD_FIRST, multiframe=True, drop=(4,))
    assert "1 slice missing" in refused(tmp_path / "gap")
    write_ct(tmp_path / "twice", hu, HEAD_FIRST, multiframe=True, duplicate=(4,))
    assert "1 duplicate slice" in read_folder(tmp_path / "twice").corrections[0]
    write_ct(tmp_path / "tilt", hu, HEAD_FIRST, multiframe=True, tilt=15)
    assert "gantry tilt of 15.00" in read_folder(tmp_path / "tilt").corrections[0]


# -- a folder as an exam ---------------------------------------------------------------------------


def test_read_folder_names_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no DICOM image" in refused(tmp_path / "empty")
    write_ct(tmp_path / "two" / "a", body(), HEAD_FIRST)
    write_ct(tmp_path / "two" / "b", body(), HEAD_FIRST)
    assert "DICOM of 2 exams" in refused(tmp_path / "two")


@pytest.mark.parametrize("what", ["IODINE", "MIP"])
def test_a_single_series_that_shows_no_anatomy_is_refused(tmp_path, what):
    write_ct(tmp_path, body(), HEAD_FIRST, tags={"ImageType": ["DERIVED", "SECONDARY", "AXIAL", what]})
    assert f"shows something else (ImageType {what})" in refused(tmp_path)
    assert read_folder(tmp_path, 2).volume.grid.shape == SHAPE


def test_facts_are_provenance(tmp_path):
    write_ct(tmp_path, body(), HEAD_FIRST, tags={"ConvolutionKernel": "Doe Jane"})
    facts = read_folder(tmp_path).facts
    assert facts["kernel"] == "" and facts["kvp"] == 120 and facts["slices"] == 7
    assert facts["spacing"] == pytest.approx((0.8, 0.7, 2.5))
    # All of them may be stored.
    kept = allowed_facts(facts)
    assert set(kept) == set(facts) and kept["slice_thickness"] == 2.5 and kept["spacing"] == [0.8, 0.7, 2.5]
    assert (kept["kernel"], kept["tissue"], kept["multiframe"]) == ("other", "unknown", "no")
