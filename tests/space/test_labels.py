"""Label images with overlaps: however they are cut, turned and resampled, every mask is whole, as if it was alone."""

from __future__ import annotations

import numpy as np
import pytest

from deepatlas.localize.segment import Segmentation
from deepatlas.model.fit import Fit
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels, stacked
from deepatlas.space.preprocess import labels_to_grid, pool_drawn, pool_labels
from deepatlas.space.volume import Volume

SHAPE = (12, 10, 14)


@pytest.fixture(params=range(3))
def drawn(request):
    """Random boxes that overlap, as masks by their ids, and the labels that were painted of them."""
    rng = np.random.default_rng(request.param)
    masks = {}
    for identity in (3, 1, 300, 7):
        low = [int(rng.integers(0, n - 3)) for n in SHAPE]
        mask = np.zeros(SHAPE, dtype=bool)
        mask[tuple(slice(a, int(rng.integers(a + 2, n + 1))) for a, n in zip(low, SHAPE, strict=True))] = True
        masks[identity] = mask & (rng.random(SHAPE) < 0.8)
    affine = np.diag([1.5, -2.0, 3.0, 1.0])
    affine[:3, :3] = affine[:3, :3][:, rng.permutation(3)]
    affine[:3, 3] = rng.normal(size=3) * 40
    labels = Labels.painted(
        [(i, BoxMask.of(m)) for i, m in masks.items()], Grid(SHAPE, affine), np.uint16, "exam"
    )
    return masks, labels


def test_every_mask_is_whole_and_the_last_one_is_on_top(drawn):
    masks, labels = drawn
    image = np.zeros(SHAPE, dtype=int)
    for identity, mask in masks.items():
        image[mask] = identity
        np.testing.assert_array_equal(labels.mask(identity), mask)
    np.testing.assert_array_equal(labels.array, image)
    assert labels.array.dtype == np.uint16 and 7 not in labels.hidden and labels.ids() == set(masks)
    assert not labels.mask(55).any()


def test_the_box_of_a_structure_holds_its_whole_mask(drawn):
    masks, labels = drawn
    assert list(labels.boxes()) == sorted(masks)
    for identity, box in labels.boxes().items():
        where = np.argwhere(masks[identity])
        assert [(s.start, s.stop) for s in box] == list(zip(where.min(0), where.max(0) + 1, strict=True))
        np.testing.assert_array_equal(labels.mask_in(identity, box), masks[identity][box])
    nothing = Labels(np.zeros(SHAPE, np.int32), labels.grid)
    assert nothing.boxes() == {} and nothing.ids() == set()


def test_turned_cropped_and_subsampled(drawn):
    masks, labels = drawn
    for identity, mask in masks.items():
        whole = Volume(mask, labels.grid)
        found = labels.canonical()
        np.testing.assert_array_equal(found.mask(identity), whole.canonical().array)
        assert found.grid == whole.canonical().grid and found.name == "exam"
        box = (2, 3, 1), (7, 5, 12)
        found = labels.cropped(*box)
        np.testing.assert_array_equal(found.mask(identity), mask[2:9, 3:8, 1:13])
        expected = whole.cropped(*box).canonical().array
        np.testing.assert_array_equal(found.canonical().mask(identity), expected)
        found = labels.subsampled((2, 1, 3))
        np.testing.assert_array_equal(found.mask(identity), mask[::2, :, ::3])
        np.testing.assert_allclose(
            found.grid.voxel_to_world((1, 1, 1)), labels.grid.voxel_to_world((3, 1, 2))
        )


def test_resampled_as_each_mask_alone(drawn):
    masks, labels = drawn
    affine = labels.grid.affine @ np.diag([0.7, 1.3, 0.9, 1.0])
    target = Grid((16, 16, 16), affine)
    found = labels_to_grid(labels, target)
    for identity, mask in masks.items():
        alone = labels_to_grid(Volume(mask.astype(np.uint8), labels.grid), target)
        np.testing.assert_array_equal(found.mask(identity), alone.array.astype(bool))


def test_more_overlapping_structures_than_are_resampled_at_once():
    whole = np.ones((6, 6, 6), dtype=bool)
    layers = [(i, BoxMask.of(whole & (np.arange(6) < i % 6 + 1))) for i in range(1, 40)]
    labels = Labels.painted(layers, Grid.from_spacing((6, 6, 6)), np.uint8)
    found = labels_to_grid(labels, labels.grid)
    assert len(labels.hidden) > 32
    for identity, mask in layers:
        np.testing.assert_array_equal(found.mask(identity)[mask.box], mask.array())
        assert found.mask(identity).sum() == mask.count()


def test_pooled_masks_are_those_of_each_structure_alone(drawn):
    masks, labels = drawn
    pooled = pool_drawn(labels, 2)
    np.testing.assert_array_equal(pooled.array, pool_labels(labels.array, 2))
    for identity in labels.hidden:
        alone = pool_labels(masks[identity].astype(np.uint8), 2).astype(bool)
        # Where the label image shows the structure, it has the most of the block's voxels, though perhaps not half.
        np.testing.assert_array_equal(pooled.mask(identity), alone | (pooled.array == identity))


def test_what_two_structures_share(drawn):
    masks, labels = drawn
    shared = {frozenset(pair): (pair, count) for pair, count in labels.shared().items()}
    ids = list(masks)
    for place, a in enumerate(ids):
        for b in ids[place + 1 :]:
            count = int((masks[a] & masks[b]).sum())
            if not count:
                assert frozenset((a, b)) not in shared
                continue
            pair, found = shared[frozenset((a, b))]
            assert found == count
            if ((labels.array == b) & masks[a]).any():
                assert pair == (a, b)


def test_empty_masks_and_unions():
    empty = BoxMask.of(np.zeros((3, 4, 5), dtype=bool))
    assert empty.count() == 0 and empty.shape == (0, 0, 0)
    a, b = np.zeros((2, 4, 5, 6), dtype=bool)
    a[1, 2, 3] = b[3, 4, 5] = b[1, 2, 3] = True
    joined = BoxMask.union([BoxMask.of(a), BoxMask.of(b)])
    whole = np.zeros_like(a)
    whole[joined.box] = joined.array()
    np.testing.assert_array_equal(whole, a | b)
    assert joined.count() == 2 and BoxMask.of(a).within((2, 0, 0), (2, 5, 6)) is None


def test_the_order_of_painting():
    sizes = {"lung": 900, "ptv_60": 500, "CTV": 400, "gtv": 30, "body": 10, "heart": 300, "aorta": 300}
    assert stacked(sizes, ["body"]) == ["body", "ptv_60", "CTV", "lung", "heart", "aorta", "gtv"]


def test_what_a_segmentation_knows_besides_stays_with_it(drawn):
    _, labels = drawn
    found = Segmentation(labels.array, labels.grid, "exam", labels.hidden, Fit(0.5, 0.4))
    for part in (found.canonical(), found.cropped((1, 1, 1), (6, 6, 6)), found.subsampled((2, 2, 2))):
        assert isinstance(part, Segmentation) and part.fit.value == 0.5 and part.name == "exam"
