"""The supervised loss: right gradients, none for what was not drawn or seen, and parts that add up to a batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_masks import Drawn

from deepatlas.losses import segmentation_loss

SIZE, EXAMS, STRUCTURES = 5, 3, 4
DRAWN = np.array([[1, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
FRACTION = torch.tensor([0.5, 0.1, 0.01, 1e-9])


@pytest.fixture
def batch():
    """Logits, masks and fields of view of three exams in float64."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, *(SIZE,) * 3, dtype=torch.float64, generator=generator)

    logits = 6 * rand(EXAMS, STRUCTURES) - 3
    return logits, Drawn((rand(EXAMS, STRUCTURES) > 0.5).double(), DRAWN), (rand(EXAMS, 1) > 0.3).double()


def loss(logits, exams, seen, count=EXAMS, **weights):
    return segmentation_loss(logits, exams, seen, FRACTION, count, **weights).total


def test_gradcheck(batch):
    logits, exams, seen = batch
    assert torch.autograd.gradcheck(
        lambda x: loss(x, exams, seen, dice=0.7, cross_entropy=0.3), logits.requires_grad_(), fast_mode=True
    )


def test_the_terms_are_those_of_pytorch_and_of_the_formula(batch):
    logits, exams, seen = batch
    terms = segmentation_loss(logits, exams, seen, FRACTION, EXAMS)
    entropies, dices = [], []
    for e, k in zip(*np.nonzero(DRAWN), strict=True):
        inside = seen[e, 0] > 0
        x, y = logits[e, k][inside], exams.values[e, k][inside]
        share = 1 / (DRAWN[e].sum() * EXAMS)
        entropies.append(share * F.binary_cross_entropy(x.sigmoid(), y) / max(float(FRACTION[k]), 1e-4))
        p = x.sigmoid()
        dices.append(share * (1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)))
    assert terms.cross_entropy.item() == pytest.approx(sum(entropies).item())
    assert terms.dice.item() == pytest.approx(sum(dices).item())
    assert terms.total.item() == pytest.approx((sum(entropies) + sum(dices)).item())


def test_undrawn_structures_get_exactly_no_gradient_whatever_their_logits_are(batch):
    logits, exams, seen = batch
    logits[torch.from_numpy(~DRAWN)] = torch.nan
    logits.requires_grad_()
    value = loss(logits, exams, seen)
    value.backward()
    assert value.isfinite()
    drawn = torch.from_numpy(DRAWN)
    assert (logits.grad[~drawn] == 0).all() and logits.grad[drawn].abs().flatten(1).sum(1).min() > 0
    # Their masks are not even asked for.
    assert all(DRAWN[e, k] for e, k in exams.asked)


def test_outside_the_field_of_view_there_is_no_gradient(batch):
    logits, exams, seen = batch
    logits.requires_grad_()
    loss(logits, exams, seen).backward()
    outside = (seen == 0).expand_as(logits)
    assert (logits.grad[outside] == 0).all()
    assert (logits.grad[:2][~outside[:2]] != 0).any()


def test_a_structure_out_of_view_is_background_and_has_no_dice(batch):
    logits, exams, seen = batch
    exams.values[:, 0] = 0
    terms = segmentation_loss(logits.requires_grad_(), exams, seen, FRACTION, EXAMS, cross_entropy=0)
    terms.total.backward()
    assert (logits.grad[:, 0] == 0).all()
    logits.grad = None
    loss(logits, exams, seen).backward()
    # Cross-entropy lowers it everywhere in view.
    assert (logits.grad[:2, 0][seen[:2, 0] > 0] > 0).all()


def test_parts_of_a_batch_add_up_to_it(batch):
    logits, exams, seen = batch
    logits.requires_grad_()
    loss(logits, exams, seen).backward()
    whole, logits.grad = logits.grad, None
    for rows in (slice(0, 1), slice(1, 3)):
        part = Drawn(exams.values[rows], DRAWN[rows])
        loss(logits[rows], part, seen[rows]).backward()
    torch.testing.assert_close(logits.grad, whole)


def test_a_part_without_a_drawn_structure_has_a_gradient_of_zeros(batch):
    logits, exams, seen = batch
    last = logits[2:].detach().requires_grad_()
    value = loss(last, Drawn(exams.values[2:], DRAWN[2:]), seen[2:])
    value.backward()
    assert value.item() == 0 and (last.grad == 0).all()


def test_right_answers_cost_nothing(batch):
    _, exams, seen = batch
    right = 40 * (2 * exams.values - 1)
    assert loss(right, exams, seen).item() < 1e-6 < 0.5 < loss(-right, exams, seen).item()
