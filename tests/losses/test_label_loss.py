"""The label loss: right gradients, none for what was not drawn, equal weights, and parts that add up to a batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_masks import Drawn
from smooth_noise import smooth

from deepatlas.config import LossConfig
from deepatlas.losses import FeatureSimilarity, LabelTask, RegistrationLoss, labels
from deepatlas.nn import Atlas, LabelAtlas
from deepatlas.space.affine import affine_coords

SIZE, EXAMS, STRUCTURES = 6, 3, 4
DRAWN = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)


def maps(count=EXAMS, size=SIZE, bend=0.04, dtype=torch.float64):
    """Coordinate maps that differ a little from each other."""
    torch.manual_seed(1)
    plain = 0.8 * affine_coords(torch.eye(3, 4, dtype=dtype)[None], size)
    noise = bend * torch.randn(count, 3, 3, 3, 3, dtype=dtype)
    return plain + F.interpolate(noise, (size,) * 3, mode="trilinear", align_corners=True)


def task(drawn=DRAWN, size=SIZE, dtype=torch.float64):
    torch.manual_seed(2)
    atlas = LabelAtlas(STRUCTURES, 5).to(dtype)
    with torch.no_grad():
        atlas.values.uniform_()
        atlas.fraction.copy_(torch.tensor([0.5, 0.1, 0.01, 1e-7]))
    return LabelTask(Drawn(torch.rand(len(drawn), STRUCTURES, *(size,) * 3, dtype=dtype), drawn), atlas)


@pytest.mark.parametrize("values", [labels.VALUES, 1])
def test_gradcheck_of_both_tasks(monkeypatch, values):
    monkeypatch.setattr(labels, "VALUES", values)
    of = task()
    mask = (torch.rand(EXAMS, 1, *(SIZE,) * 3, dtype=torch.float64) > 0.3).double()
    drawn = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]], dtype=bool)
    of.exams.drawn = drawn
    coords = maps().requires_grad_()

    def explicit(coords, values):
        with torch.no_grad():
            of.atlas.values.copy_(values)
        # The parameter itself gets a gradient too; here the argument stands for it.
        own = LabelTask(of.exams, _with(of.atlas, values))
        return own.explicit(coords, mask, EXAMS)

    start = of.atlas.values.detach().clone().requires_grad_()
    # Linear interpolation has kinks at the voxels, so that a step must not cross one.
    assert torch.autograd.gradcheck(explicit, (coords, start), eps=1e-7, atol=1e-4, fast_mode=True)
    displacement = (0.03 * torch.randn(EXAMS, 3, *(SIZE,) * 3, dtype=torch.float64)).requires_grad_()
    inner = mask.clone()
    # At the edge of the grid there is a kink at a displacement of 0.
    inner[..., 0] = inner[..., -1] = inner[..., 0, :] = inner[..., -1, :] = 0
    inner[:, :, 0] = inner[:, :, -1] = 0
    assert torch.autograd.gradcheck(
        lambda d: of.implicit(d, inner, EXAMS), (displacement,), eps=1e-7, atol=1e-4, fast_mode=True
    )


def _with(atlas, values):
    other = LabelAtlas(STRUCTURES, 5).double()
    other.load_state_dict(atlas.state_dict())
    del other.values
    other.values = values
    return other


def test_the_error_is_the_mean_over_drawn_structures_divided_by_their_part_of_the_body():
    of, coords = task(), maps()
    mask = (torch.rand(EXAMS, 1, *(SIZE,) * 3, dtype=torch.float64) > 0.3).double()
    pulled = of.atlas(coords)
    expected = 0.0
    for exam in range(EXAMS):
        inside = mask[exam, 0] > 0
        terms = [
            (pulled[exam, k] - of.exams.values[exam, k])[inside].square().mean()
            / max(float(of.atlas.fraction[k]), labels.MIN_FRACTION)
            for k in np.flatnonzero(DRAWN[exam])
        ]
        expected += sum(terms) / max(1, len(terms)) / 5
    assert of.explicit(coords, mask, 5).item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_was_not_drawn_is_never_read_and_has_no_gradient():
    """Not even where its mask holds nonsense; neither in the explicit task, nor in either exam of an implicit pair."""
    of, mask = task(), torch.ones(EXAMS, 1, *(SIZE,) * 3, dtype=torch.float64)
    of.exams.values[torch.from_numpy(~DRAWN)] = torch.nan
    coords = maps().requires_grad_()
    loss = of.explicit(coords, mask, EXAMS)
    loss.backward()
    assert loss.isfinite() and {(e, k) for e, k in of.exams.asked} == set(
        zip(*np.nonzero(DRAWN), strict=True)
    )
    # Structure 3 was drawn nowhere, and exam 2 has no labels.
    assert (
        of.atlas.values.grad[0, 3].eq(0).all() and of.atlas.values.grad[0, :3].flatten(1).ne(0).any(1).all()
    )
    assert coords.grad[2].eq(0).all() and coords.grad[:2].flatten(1).ne(0).any(1).all()

    of.exams.asked.clear()
    displacement = torch.zeros(EXAMS, 3, *(SIZE,) * 3, dtype=torch.float64).requires_grad_()
    loss = of.implicit(displacement, mask, EXAMS)
    loss.backward()
    # Only structure 0 was drawn in two exams, 0 and 1.
    assert loss.isfinite() and set(of.exams.asked) == {(0, 0), (1, 0)}
    assert displacement.grad[1:].eq(0).all() and displacement.grad[0].ne(0).any()


def test_a_batch_without_labels_costs_nothing_but_has_a_gradient_of_zero():
    """The processes of a run sum the same tensors, also where one of them has no labelled exam."""
    of = task(np.zeros_like(DRAWN))
    coords = maps().requires_grad_()
    loss = of.explicit(coords, torch.ones(EXAMS, 1, *(SIZE,) * 3), EXAMS)
    loss.backward()
    assert loss.item() == 0 and of.exams.asked == [] and of.atlas.values.grad.eq(0).all()


@pytest.mark.parametrize("windows", [[(0, 4)], [(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 4)]])
def test_parts_add_up_to_the_batch(windows):
    size, count = 12, 4
    images, body = smooth(count, 1, *(size,) * 3), torch.ones(count, 1, *(size,) * 3)
    drawn = np.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=bool)
    of = task(drawn, size, torch.float32)
    atlas = Atlas(13)
    with torch.no_grad():
        atlas.values.copy_(smooth(1, 1, 13, 13, 13, seed=4))
    settings = LossConfig(labels=0.7, similarity="intensity", iterations=10)
    loss = RegistrationLoss(settings, FeatureSimilarity(None, "intensity"))

    def gradients(windows):
        coords, totals = maps(count, size, dtype=torch.float32).requires_grad_(), {}
        of.atlas.values.grad = None
        for low, high in windows:
            whole = high - low == count
            rows = list(range(low, high)) if whole else [*range(low, high), high % count]
            own = LabelTask(Drawn(of.exams.values[rows], drawn[rows]), of.atlas)
            terms = loss(coords[rows], images[rows], body[rows], atlas, None if whole else count, own)
            terms.total.backward()
            for name, value in terms.scalars().items():
                totals[name] = totals.get(name, 0) + value
        return coords.grad, of.atlas.values.grad, totals

    expected, found = gradients([(0, count)]), gradients(windows)
    assert expected[2]["explicit_labels"] > 0 and expected[2]["implicit_labels"] > 0
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-3)
    assert found[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-6)


def test_without_weight_labels_change_nothing():
    images, body = smooth(EXAMS, 1, *(SIZE,) * 3), torch.ones(EXAMS, 1, *(SIZE,) * 3)
    of, loss = (
        task(dtype=torch.float32),
        RegistrationLoss(LossConfig(similarity="intensity"), FeatureSimilarity(None, "intensity")),
    )
    with_labels = loss(maps(dtype=torch.float32), images, body, Atlas(8), None, of).scalars()
    assert with_labels == loss(maps(dtype=torch.float32), images, body, Atlas(8)).scalars()
    assert of.exams.asked == [] and not any("labels" in name for name in with_labels)
