"""Template and segmentation together: masks of one exam found again in it and in others."""

from __future__ import annotations

import numpy as np
import pytest
from affine_model import ANATOMY, GRIDS, LABELS, AffineModel, exam

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.localize import LabelledExam, Template, estimate_template, segment
from deepatlas.space.volume import Volume


def labelled(model, ct, seg, **rest) -> LabelledExam:
    coords, grid, _ = model.coordinates_on_model_grid(ct)
    return LabelledExam(coords, grid, seg, **rest)


def scores(seg: Volume, found: Volume) -> dict[str, float]:
    return {n: dice(seg.array == i, found.array == i) for n, i in LABELS.items()}


@pytest.fixture(scope="module")
def plain():
    """Model and template of the plain exam."""
    model, (ct, seg) = AffineModel(), exam(GRIDS["plain"])
    return model, estimate_template(
        [labelled(model, ct, seg)], LABELS, 128, meta={"model": model.fingerprint}
    )


@pytest.mark.parametrize("name", GRIDS)
def test_a_template_finds_its_own_exam_again(name):
    model, (ct, seg) = AffineModel(), exam(GRIDS[name])
    found = segment(model, ct, estimate_template([labelled(model, ct, seg)], LABELS, 128))
    assert found.grid is ct.grid and found.array.dtype == np.uint8
    assert min(scores(seg, found).values()) > 0.97


@pytest.mark.parametrize("name", [n for n in GRIDS if n != "plain"])
def test_it_finds_the_same_place_on_any_other_grid(plain, name):
    model, template = plain
    ct, seg = exam(GRIDS[name])
    found = segment(model, ct, template)
    # Label voxels of 2-4 mm on structures of 22-44 mm: their steps alone cost a few per cent.
    assert min(scores(seg, found).values()) > 0.93
    for identity, centre, _ in ANATOMY.values():
        z, y, x = np.nonzero(found.array == identity)
        mm = found.grid.voxel_to_world(np.stack([x, y, z], axis=-1)).mean(0)
        assert (
            np.abs(mm - centre).max() < 0.75
        )  # a mirrored or half-voxel-shifted axis (1 mm and more) is further off


def test_cropped_models_leave_the_background_alone(plain):
    _, template = plain
    model, (ct, seg) = AffineModel(crop="foreground"), exam(GRIDS["plain"])
    found = segment(model, ct, template)
    assert min(scores(seg, found).values()) > 0.97


def test_exams_in_which_a_structure_was_not_drawn_do_not_dilute_it():
    model, (ct, seg) = AffineModel(), exam(GRIDS["coarse"])
    partly = Volume(np.where(seg.array == LABELS["spleen"], 0, seg.array), seg.grid, "partly")
    both = estimate_template([labelled(model, ct, seg), labelled(model, ct, partly)], LABELS, 64)
    assert both.meta["structures"]["spleen"]["exams"] == ["exam"]
    assert both.meta["structures"]["liver"]["exams"] == ["exam", "partly"]
    alone = estimate_template([labelled(model, ct, seg)], {"spleen": 2}, 64)
    np.testing.assert_allclose(both.masks[both.names.index("spleen")], alone.masks[0], atol=1e-6)
    # Said to be drawn and empty: now it counts as absent there, and the mask halves.
    drawn = frozenset(LABELS)
    halved = estimate_template(
        [labelled(model, ct, seg), labelled(model, ct, partly, drawn=drawn)], {"spleen": 2}, 64
    )
    inner = alone.masks[0] > 0.95
    np.testing.assert_allclose(halved.masks[0][inner], alone.masks[0][inner] / 2, atol=0.02)


def test_two_conflicting_exams_average_and_weights_decide():
    model, (ct, seg) = AffineModel(), exam(GRIDS["coarse"])
    moved = Volume(np.roll(seg.array, 2, axis=2), seg.grid, "moved")
    zero, one = np.zeros(seg.grid.shape, np.float32), np.ones(seg.grid.shape, np.float32)
    weighted = estimate_template(
        [labelled(model, ct, seg, weights=one), labelled(model, ct, moved, weights=zero)], LABELS, 64
    )
    alone = estimate_template([labelled(model, ct, seg)], LABELS, 64)
    for row in range(len(LABELS)):
        assert dice(alone.masks[row] > 0.5, weighted.masks[row] > 0.5) > 0.995
    even = estimate_template([labelled(model, ct, seg), labelled(model, ct, moved)], LABELS, 64)
    levels = even.masks[even.names.index("liver")]
    assert np.sum(np.abs(levels - 0.5) < 0.1) > 100  # the rim that only one of them holds


def test_large_label_images_are_thinned_without_a_shift(monkeypatch):
    monkeypatch.setattr("deepatlas.localize.template.estimate.MAX_LABEL_SIZE", 40)
    model, (ct, seg) = AffineModel(), exam(GRIDS["sagittal"])
    item = labelled(model, ct, seg)
    assert max(item.labels.grid.shape) <= 40 < max(seg.grid.shape)
    found = segment(model, ct, estimate_template([item], LABELS, 64))
    assert min(scores(seg, found).values()) > 0.8  # voxels of 3.2 x 4.2 x 6 mm on radii from 11 mm
    for identity, centre, _ in ANATOMY.values():
        z, y, x = np.nonzero(found.array == identity)
        assert np.abs(found.grid.voxel_to_world(np.stack([x, y, z], -1)).mean(0) - centre).max() < 1.0


def test_bad_requests_are_one_clear_line(plain):
    model, template = plain
    ct, seg = exam(GRIDS["plain"])
    with pytest.raises(DeepAtlasError, match=r"threshold must be in \(0, 1\], got 0"):
        segment(model, ct, template, threshold=0)
    other = AffineModel()
    other.fingerprint = "another"
    with pytest.raises(DeepAtlasError, match="made for the model affine-model, but this model is another"):
        segment(other, ct, template)
    with pytest.raises(DataError, match="no exam holds a label of kidney"):
        estimate_template([labelled(model, ct, seg)], {"kidney": 77})
    with pytest.raises(DeepAtlasError, match="weights must have the labels' shape"):
        labelled(model, ct, seg, weights=np.ones((2, 2, 2)))


def test_the_larger_mask_wins_and_ids_above_255_fit():
    model, (ct, _) = AffineModel(16), exam(GRIDS["plain"])
    masks = np.zeros((2, 16, 16, 16), np.float32)
    masks[0], masks[1] = 0.6, 0.6
    masks[1, :, :, 8:] = 0.8
    found = segment(model, ct, Template(masks, ("a", "b"), (3, 700), {}))
    assert found.array.dtype == np.uint16 and set(np.unique(found.array)) == {3, 700}
    right = found.grid.voxel_to_world([(found.grid.shape[2] - 1, 0, 0)])[0][0]
    assert right > 0 and found.array[0, 0, -1] == 700 and found.array[0, 0, 0] == 3


def test_each_structure_is_cut_at_its_own_value_unless_one_is_asked_for():
    model, (ct, _) = AffineModel(16), exam(GRIDS["plain"])
    step = np.linspace(0, 1, 16, dtype=np.float32)
    masks = np.stack([np.broadcast_to(m, (16, 16, 16)) for m in (0.7 * step, np.float32(step > 0.75))])
    template = Template(masks, ("wide", "narrow"), (1, 2))
    assert template.thresholds[0] < 0.5 == template.thresholds[1]
    halves = segment(model, ct, template.select(["wide"]), threshold=0.5).array
    assert (segment(model, ct, template.select(["wide"])).array > 0).sum() > (halves > 0).sum() > 0
    # Where both reach theirs, the one that is further above it; the other where it alone reaches its own.
    found = segment(model, ct, template).array[0, 0]
    assert list(dict.fromkeys(found[found > 0].tolist())) == [1, 2]
