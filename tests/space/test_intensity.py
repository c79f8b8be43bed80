"""Images without a unit on one scale, and where they show the patient; the oracles are scipy and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage, stats
from small_exams import body, oblique, one_line

from deepatlas.config import Config
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.space.check_input import check_input
from deepatlas.space.grid import Grid
from deepatlas.space.intensity import in_view, to_scale
from deepatlas.space.preprocess import foreground_box, foreground_mask, normalize, to_model_grid
from deepatlas.space.volume import Volume


def crop(seed: int = 0, shape=(36, 50, 34)) -> np.ndarray:
    """A crop from within a head: smooth tissue with dark fluid in a corner, and noise."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=shape), 4)
    image = 500 + 120 * image / image.std()
    image[:10, :12, :10] = 60
    return (ndimage.gaussian_filter(image, 1) + rng.normal(0, 8, shape)).clip(1).astype(np.float32)


def head(seed: int = 0, shape=(40, 56, 48)) -> tuple[np.ndarray, np.ndarray]:
    """A head in noisy air, of low values, and where it is; its ventricle is as dark as the air."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = (x / 0.7) ** 2 + (y / 0.75) ** 2 + (z / 0.8) ** 2
    image = np.where(radius < 1, 800 + 300 * np.sin(9 * x) * np.cos(7 * y), 0.0)
    image[radius < 0.03] = 0
    return np.abs(image + rng.normal(0, 12, shape)).astype(np.float32), radius < 1


def volume(array: np.ndarray, spacing=(1.0, 1.0, 1.0), **more) -> Volume:
    return Volume(array, Grid.from_spacing(array.shape, spacing), "exam", **more)


def test_percentiles_and_deviations_reach_the_ends_of_the_window():
    image = crop()
    scaled = to_scale(volume(image), "percentile").array
    low, high = stats.scoreatpercentile(image, [1, 99])
    np.testing.assert_allclose(scaled, np.interp(image, [low, high], [-256, 256]), atol=1e-2)
    scaled = to_scale(volume(image), "zscore").array
    z = stats.zscore(image.astype(np.float64), axis=None)
    np.testing.assert_allclose(scaled, np.clip(z / 2.5, -1, 1) * 256, atol=1e-2)


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_neither_scale_nor_offset_of_the_values_matters(kind, dtype):
    image = np.rint(crop()).astype(dtype)
    expected = to_scale(volume(image), kind).array
    for factor, offset in ((1900, 0), (3, 7_000)):
        found = to_scale(volume(image * dtype(factor) + dtype(offset)), kind).array
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_crop_from_within_the_body_is_foreground_everywhere():
    small = to_model_grid(to_scale(volume(crop()), "percentile"), 64, None, "percentile")
    assert foreground_mask(small.array, "percentile").all()
    assert foreground_box(small, "percentile") == ((0, 0, 0), (64, 64, 64))


def test_air_around_a_head_is_no_foreground_and_no_part_of_the_percentiles():
    image, inside = head()
    scaled = to_scale(volume(image), "percentile")
    mask = foreground_mask(scaled.array, "percentile")
    # SimpleITK finds the head by Otsu's threshold, its largest region and hole filling.
    otsu = sitk.OtsuThreshold(sitk.GetImageFromArray(ndimage.gaussian_filter(image, 0.7)), 0, 1)
    region = sitk.RelabelComponent(sitk.ConnectedComponent(otsu), sortByObjectSize=True) == 1
    theirs = sitk.GetArrayFromImage(sitk.BinaryFillhole(region)).astype(bool)
    assert 2 * (mask & inside).sum() / (mask.sum() + inside.sum()) > 0.95
    assert 2 * (mask & theirs).sum() / (mask.sum() + theirs.sum()) > 0.95
    assert mask[image.shape[0] // 2, image.shape[1] // 2, image.shape[2] // 2], "the ventricle is inside"
    # More air around the head changes nothing: 3.5 times as many voxels, and the values of tissue move by 1 %.
    noise = np.abs(np.random.default_rng(1).normal(0, 12, (60, 84, 74))).astype(np.float32)
    noise[10:50, 14:70, 13:61] = image
    more = to_scale(volume(noise), "percentile").array[10:50, 14:70, 13:61]
    np.testing.assert_allclose(more[inside], scaled.array[inside], atol=5)
    assert np.percentile(scaled.array[inside], 99) == pytest.approx(256, abs=5)


def test_the_box_around_a_head_holds_it_with_a_small_margin():
    image, inside = head()
    scaled = to_scale(volume(image, (4.0, 4.0, 4.0)), "percentile")
    (start, shape), found = foreground_box(scaled, "percentile"), ndimage.find_objects(inside.astype(int))[0]
    for first, length, own in zip(start, shape, found, strict=True):
        assert own.start - 3 <= first <= own.start and own.stop <= first + length <= own.stop + 3
    cropped = to_model_grid(scaled, 64, "foreground", "percentile")
    assert cropped.array.shape == (64, 64, 64) and cropped.grid.extent[0] < scaled.grid.extent[0]


def test_constant_padding_is_outside_the_field_of_view():
    image = crop()
    padded = np.zeros((44, 60, 40), np.float32)
    padded[4:40, 5:55, 3:37] = image
    scaled = to_scale(volume(padded), "percentile").array
    inside = np.zeros(padded.shape, bool)
    inside[4:40, 5:55, 3:37] = True
    assert (in_view(scaled) == inside).all()
    assert (foreground_mask(scaled, "percentile") == inside).all()
    np.testing.assert_allclose(scaled[inside], to_scale(volume(image), "percentile").array.ravel(), atol=0.05)


def test_what_an_oblique_exam_does_not_show_is_no_foreground():
    rng = np.random.default_rng(3)
    grid = oblique(rng, (40, 40, 40), angle=0.5)
    exam = Volume(crop(shape=(40, 40, 40)), grid, "oblique")
    small = to_model_grid(to_scale(exam, "percentile"), 64, None, "percentile")
    mask = foreground_mask(small.array, "percentile")
    # Of every voxel of the network, the place in the exam.
    index = np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij"), -1)[..., ::-1].reshape(-1, 3)
    place = grid.world_to_voxel(small.grid.voxel_to_world(index)).reshape(64, 64, 64, 3)
    shown = ((place >= -0.5) & (place <= 39.5)).all(-1)
    assert not mask.all() and 2 * (mask & shown).sum() / (mask.sum() + shown.sum()) > 0.97


def test_the_scale_becomes_the_input_of_the_network():
    import torch

    scaled = to_scale(volume(crop()), "percentile").array
    x = normalize(torch.from_numpy(scaled))
    assert x.min() == 0 and x.max() == 1 and 0.3 < x.mean() < 0.8


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((8, 8, 8), 3.0), "every voxel is 3"),
        (np.where(np.arange(512).reshape(8, 8, 8) == 5, np.nan, 1.0), "NaN or infinite"),
        (np.arange(512).reshape(8, 8, 8) % 3, "holds 3 different values, as a label image"),
        (np.arange(512).reshape(8, 8, 8).astype(complex), "voxels of type complex128"),
    ],
)
@pytest.mark.parametrize("kind", ["percentile", "zscore"])
def test_what_is_no_image_is_refused_in_one_line(array, words, kind):
    with pytest.raises(DataError) as error:
        check_input(volume(array), kind)
    assert words in one_line(error.value) and "exam" in str(error.value)


def test_an_mr_for_a_model_of_ct_is_refused_and_a_ct_for_one_of_mr_noted():
    ct, _ = body()
    with pytest.raises(DataError, match="is an MR, where a CT in Hounsfield units is expected"):
        check_input(volume(crop(), modality="MR"))
    assert check_input(volume(crop(), modality="MR"), "percentile")[1] == []
    # By its histogram.
    (note,) = check_input(ct, "percentile")[1]
    assert "is a CT, where images of data.intensity=percentile are expected" in note
    # By its name.
    (note,) = check_input(volume(crop(), modality="CT"), "zscore")[1]
    assert "is a CT" in note


def test_the_middle_of_a_patient_is_found_in_ct_alone():
    with pytest.raises(DeepAtlasError, match="setting data.crop must be null or foreground"):
        Config().override(["data.intensity=zscore", "data.crop=midline"]).validate()
    with pytest.raises(DeepAtlasError, match="setting data.intensity must be hu, percentile or zscore"):
        Config().override(["data.intensity=suv"]).validate()
