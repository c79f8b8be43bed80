"""A list of points against PyTorch's grid_sample, also in parts and longer than an axis of a kernel may be."""

import pytest
import torch

from deepatlas.space.at_points import MOST, at_points

PADDINGS = ("border", "zeros")


def oracle(volume, points, padding):
    grid = points.mT[:, :, None, None]
    return torch.nn.functional.grid_sample(volume, grid, padding_mode=padding, align_corners=True)[..., 0, 0]


@pytest.mark.parametrize("most", [1, 5, 7, 100])
@pytest.mark.parametrize("padding", PADDINGS)
def test_parts_give_the_values_and_gradients_of_the_whole(padding, most):
    torch.manual_seed(0)
    volume = torch.randn(1, 2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    points = (2.4 * torch.rand(1, 3, 14, dtype=torch.float64) - 1.2).requires_grad_()
    got, want = at_points(volume, points, padding, most), oracle(volume, points, padding)
    torch.testing.assert_close(got, want)
    pull = torch.randn_like(want)
    found = torch.autograd.grad(got, (volume, points), pull)
    torch.testing.assert_close(found, torch.autograd.grad(want, (volume, points), pull))


def test_more_points_than_an_axis_may_have_voxels():
    # The voxels of 24 million labels of a structure, as a template of a hundred exams has them.
    points = torch.zeros(1, 3, MOST + 3)
    points[0, 0] = torch.linspace(-1, 1, MOST + 3)
    volume = torch.arange(2.0).expand(1, 1, 2, 2, 2)
    got = at_points(volume, points)
    assert got.shape == (1, 1, MOST + 3)
    assert float((got[0, 0] - (points[0, 0] + 1) / 2).abs().max()) < 1e-6
