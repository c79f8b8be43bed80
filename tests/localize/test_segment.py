"""Template and segmentation together: the masks of one exam are found again in it and in other exams."""

from __future__ import annotations

import numpy as np
import pytest
from affine_model import ANATOMY, GRIDS, LABELS, AffineModel, exam
from scipy import ndimage

from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.localize.segment import segment
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import Template
from deepatlas.space.preprocess import to_model_grid
from deepatlas.space.volume import Volume


def labelled(model, ct, seg, **rest) -> LabelledExam:
    found = model.map_exam(ct)
    return LabelledExam(found.field, seg, **rest)


def scores(seg: Volume, found: Volume) -> dict[str, float]:
    return {n: dice(seg.array == i, found.array == i) for n, i in LABELS.items()}


@pytest.fixture(scope="module")
def plain():
    """The model, and the template of the plain exam."""
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
def test_a_template_finds_the_same_place_on_any_other_grid(plain, name):
    model, template = plain
    ct, seg = exam(GRIDS[name])
    found = segment(model, ct, template)
    # The label voxels have 2 to 4 mm and the structures 22 to 44 mm, so that rounding to voxels costs a few per cent.
    assert min(scores(seg, found).values()) > 0.93
    for identity, centre, _ in ANATOMY.values():
        z, y, x = np.nonzero(found.array == identity)
        mm = found.grid.voxel_to_world(np.stack([x, y, z], axis=-1)).mean(0)
        # An axis that is mirrored, or shifted by half a voxel (1 mm or more), would be further off.
        assert np.abs(mm - centre).max() < 0.75


def test_a_cropped_model_finds_the_same_masks(plain):
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
    # A structure that is listed as drawn but has no voxel counts as absent there, which halves the mask.
    drawn = frozenset(LABELS)
    halved = estimate_template(
        [labelled(model, ct, seg), labelled(model, ct, partly, drawn=drawn)], {"spleen": 2}, 64
    )
    inner = alone.masks[0] > 0.95
    np.testing.assert_allclose(halved.masks[0][inner], alone.masks[0][inner] / 2, atol=0.02)


def test_conflicting_exams_are_averaged_by_their_weights():
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
    # The rim that only one of the two exams holds.
    assert np.sum(np.abs(levels - 0.5) < 0.1) > 100


def test_large_label_images_are_subsampled_without_a_shift(monkeypatch):
    monkeypatch.setattr("deepatlas.localize.template.estimate.MAX_LABEL_SIZE", 40)
    model, (ct, seg) = AffineModel(), exam(GRIDS["sagittal"])
    item = labelled(model, ct, seg)
    assert max(item.labels.grid.shape) <= 40 < max(seg.grid.shape)
    found = segment(model, ct, estimate_template([item], LABELS, 64))
    # The voxels have 3.2 x 4.2 x 6 mm, and the smallest radius is 11 mm.
    assert min(scores(seg, found).values()) > 0.8
    for identity, centre, _ in ANATOMY.values():
        z, y, x = np.nonzero(found.array == identity)
        assert np.abs(found.grid.voxel_to_world(np.stack([x, y, z], -1)).mean(0) - centre).max() < 1.0


def test_wrong_arguments_are_refused(plain):
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


def test_the_larger_mask_wins_and_ids_above_255_are_kept():
    model, grid = AffineModel(16), GRIDS["plain"]
    ct = Volume(np.full(grid.shape, 20.0), grid)
    masks = np.zeros((2, 16, 16, 16), np.float32)
    masks[0], masks[1] = 0.6, 0.6
    masks[1, :, :, 8:] = 0.8
    found = segment(model, ct, Template(masks, ("a", "b"), (3, 700), {}))
    assert found.array.dtype == np.uint16 and set(np.unique(found.array)) == {3, 700}
    right = found.grid.voxel_to_world([(found.grid.shape[2] - 1, 0, 0)])[0][0]
    assert right > 0 and found.array[0, 0, -1] == 700 and found.array[0, 0, 0] == 3


def test_each_structure_has_its_own_threshold_unless_one_is_given():
    model, grid = AffineModel(16), GRIDS["plain"]
    ct = Volume(np.full(grid.shape, 20.0), grid)
    step = np.linspace(0, 1, 16, dtype=np.float32)
    masks = np.stack([np.broadcast_to(m, (16, 16, 16)) for m in (0.7 * step, np.float32(step > 0.75))])
    template = Template(masks, ("wide", "narrow"), (1, 2))
    assert template.thresholds[0] < 0.5 == template.thresholds[1]
    halves = segment(model, ct, template.select(["wide"]), threshold=0.5).array
    assert (segment(model, ct, template.select(["wide"])).array > 0).sum() > (halves > 0).sum() > 0
    # Where both masks reach their thresholds, the one that is further above its own wins.
    found = segment(model, ct, template).array[0, 0]
    assert list(dict.fromkeys(found[found > 0].tolist())) == [1, 2]


@pytest.mark.parametrize("name", ["plain", "oblique", "sagittal"])
def test_labels_outside_the_body_are_clipped(name):
    ct, _ = exam(GRIDS[name])
    found = segment(AffineModel(32), ct, Template(np.ones((1, 16, 16, 16), np.float32), ("a",), (1,), {}))
    body = ct.array > -500
    assert found.array[body].all()
    # The foreground reaches a part of a model voxel into the air, and neighbours across a corner may keep the label.
    reach = 3 * max(to_model_grid(ct, 32).grid.spacing)
    far = ndimage.distance_transform_edt(~body, sampling=ct.grid.spacing[::-1]) > reach
    assert far.any() and not found.array[far].any()


def test_a_segmentation_says_whether_the_model_knows_the_exam():
    model, (ct, seg) = AffineModel(), exam(GRIDS["plain"])
    template = estimate_template([labelled(model, ct, seg)], LABELS, 32)
    assert segment(model, ct, template).fit.to_dict() == {"fit": 1.0, "known": None, "notes": []}
    model.fit_threshold = 1.5
    fit = segment(model, ct, template).fit
    assert fit.known is False and "does not know such an exam" in fit.warning("exam")
    model.fit_threshold = 0.5
    fit = segment(model, ct, template).fit
    assert fit.known is True and fit.warning("exam") == ""
