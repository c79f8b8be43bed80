"""Images that are no CT in Hounsfield units, and padding: made by the test, or changed copies of real exams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from real_exams import real
from scipy import ndimage
from small_exams import one_line

from deepatlas.errors import DataError, KindError
from deepatlas.exams.read import read_volume
from deepatlas.space.grid import Grid
from deepatlas.space.hounsfield import hounsfield
from deepatlas.space.volume import Volume


def patient(seed: int = 0, shape=(40, 60, 64), lungs: bool = True) -> np.ndarray:
    """A noisy trunk in Hounsfield units: fat around muscle, two lungs, a spine, and a couch below."""
    rng = np.random.default_rng(seed)
    _, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(x / 0.8) ** 2 + (y / 0.6) ** 2 < 1] = -100
    hu[(x / 0.7) ** 2 + (y / 0.5) ** 2 < 1] = 50
    if lungs:
        hu[((np.abs(x) - 0.35) / 0.2) ** 2 + (y / 0.3) ** 2 < 1] = -820
    hu[x**2 + (y + 0.35) ** 2 < 0.012] = 450
    hu[:, 2:4] = -300
    hu = ndimage.gaussian_filter(hu, 0.6) + rng.normal(0, 12, shape)
    return np.rint(np.maximum(hu, -1024)).astype(np.float32)


def volume(array: np.ndarray, name: str = "exam") -> Volume:
    return Volume(array, Grid.from_spacing(array.shape, (4, 4, 5)), name)


def scaled(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (hu - hu.min()) / np.ptp(hu) * (high - low)


def shifted(hu: np.ndarray, count: int = 6) -> np.ndarray:
    """The patient moved by some slices, with zeros where there was nothing."""
    moved = np.zeros_like(hu)
    moved[:-count] = hu[count:]
    return moved


NO_CT = {
    "negated": (np.negative, "sign was changed"),
    "intercept of -1024 missing": (lambda hu: hu + 1024, "rescale intercept"),
    "intercept of -1000 missing": (lambda hu: hu + 1000, "rescale intercept"),
    "unsigned": (lambda hu: np.clip(hu + 1024, 0, 4095).astype(np.uint16), "rescale intercept"),
    "intercept missing, padded by -2000": (
        lambda hu: np.pad(hu + 1024, 9, constant_values=-2000),
        "intercept",
    ),
    "intercept applied twice": (lambda hu: hu - 1024, "applied twice"),
    "shifted by 300": (lambda hu: hu + 300, "scaled or shifted"),
    "0 to 1": (lambda hu: scaled(hu, 0, 1), "scaled or windowed"),
    "-1 to 1": (lambda hu: scaled(hu, -1, 1), "scaled or windowed"),
    "z-scores": (lambda hu: (hu - hu.mean()) / hu.std(), "scaled or windowed"),
    "8 bits": (lambda hu: np.rint(scaled(hu.clip(-160, 240), 0, 255)).astype(np.uint8), "scaled or windowed"),
    "0 to 1000": (lambda hu: scaled(hu, 0, 1000), "nothing below 0"),
    "0 to 65535": (lambda hu: scaled(hu, 0, 65535), "nothing below 0"),
    "clipped at 0": (lambda hu: hu.clip(0), "nothing below 0"),
    "brain window": (lambda hu: hu.clip(0, 80), "scaled or windowed"),
    "attenuation": (lambda hu: 0.02 * (1 + hu / 1000), "scaled or windowed"),
    "labels": (lambda hu: (hu > -300).astype(np.int16) + 2 * (hu > 200), "label image"),
    "many labels": (lambda hu: np.rint(scaled(hu, 0, 50)), "label image"),
    "a mask": (lambda hu: (hu > 0).astype(np.uint8), "label image"),
}


@pytest.mark.parametrize("case", NO_CT)
def test_what_is_no_ct_in_hounsfield_units_is_refused(case):
    change, words = NO_CT[case]
    with pytest.raises(DataError, match=words) as error:
        hounsfield(volume(change(patient())))
    one_line(error.value)
    assert str(error.value).startswith("exam: ")


def test_nobody_is_told_to_subtract_from_what_may_be_an_mr():
    ct = volume(patient() + 1024)
    with pytest.raises(KindError, match="not applied; subtract 1024$"):
        hounsfield(replace(ct, modality="CT"))
    with pytest.raises(
        KindError, match=r"MR is for models of --preset mr.* if it is a CT, .* only then"
    ) as error:
        hounsfield(ct)
    one_line(error.value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_a_ct_is_the_same_object(seed, dtype):
    ct = volume(patient(seed).astype(dtype))
    assert hounsfield(ct) == (ct, [])
    # Neither do padding below air, a narrow field of view, and metal change anything.
    for array in (np.pad(ct.array, 5, constant_values=-3024), np.where(ct.array > 400, 3071, ct.array)):
        assert hounsfield(volume(array))[1] == []


@pytest.mark.parametrize("value", [0, -500, 100, 3071, -700])
def test_padding_is_read_as_air(value):
    hu = patient()
    padded = np.pad(hu, 4, constant_values=value)
    found, (note,) = hounsfield(volume(padded))
    assert f"exactly {value}" in note
    # A voxel of the patient that has this value by chance and touches the padding is taken for padding.
    assert np.count_nonzero(found.array != np.pad(hu, 4, constant_values=-1024)) < 6
    assert padded.min() == hu.min() and padded[0, 0, 0] == value


def test_zeros_within_the_patient_stay_and_those_at_the_end_of_the_scan_go():
    hu = patient()
    hu[20, 30, 30:33] = 0
    found, (note,) = hounsfield(volume(shifted(hu)))
    assert "exactly 0" in note and (found.array[14, 30, 30:33] == 0).all()
    assert (found.array[-6:] == -1024).all()
    assert np.count_nonzero(found.array[:-6] != hu[6:]) < 6


def test_corners_that_simpleitk_fills_with_zeros_are_read_as_air():
    image = sitk.GetImageFromArray(patient())
    turn = sitk.Euler3DTransform()
    turn.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    turn.SetRotation(0, 0, np.deg2rad(20))
    zero = sitk.GetArrayFromImage(sitk.Resample(image, turn, sitk.sitkLinear, 0.0))
    air = sitk.GetArrayFromImage(sitk.Resample(image, turn, sitk.sitkLinear, -1024.0))
    found, notes = hounsfield(volume(zero))
    assert len(notes) == 1
    assert (found.array == air).mean() > 0.999


@pytest.mark.parametrize(("low", "high"), [(-200, 200), (-160, 240), (-250, 3000)])
def test_a_clipped_ct_gets_its_air_back_and_a_line(low, high):
    hu = patient()
    found, notes = hounsfield(volume(hu.clip(low, high)))
    assert f"exactly {low}" in notes[0] and len(notes) == (2 if high < 400 else 1)
    np.testing.assert_array_equal(found.array, np.where(hu <= low, -1024, hu.clip(low, high)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: np.where(hu < -140, -600 + hu / 50, hu), "no air near -1000"),
        (lambda hu: hu * 2, "air lies near"),
        (lambda hu: hu - 150, "its median is -1"),
    ],
)
def test_what_may_be_a_ct_is_used_with_a_line(change, words):
    array = change(patient())
    found, notes = hounsfield(volume(array))
    assert any(words in note for note in notes)
    assert found.array is array


@pytest.mark.parametrize(
    "array", [np.full((4, 4, 4), -5.0), np.zeros((3, 3, 3), bool), np.full((3, 3, 3), np.nan)]
)
def test_arrays_that_are_no_image(array):
    with pytest.raises(DataError) as error:
        hounsfield(volume(array))
    one_line(error.value)


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 40, 40), (300, 1, 7), (2, 2, 2)])
def test_any_shape(shape):
    array = np.random.default_rng(0).normal(-1000, 20, shape).astype(np.float32)
    array.flat[0] = 40
    assert hounsfield(volume(array))[0].array.shape == shape


REAL = [
    "trunk/head_C3N-04457",
    "trunk/abd_CRLM-CT-1004",
    "trunk/thorax_CIP-ct64",
    "openkbp/validation/pt_201",
]


@pytest.mark.parametrize("exam", REAL)
def test_real_exams_pass_and_their_spoilt_copies_do_not(exam):
    ct = read_volume(real(exam) / "ct.nii.gz")
    assert hounsfield(ct) == (ct, [])
    for change, _ in NO_CT.values():
        # What was padded at random or twice shifted has too little tissue in some real exams.
        if change is NO_CT["intercept applied twice"][0]:
            continue
        array = change(ct.array)
        with pytest.raises(DataError):
            hounsfield(Volume(array, Grid(array.shape, ct.grid.affine)))
    padded = replace(ct, array=shifted(ct.array))
    found, (note,) = hounsfield(padded)
    assert "exactly 0" in note and (found.array[-6:] == -1024).all()
