"""What structures look like: counted in examples, and of use where coordinates err."""

from __future__ import annotations

import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from affine_model import GRIDS, LABELS, AffineModel, anatomy_template, exam, grid_of
from scipy import ndimage, special

from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.localize.segment import segment
from deepatlas.localize.soft_masks import soft_masks
from deepatlas.localize.template.appearance import AROUND, ERROR_VOXELS, Appearance, Counts, blurred
from deepatlas.localize.template.edit import merge_templates, renamed
from deepatlas.localize.template.evidence import WEIGHT, posterior
from deepatlas.localize.template.examples import Example, template_of
from deepatlas.localize.template.file import Template, volume_keeping
from deepatlas.localize.template.soften import softened
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def noisy(grid, seed=0, name="exam"):
    ct, seg = exam(grid, name)
    noise = np.random.default_rng(seed).normal(0, 8, ct.array.shape).astype(np.float32)
    return Volume(np.where(ct.array > -500, ct.array + noise, ct.array), grid, name), seg


def err(places):
    """The error of a network: some millimetres, smooth, and another in every place."""
    bend = np.stack(
        [np.sin(places[..., 1] / 23), np.sin(places[..., 2] / 19), np.cos(places[..., 0] / 21)], axis=-1
    )
    return places + 4.0 * bend


@pytest.fixture(scope="module")
def template():
    ct, seg = noisy(GRIDS["plain"], seed=1, name="example")
    return template_of(AffineModel(32), Example(ct, seg, name="example"), LABELS, size=64)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 1.5, 4.0), (3.0, 3.5, 2.0)])
def test_fine_voxels_are_seen_as_coarser_ones_see_them(spacing):
    values = np.random.default_rng(0).normal(size=(11, 12, 13)).astype(np.float32)
    sigma = [np.sqrt(max(0.0, 3.0**2 - mm**2) / 12) / mm for mm in spacing]
    want = ndimage.gaussian_filter(values, [s if s > 0.3 else 0 for s in sigma], mode="nearest", truncate=6)
    found = blurred(torch.from_numpy(values), spacing, 3.0).numpy()
    # The kernel ends after 2.5 standard deviations.
    np.testing.assert_allclose(found, want, atol=0.03)


def test_what_speaks_for_a_structure_is_what_it_has_more_of_than_its_surroundings():
    ct, seg = noisy(grid_of(spacing=(3.0, 3.0, 3.0)))
    counts = Counts("hu", 64)
    counts.add(ct, Labels.of(seg), LABELS, (160.0, 160.0, 160.0))
    found = counts.appearance(LABELS)
    for row, (name, identity) in enumerate(LABELS.items()):
        mask = seg.array == identity
        near = ndimage.distance_transform_edt(~mask, sampling=3.0)
        around = (near > 0) & (near <= AROUND * ERROR_VOXELS * 160 * 2 / 63)
        edges = [*found.edges, np.inf]
        inside, outside = (np.histogram(ct.array[w], edges)[0] for w in (mask, around))
        np.testing.assert_allclose(counts.inside[name], inside)
        np.testing.assert_allclose(counts.around[name], outside)
        # 10 HU more for each number of its id, and the noise.
        at = np.digitize(60 + 10 * identity, found.edges) - 1
        assert found.log_odds[row, at] > 1 and found.log_odds[row, np.digitize(20, found.edges) - 1] < -1
    assert counts.exams == dict.fromkeys(LABELS, 1)


def test_a_structure_of_few_voxels_says_little_and_one_that_was_not_drawn_nothing():
    ct, seg = noisy(grid_of(spacing=(3.0, 3.0, 3.0)))
    few = seg.array.copy()
    z, y, x = np.argwhere(few == LABELS["liver"])[100]
    few[few == LABELS["liver"]] = 0
    few[z, y, x] = LABELS["liver"]
    counts = Counts("hu", 64)
    counts.add(ct, Labels(few, seg.grid), LABELS, (160.0, 160.0, 160.0))
    found = counts.appearance([*LABELS, "kidney"])
    assert np.abs(found.log_odds[list(LABELS).index("liver")]).max() < 0.8
    assert not found.log_odds[3].any()


def test_the_rule_of_bayes():
    generator = np.random.default_rng(0)
    prior = generator.uniform(0.11, 0.99, (2, 3, 4, 5))
    odds = generator.normal(0, 2, prior.shape)
    want = special.expit(special.logit(prior) + WEIGHT * odds)
    np.testing.assert_allclose(posterior(torch.from_numpy(prior), torch.from_numpy(odds)), want)
    assert not posterior(torch.zeros(3), torch.full((3,), 50.0)).any()
    # A certain prior can be overruled, and values a little beyond [0, 1] are no error.
    assert posterior(torch.tensor([1.02]), torch.tensor([-15.0])) < 0.2


def test_masks_of_few_examples_are_blurred_by_the_error_of_the_coordinates():
    masks = np.zeros((2, 33, 33, 33), np.float32)
    masks[:, 10:22, 10:22, 10:22] = 1
    found = softened(masks, ["a", "b"], {"a": 1, "b": 400}, 0.1)
    # A unit is 16 voxels.
    sigma = 0.1 * 16
    np.testing.assert_allclose(found[0], ndimage.gaussian_filter(masks[0], sigma, mode="nearest"), atol=1e-6)
    np.testing.assert_array_equal(found[1], masks[1])


def test_a_structure_that_is_small_against_the_error_does_not_vanish():
    masks = np.zeros((1, 33, 33, 33), np.float32)
    masks[:, 15:18, 15:18, 15:18] = 1
    (found,) = softened(masks, ["lens"], {"lens": 1}, 0.2)
    level = volume_keeping(found)
    assert level >= 0.35 and 0.5 < (found >= level).sum() / 27 < 1.5


@pytest.mark.parametrize("grid", GRIDS)
def test_the_image_mends_the_errors_of_the_coordinates(template, grid):
    ct, seg = noisy(GRIDS[grid], seed=2)
    model = AffineModel(32, maps={"exam": err})
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        found, shape = segment(model, ct, template), segment(model, ct, template.shape_only())
    for identity in LABELS.values():
        with_image, alone = (dice(s.mask(identity), seg.array == identity) for s in (found, shape))
        assert alone < 0.88 and with_image > alone + 0.05


def test_probabilities_and_labels_agree(template):
    ct, _ = noisy(GRIDS["anisotropic"], seed=3)
    found = segment(AffineModel(32, maps={"exam": err}), ct, template)
    for (name, mask), level in zip(
        soft_masks(found.found, template, ct.grid), template.thresholds, strict=True
    ):
        held = found.mask(LABELS[name])
        assert (mask[held] >= 255 * level - 1).all() and (mask[~held] < 255 * level + 1).mean() > 0.999


def test_what_looks_unlike_its_examples_is_drawn_by_its_mask_and_told(template):
    ct, _ = noisy(GRIDS["coarse"], seed=4)
    _, seg = exam(GRIDS["coarse"])
    # One of them looks as its surroundings do.
    values = np.where(seg.array == LABELS["spleen"], ct.array - 60, ct.array).astype(np.float32)
    model = AffineModel(32)
    with pytest.warns(DataWarning, match="spleen does not look as in the examples of the template"):
        found = segment(model, Volume(values, ct.grid, "exam"), template)
    shape = segment(model, ct, template.shape_only())
    # Its soft mask is the one by which it was drawn.
    masks = dict(found.soft_masks())
    level = 255 * template.thresholds[template.names.index("spleen")]
    held = found.mask(LABELS["spleen"])
    assert (masks["spleen"][held] >= level - 1).all() and (masks["spleen"][~held] < level + 1).mean() > 0.999
    # The neighbours keep theirs.
    both = found.mask(LABELS["spleen"]) ^ shape.mask(LABELS["spleen"])
    assert both.sum() < 0.01 * shape.mask(LABELS["spleen"]).sum()
    assert dice(found.mask(LABELS["liver"]), seg.array == LABELS["liver"]) > 0.95


def test_several_structures_that_look_unlike_their_examples_do_so(template):
    ct, seg = noisy(GRIDS["coarse"], seed=4)
    odd = np.isin(seg.array, [LABELS["spleen"], LABELS["liver"]])
    values = np.where(odd, ct.array - 80, ct.array).astype(np.float32)
    with pytest.warns(DataWarning, match="liver, spleen do not look as in the examples"):
        segment(AffineModel(32), Volume(values, ct.grid, "exam"), template)


@pytest.mark.parametrize("threshold", [1, 0.9999])
def test_a_threshold_that_empties_masks_is_told(template, threshold):
    """The image is hardly ever certain."""
    ct, _ = noisy(GRIDS["coarse"], seed=4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        found = segment(AffineModel(32), ct, template, threshold)
    (message,) = [str(w.message) for w in told]
    assert message.startswith(f"{ct.name}: ") and f"voxel by the threshold {threshold:g}, " in message
    empty = [name for name, identity in LABELS.items() if not found.mask(identity).any()]
    assert empty and all((name in message) is (name in empty) for name in LABELS)
    # No threshold, or one that some voxel reaches, is nothing to speak of.
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert segment(AffineModel(32), ct, template).array.any()
        assert segment(AffineModel(32), ct, template, 0.8).array.any()
        assert segment(AffineModel(32), ct, template.shape_only(), 0.8).array.any()


def test_values_that_no_example_has_decide_nothing(template):
    """As contrast medium where the examples had none."""
    ct, seg = noisy(GRIDS["coarse"], seed=4)
    values = np.where(seg.array == LABELS["spleen"], 450, ct.array).astype(np.float32)
    found = segment(AffineModel(32), Volume(values, ct.grid, "exam"), template)
    assert dice(found.mask(LABELS["spleen"]), seg.array == LABELS["spleen"]) > 0.9


def test_it_is_kept_in_the_file_and_follows_the_structures(template, tmp_path):
    template.save(tmp_path / "t.h5")
    again = Template.load(tmp_path / "t.h5")
    np.testing.assert_array_equal(again.appearance.log_odds, template.appearance.log_odds)
    np.testing.assert_array_equal(again.appearance.edges, template.appearance.edges)
    assert again.meta["appearance"]["exams"] == dict.fromkeys(template.names, 1)

    spleen = again.select(["spleen"])
    row = template.names.index("spleen")
    np.testing.assert_array_equal(spleen.appearance.log_odds[0], template.appearance.log_odds[row])
    assert renamed(spleen, {"spleen": "milt"}).appearance is spleen.appearance
    # Joined with one that knows nothing of this.
    other = replace(
        renamed(anatomy_template().select(["liver"]), {"liver": "other"}), meta=dict(template.meta)
    )
    joined = merge_templates([other, spleen])
    assert not joined.appearance.log_odds[0].any()
    np.testing.assert_array_equal(joined.appearance.log_odds[1], spleen.appearance.log_odds[0])
    assert merge_templates([other, replace(spleen.shape_only())]).appearance is None

    # Masks alone are a file that earlier versions read.
    template.shape_only().save(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5") as f, h5py.File(tmp_path / "t.h5") as g:
        assert (f.attrs["version"], g.attrs["version"]) == (1, 3)
    assert Template.load(tmp_path / "s.h5").appearance is None


def test_damage_is_found(template, tmp_path):
    template.save(tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as f:
        del f["appearance/log_odds"]
    with pytest.raises(DataError, match="t.h5.*make it again"):
        Template.load(tmp_path / "t.h5")
    with pytest.raises(DeepAtlasError, match="do not match"):
        Appearance(np.array([-np.inf, 0.0]), np.zeros((1, 3), np.float32), 3.0)
    with pytest.raises(DeepAtlasError, match="must ascend"):
        Appearance(np.array([-np.inf, 0.0, 0.0]), np.zeros((1, 3), np.float32), 3.0)
    with pytest.raises(DeepAtlasError, match="1 rows of appearance for 3 structures"):
        replace(template, appearance=template.appearance.rows([0]))
