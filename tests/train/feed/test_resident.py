from __future__ import annotations

import pytest
import torch
from small_exams import write_cohort

from deepatlas.exams.build_store import prepare_cohort
from deepatlas.exams.read import read_volume
from deepatlas.space.affine import affine_coords
from deepatlas.space.preprocess import normalize, to_model_grid
from deepatlas.train.feed.augment import Augmentation
from deepatlas.train.feed.resident import TrainingArray


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = write_cohort(tmp_path_factory.mktemp("cohort") / "data")
    return root, prepare_cohort(root, root.parent / "store.h5", progress=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_holds_what_preprocessing_to_that_size_gives(prepared, size):
    root, store = prepared
    array = TrainingArray(store, size)
    assert array.volumes.shape == array.masks.shape == (3, 1, size, size, size) and len(array) == 3
    assert array.volumes.dtype == torch.float16 and array.masks.dtype == torch.uint8
    expected = normalize(torch.from_numpy(to_model_grid(read_volume(root / "e2" / "ct.nii.gz"), size).array))
    # Half a Hounsfield unit of rounding in the store, and that of float16.
    torch.testing.assert_close(array.volumes[1, 0].float(), expected, atol=2e-3, rtol=0)
    assert 0.2 < array.masks.float().mean() < 0.8


def test_batch_without_augmentation(prepared):
    array = TrainingArray(prepared[1], 16)
    x, mask, theta = array.batch([2, 0], augment=False)
    assert x.dtype == mask.dtype == theta.dtype == torch.float32
    assert torch.equal(x, array.volumes[[2, 0]].float()) and torch.equal(mask, array.masks[[2, 0]].float())
    assert torch.equal(theta, torch.eye(3, 4).expand(2, 3, 4))


def test_batch_follows_its_theta(prepared):
    array = TrainingArray(prepared[1], 32)
    x, mask, theta = array.batch([0, 1, 1], generator(3))
    assert x.shape == mask.shape == (3, 1, 32, 32, 32) and theta.shape == (3, 3, 4)
    assert not torch.equal(theta[1], theta[2])
    coords = affine_coords(theta, 32)
    source = array.volumes[[0, 1, 1]].float()
    expected = torch.nn.functional.grid_sample(source, coords.permute(0, 2, 3, 4, 1), align_corners=True)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)
    outside = (coords.abs() > 1.1).any(dim=1, keepdim=True)
    assert outside.any() and not x[outside].any() and not mask[outside].any()
    assert set(mask.unique().tolist()) == {0.0, 1.0} and 0 <= x.min() and x.max() < 1 + 1e-6


def test_batch_is_decided_by_the_generator(prepared):
    array = TrainingArray(prepared[1], 16)
    first = array.batch([0, 1], generator(5))
    again = array.batch(torch.tensor([0, 1]), generator(5))
    other = array.batch([0, 1], generator(6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    still = array.batch([0], generator(), scale=(1, 1), rotation=0.0, translation=0.0)
    torch.testing.assert_close(still[0], array.volumes[:1].float(), atol=1e-5, rtol=0)


def test_chosen_exams_and_wrong_size(prepared):
    array = TrainingArray(prepared[1], 16, exams=[2, 0])
    assert array.ids == ["e3", "e1"]
    assert torch.equal(array.volumes[1], TrainingArray(prepared[1], 16).volumes[0])
    with pytest.raises(ValueError, match="size must be one of"):
        TrainingArray(prepared[1], 48)


def test_elastic_batches_bend_image_and_mask_alike(prepared):
    array = TrainingArray(prepared[1], 32)
    still = dict(scale=(1, 1), rotation=0, translation=0)
    x, mask, theta = array.batch([0, 1], generator(3), elastic=0.1, **still)
    assert torch.equal(theta, torch.eye(3, 4).expand(2, 3, 4))
    coords = Augmentation.draw(2, generator(3), elastic=0.1, **still).coords(32, "cpu")
    for found, source, mode in ((x, array.volumes, "bilinear"), (mask, array.masks, "nearest")):
        expected = torch.nn.functional.grid_sample(
            source[[0, 1]].float(), coords.permute(0, 2, 3, 4, 1), mode=mode, align_corners=True
        )
        # The nearest voxel may differ where two are equally near.
        assert (found - expected).abs().gt(1e-4).float().mean() < 1e-3
    assert not torch.allclose(x, array.volumes[[0, 1]].float(), atol=0.1)
