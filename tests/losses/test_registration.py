"""The objective is small where coordinates are right, ignores what is masked, and adds up over parts of a batch."""

import pytest
import torch
import torch.nn.functional as F
from smooth_noise import smooth

from deepatlas.config import LossConfig
from deepatlas.losses import FeatureSimilarity, RegistrationLoss
from deepatlas.losses.similarity import masked_mean
from deepatlas.nn import Atlas, Autoencoder
from deepatlas.space.affine import affine_coords


def test_masked_mean_of_an_empty_mask_is_zero():
    assert masked_mean(torch.ones(1, 2, 3, 3, 3), torch.zeros(1, 1, 3, 3, 3)).item() == 0


@pytest.mark.parametrize("kind", ["features", "histogram", "intensity", "mae", "mse"])
def test_an_image_is_most_similar_to_itself(kind):
    torch.manual_seed(0)
    similarity = FeatureSimilarity(Autoencoder().eval(), kind)
    a, b, mask = smooth(2, 1, 16, 16, 16), smooth(2, 1, 16, 16, 16, seed=1), torch.ones(2, 1, 16, 16, 16)
    same, other = (similarity(x, similarity.encode(a), mask) for x in (a, b))
    assert same.abs().max() < 1e-2 and (other > same + 1e-2).all()


def pairs(shift, size=16):
    """Two views of one world, the second moved, with the coordinates that a perfect network would give."""
    world = smooth(1, 1, 33, 33, 33)
    atlas = Atlas(33)
    with torch.no_grad():
        atlas.values.copy_(world)
    identity = affine_coords(torch.eye(3, 4)[None], size) * 0.7
    offset = torch.tensor([shift, 0.0, 0.0]).view(1, 3, 1, 1, 1)
    coords = torch.cat([identity, identity + offset])
    return atlas, coords, atlas(coords).detach(), torch.ones(2, 1, size, size, size)


def test_right_coordinates_beat_wrong_ones():
    atlas, coords, image, mask = pairs(0.15)
    loss = RegistrationLoss(LossConfig(size=16, similarity="intensity"), FeatureSimilarity(None, "intensity"))
    right = loss(coords, image, mask, atlas)
    wrong = loss(coords[:1].expand(2, -1, -1, -1, -1), image, mask, atlas)
    assert right.explicit_similarity < 1e-3 and right.implicit_similarity < 0.02
    assert right.folds == 0
    assert wrong.explicit_similarity > 5 * right.explicit_similarity + 1e-2
    assert wrong.implicit_similarity > right.implicit_similarity + 1e-2


def test_gradients_reach_coordinates_and_atlas():
    atlas, coords, image, mask = pairs(0.1)
    coords = (coords + 0.02 * torch.randn_like(coords)).requires_grad_()
    loss = RegistrationLoss(LossConfig(size=16), FeatureSimilarity(Autoencoder().eval()))
    terms = loss(coords, image, mask, atlas)
    terms.total.backward()
    for tensor in (coords, atlas.values):
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0
    assert set(terms.scalars()) >= {"total", "overlap", "folds"}


def test_errors_of_images_are_those_of_torch():
    a, b = smooth(1, 1, 8, 8, 8), smooth(1, 1, 8, 8, 8, seed=1)
    mask = torch.ones_like(a)
    for kind, expected in (("mae", F.l1_loss(a, b)), ("mse", F.mse_loss(a, b))):
        similarity = FeatureSimilarity(None, kind)
        torch.testing.assert_close(similarity(a, similarity.encode(b), mask)[0], expected)


def test_both_gradients_of_the_inversion():
    """``loss.gradient``: that of the solution, and that of the unrolled steps, agree where the recursion has converged.

    Only the unrolled one also passes through voxels without a solution, which the edges at the border of the mask see.
    """
    atlas, coords, image, mask = pairs(0.1)
    coords = coords + 0.02 * (smooth(2, 3, 16, 16, 16, seed=2) - 0.5)

    def gradient(form, prewitt):
        config = LossConfig(size=16, explicit=0, smoothness=0, prewitt=prewitt, iterations=30, gradient=form)
        leaf = coords.clone().requires_grad_()
        RegistrationLoss(config, FeatureSimilarity(None, "intensity"))(
            leaf, image, mask, atlas
        ).total.backward()
        return leaf.grad

    implicit, unrolled = (gradient(form, 0.0) for form in ("implicit", "unrolled"))
    assert implicit.norm() > 0 and (implicit - unrolled).norm() < 1e-4 * unrolled.norm()
    implicit, unrolled = (gradient(form, 0.5) for form in ("implicit", "unrolled"))
    assert (implicit - unrolled).norm() > 0.1 * unrolled.norm()


def test_what_lies_outside_the_mask_does_not_count():
    atlas, coords, image, mask = pairs(0.1)
    mask[..., :4, :, :] = 0
    spoiled = image.clone()
    spoiled[..., :3, :, :] = 7
    loss = RegistrationLoss(LossConfig(size=16, prewitt=0, implicit=0), FeatureSimilarity(None, "intensity"))
    a, b = (loss(coords, x, mask, atlas).total for x in (image, spoiled))
    torch.testing.assert_close(a, b)


def test_pairs_without_overlap_cost_nothing_and_stay_finite():
    atlas, coords, image, mask = pairs(0.0)
    coords = torch.cat([coords[:1] * 0.3 - 0.6, coords[1:] * 0.3 + 0.6]).requires_grad_()
    config = LossConfig(size=16, explicit=0)
    terms = RegistrationLoss(config, FeatureSimilarity(Autoencoder().eval()))(coords, image, mask, atlas)
    terms.total.backward()
    assert terms.overlap == 0 and terms.total == 0
    assert torch.isfinite(coords.grad).all()


def test_a_folded_map_is_counted():
    atlas, coords, image, mask = pairs(0.0)
    loss = RegistrationLoss(LossConfig(size=16, implicit=0), FeatureSimilarity(None, "intensity"))
    assert loss(coords.flip(4), image, mask, atlas).folds == 1
    assert loss(coords, image, mask, atlas).folds == 0


def test_coordinates_reach_a_pooled_loss_grid_without_a_shift():
    loss = RegistrationLoss(LossConfig(size=8), FeatureSimilarity(None, "intensity"), input_size=16)
    coords = affine_coords(torch.eye(3, 4)[None], 16) * 0.5 + 0.1
    pooled = F.avg_pool3d(coords, 2)
    torch.testing.assert_close(loss._on_loss_grid(coords, (8, 8, 8)), pooled)
    coarse = F.interpolate(coords, size=(4, 4, 4), mode="trilinear", align_corners=True)
    torch.testing.assert_close(loss._on_loss_grid(coarse, (8, 8, 8)), pooled)


@pytest.mark.parametrize("bounds", [(0, 2, 5), (0, 1, 2, 3, 4, 5), (0, 4, 5)])
def test_parts_of_a_batch_add_up_to_it(bounds):
    """Gradients of accumulation and of several processes are those of the whole batch, pairs across parts included."""
    generator = torch.Generator().manual_seed(3)
    count, size = 5, 12
    world = smooth(1, 1, 33, 33, 33)
    theta = torch.eye(3, 4) * 0.7 + 0.1 * torch.randn(count, 3, 4, generator=generator)
    coords = affine_coords(theta, size) + 0.1 * (smooth(count, 3, size, size, size, seed=4) - 0.5)
    image = smooth(count, 1, size, size, size, seed=5).double()
    mask = (smooth(count, 1, size, size, size, seed=6) > 0.3).double()
    loss = RegistrationLoss(LossConfig(size=size, window=5), FeatureSimilarity(None, "histogram", 5))

    def gradients(parts):
        atlas = Atlas(33).double()
        with torch.no_grad():
            atlas.values.copy_(world)
        maps = coords.double().requires_grad_()
        total = {}
        for rows in parts:
            whole = len(rows) == count
            index = torch.tensor(rows if whole else [*rows, (rows[-1] + 1) % count])
            terms = loss(maps[index], image[index], mask[index], atlas, None if whole else count)
            terms.total.backward()
            for name, value in terms.scalars().items():
                total[name] = total.get(name, 0) + value
        return maps.grad, atlas.values.grad, total

    parts = [list(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]
    whole, found = gradients([list(range(count))]), gradients(parts)
    assert whole[2]["implicit_similarity"] > 0.01 and 0 < whole[2]["overlap"] < 1
    for a, b in zip(found[:2], whole[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert found[2] == pytest.approx(whole[2], rel=1e-5)
