"""Averaging over moved views leaves right answers as they are and takes errors of single views down."""

import pytest
import torch
from affine_model import GRIDS, exam

import deepatlas
from deepatlas.errors import DeepAtlasError
from deepatlas.model.average import averaged_coordinates
from deepatlas.space.affine import affine_coords

SIZE = 24
PLACE = 0.5 * affine_coords(torch.eye(3, 4)[None], SIZE)  # what the exam's coordinates are


def network(errors=0.0, seed=0):
    """Reads coordinates off an image that shows them, however it was moved; each answer off by a constant."""
    generator = torch.Generator().manual_seed(seed)

    def predict(view):
        bias = errors * torch.randn(3, generator=generator)
        # The image holds x + 10: what came in from outside is 0 and is no answer.
        return torch.cat([view - 10] * 3, 1) + bias[None, :, None, None, None]

    return predict


@pytest.fixture
def image():
    return PLACE[:, :1] + 10


def test_one_view_is_the_network_itself(image):
    assert torch.equal(averaged_coordinates(network(), image, 1), network()(image))


@pytest.mark.parametrize("views", [2, 5])
def test_a_right_answer_stays(image, views):
    got = averaged_coordinates(network(), image, views)
    inner = (slice(None), slice(None), *(slice(3, -3),) * 3)  # views mix with air at their rims
    torch.testing.assert_close(got[inner], PLACE[:, :1].expand(-1, 3, -1, -1, -1)[inner], atol=1e-5, rtol=0)


def test_errors_of_single_views_average_out(image):
    truth = PLACE[:, :1]
    inner = (slice(None), slice(None), *(slice(4, -4),) * 3)

    def error(views):
        trials = [averaged_coordinates(network(0.05, seed), image, views) for seed in range(6)]
        return torch.stack([(t - truth)[inner].abs().mean() for t in trials]).mean()

    assert error(12) < 0.5 * error(1)


def test_the_shipped_model_takes_views_and_repeats():
    volume, _ = exam(GRIDS["sagittal"])
    once, twice = (
        deepatlas.load("headneck", "cpu", average=3).coordinates_on_model_grid(volume)[0] for _ in range(2)
    )
    alone = deepatlas.load("headneck", "cpu").coordinates_on_model_grid(volume)[0]
    assert once.shape == alone.shape and torch.equal(once, twice)
    assert 0 < (once - alone).abs().mean() < 0.2


@pytest.mark.parametrize("wrong", [0, -1, 1.5])
def test_a_wrong_number_of_views_is_one_line(wrong):
    with pytest.raises(DeepAtlasError, match="average must be a number of views"):
        deepatlas.load("headneck", "cpu", average=wrong)
