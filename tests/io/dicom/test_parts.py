"""Slices of one series whose headers differ: joined, refused, or left out with a word, but never half a series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_dicom import uid, write_ct, write_localizer
from prepare_here import prepare_here
from small_exams import body, one_line

from deepatlas.errors import DataError
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.io.dicom.choose import choose_series
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.read import read_folder, read_series
from deepatlas.io.dicom.scan import scan_dicom

# 12 slices at 3 mm, of 512 pixels along x, where a small difference becomes a large one.
COUNT, STEP = 12, 3.0
AFFINE = np.array([[-0.9765625, 0, 0, 200], [0, -0.9765625, 0, 30], [0, 0, STEP, -100], [0, 0, 0, 1.0]])
HU = np.random.default_rng(0).integers(-1000, 1500, (COUNT, 8, 512)).astype(float)


def scanned(folder: Path):
    return scan_dicom([Found(p, p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*.dcm"))])


def turned(angle: float) -> list[str]:
    """ImageOrientationPatient turned within the plane by an angle (radians)."""
    values = [np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]
    return [f"{v:.10g}" for v in values]


def check_whole(reading) -> None:
    """All 12 slices at 3 mm, in their order."""
    assert reading.volume.array.shape == (COUNT, 8, 512)
    np.testing.assert_array_equal(reading.volume.array, HU)
    assert reading.volume.grid.spacing[2] == pytest.approx(STEP, abs=1e-4)


def test_pixel_spacing_that_alternates(tmp_path):
    other = {k: {"PixelSpacing": ["0.977", "0.977"]} for k in range(1, COUNT, 2)}
    write_ct(tmp_path, HU, AFFINE, slice_tags=other)
    reading = read_folder(tmp_path)
    check_whole(reading)
    np.testing.assert_allclose(reading.volume.grid.spacing[:2], (0.9765625 + 0.977) / 2, atol=1e-7)
    (warning,) = reading.warnings
    assert "PixelSpacing differs (0.9765625 to 0.977 mm)" in warning and "0.11 pixels off" in warning


def test_orientation_that_alternates(tmp_path):
    write_ct(
        tmp_path,
        HU,
        AFFINE,
        slice_tags={k: {"ImageOrientationPatient": turned(0.0015)} for k in range(1, 12, 2)},
    )
    reading = read_folder(tmp_path)
    check_whole(reading)
    assert reading.warnings == ["the slices' orientation differs by up to 0.09 degrees"]


def test_three_spacings_that_take_turns(tmp_path):
    sizes = ("0.9765625", "0.9769", "0.977")
    write_ct(tmp_path, HU, AFFINE, slice_tags={k: {"PixelSpacing": [sizes[k % 3]] * 2} for k in range(COUNT)})
    check_whole(read_folder(tmp_path))


def test_parts_that_abut(tmp_path):
    write_ct(
        tmp_path, HU, AFFINE, slice_tags={k: {"PixelSpacing": ["0.977", "0.977"]} for k in range(7, COUNT)}
    )
    check_whole(read_folder(tmp_path))


def test_every_slice_with_a_size_of_its_own(tmp_path):
    write_ct(
        tmp_path,
        HU,
        AFFINE,
        slice_tags={k: {"PixelSpacing": [f"{0.9765625 + k * 2e-4:.7f}"] * 2} for k in range(COUNT)},
    )
    with pytest.raises(DataError, match="PixelSpacing"):
        # The last is 1.1 mm off at the end of a row of 512 pixels.
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": ["0.98", "0.98"]},
        {"PixelSpacing": ["1.2", "1.2"]},
        {"ImageOrientationPatient": turned(0.003)},
        {"PixelSpacing": ["0.98", "0.98"], "ImageOrientationPatient": turned(0.0015)},
    ],
)
@pytest.mark.parametrize("places", [range(1, COUNT, 2), range(8, COUNT)], ids=["interleaved", "abutting"])
def test_more_than_half_a_pixel_is_refused(tmp_path, tags, places):
    """Every other slice would be accepted as a stack of 6 mm, and the half that abuts as a shorter body."""
    write_ct(tmp_path, HU, AFFINE, slice_tags={k: tags for k in places})
    with pytest.raises(DataError, match="are a part of 12 that are evenly spaced") as error:
        read_folder(tmp_path)
    assert "more than half a pixel" in one_line(error.value) and "separate series" in str(error.value)
    series = scanned(tmp_path).series
    assert len(series) == 2 and choose_series(series).taken is None


def test_half_a_degree_is_refused_in_a_small_image_too(tmp_path):
    """There it moves no pixel by half a pixel, but the slices were not drawn on one grid."""
    tags = {k: {"ImageOrientationPatient": turned(0.01)} for k in range(1, COUNT, 2)}
    write_ct(tmp_path, HU[:, :, :10], AFFINE, slice_tags=tags)
    with pytest.raises(DataError, match="evenly spaced but differ in orientation"):
        read_folder(tmp_path)


def test_a_different_field_of_view_is_refused(tmp_path):
    """Its first pixel lies elsewhere too."""
    odd = range(1, COUNT, 2)
    write_ct(
        tmp_path,
        HU,
        AFFINE,
        slice_tags={k: {"PixelSpacing": ["0.8", "0.8"]} for k in odd},
        moves={k: (30, 10, 0) for k in odd},
    )
    with pytest.raises(DataError, match="differ in PixelSpacing .*, and in their places side by side"):
        read_folder(tmp_path)


def test_what_is_left_out_of_a_series_is_said(tmp_path):
    """Parts that make no stack together stay apart, and the one that is taken tells of the others."""
    series, study = uid("one series"), uid("one study")
    write_ct(tmp_path / "a", HU, AFFINE, study=study, series=series)
    coronal = np.array([[-0.8, 0, 0, 40], [0, 0, 2.5, 30], [0, -0.7, 0, 100], [0, 0, 0, 1.0]])
    # Other instances of the same series.
    tags = {"SeriesInstanceUID": series}
    write_ct(
        tmp_path / "b", HU[:5], coronal, study=study, series=uid("b"), frame=uid(study, "frame"), tags=tags
    )
    write_localizer(tmp_path / "c.dcm", study, tags=tags)
    reading = read_folder(tmp_path)
    check_whole(reading)
    assert any(w.startswith("5 of the 18 images of its series left out: another") for w in reading.warnings)
    assert any(w == "1 of the 18 images of its series left out: a scout" for w in reading.warnings)
    assert len(reading.warnings) == 2


def test_phases_of_one_series_stay_apart(tmp_path):
    series, study = uid("4-D"), uid("study")
    for phase in (1, 2):
        write_ct(
            tmp_path / str(phase),
            HU,
            AFFINE,
            study=study,
            series=uid(phase),
            tags={"SeriesInstanceUID": series, "AcquisitionNumber": phase},
        )
    found = scanned(tmp_path).series
    assert [s.facts["slices"] for s in found] == [COUNT, COUNT]
    (line,) = found[0].facts["left_out"]
    assert line.startswith("12 of the 24 images") and "phase" in line


def test_a_uid_for_every_slice(tmp_path):
    write_ct(tmp_path, HU, AFFINE, slice_tags={k: {"SeriesInstanceUID": uid("s", k)} for k in range(COUNT)})
    (series,) = scanned(tmp_path).series
    assert series.uids == {uid("s", k) for k in range(COUNT)}
    reading = read_series(series)
    check_whole(reading)
    assert reading.warnings == ["its slices carry 12 SeriesInstanceUIDs; joined by their positions"]


def test_a_uid_and_a_number_for_every_slice(tmp_path):
    tags = {k: {"SeriesInstanceUID": uid("s", k), "SeriesNumber": 100 + k} for k in range(COUNT)}
    write_ct(tmp_path, HU, AFFINE, slice_tags=tags)
    check_whole(read_folder(tmp_path))


def test_two_reconstructions_with_a_uid_for_every_slice(tmp_path):
    """The number of the series tells them apart."""
    study = uid("study")
    for number in (2, 3):
        write_ct(
            tmp_path / str(number),
            HU - 5 * (number == 3),
            AFFINE,
            study=study,
            number=number,
            slice_tags={k: {"SeriesInstanceUID": uid("s", number, k)} for k in range(COUNT)},
        )
    found = scanned(tmp_path).series
    assert [s.facts["slices"] for s in found] == [COUNT, COUNT]
    np.testing.assert_array_equal(read_series(found[0]).volume.array, HU)
    np.testing.assert_array_equal(read_series(found[1]).volume.array, HU - 5)


def test_single_images_that_make_no_stack_stay_apart(tmp_path):
    study = uid("study")
    for place, z in enumerate((0, 3, 40, 41, 90)):
        folder = tmp_path / str(place)
        files = write_ct(folder, HU[:2], AFFINE, study=study, series=uid("s", place), moves={0: (0, 0, z)})
        files[1].unlink()
    assert [s.facts["images"] for s in scanned(tmp_path).series] == [1] * 5


def test_prepare_takes_the_whole_series_and_says_so(tmp_path):
    ct, _ = body((COUNT, 40, 40), spacing=(4.0, 4.0, STEP))
    tags = {
        k: {"PixelSpacing": ["4.0", "4.001"], "SeriesInstanceUID": uid("s", k)} for k in range(1, COUNT, 2)
    }
    tags |= {k: {"SeriesInstanceUID": uid("s", k)} for k in range(0, COUNT, 2)}
    write_ct(tmp_path / "src", np.rint(ct.array.clip(-1024)), ct.grid.affine, slice_tags=tags)
    prepare_here(tmp_path / "src", tmp_path / "dst")
    (exam,) = Dataset(tmp_path / "dst")
    assert exam.volume().array.shape[0] == COUNT and exam.volume().grid.spacing[2] == pytest.approx(STEP)
    with Dataset(tmp_path / "dst").manifest() as manifest:
        text = str(list(manifest.exams()))
    assert "PixelSpacing differs (4 to 4.001 mm)" in text and "12 SeriesInstanceUIDs" in text
