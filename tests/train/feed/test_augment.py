from __future__ import annotations

import math

import pytest
import torch

from deepatlas.space.affine import affine_coords, random_affine, rotation_matrix
from deepatlas.train.feed.augment import Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ranges_are_kept_and_filled():
    theta = random_affine(4000, generator(), dtype=torch.float64)
    linear, shift = theta[..., :3], theta[..., 3]
    # The linear part is rotation . diag(scale), so the norms of its columns are the scales.
    scales = linear.norm(dim=1)
    assert 0.7 <= scales.min() < 0.71 and 1.29 < scales.max() <= 1.3
    assert 8 / 63 * 1.95 < shift.abs().max() <= 16 / 63
    rotation = linear / scales[:, None]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(4000, 3, 3))
    assert (torch.linalg.det(rotation) > 0).all()
    angle_y = -torch.asin(rotation[:, 2, 0])
    angle_x = torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])
    angle_z = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    for angle in (angle_x, angle_y, angle_z):
        assert 0.49 < angle.max() <= 0.5 and -0.5 <= angle.min() < -0.49
    drawn = torch.stack([*scales.unbind(1), *shift.unbind(1), angle_x, angle_y, angle_z])
    correlation = torch.corrcoef(drawn) - torch.eye(9)
    # All parameters are drawn independently.
    assert correlation.abs().max() < 0.06


def test_seed_decides():
    first = random_affine(3, generator(1))
    assert torch.equal(first, random_affine(3, generator(1)))
    assert not torch.equal(first, random_affine(3, generator(2)))
    assert not torch.equal(first[0], first[1])
    assert random_affine(0, generator()).shape == (0, 3, 4)


def test_arguments():
    identity = random_affine(2, generator(), scale=(1, 1), rotation=0, translation=0)
    torch.testing.assert_close(identity, torch.eye(3, 4).expand(2, 3, 4))
    only_z = random_affine(50, generator(), scale=(1, 1), rotation=0, translation=(0, 0, 0.5))
    assert (only_z[:, :2, 3] == 0).all() and only_z[:, 2, 3].abs().max() > 0.4
    for bad in ({"scale": (0, 1)}, {"scale": (2, 1)}, {"rotation": -1.0}, {"translation": (1, 2)}):
        with pytest.raises(ValueError, match="random_affine"):
            random_affine(1, generator(), **bad)


def test_rotations_turn_about_their_axes():
    quarter = math.pi / 2
    about = rotation_matrix(torch.eye(3, dtype=torch.float64) * quarter)
    x, y, z = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(about[0] @ y, z)
    torch.testing.assert_close(about[1] @ z, x)
    torch.testing.assert_close(about[2] @ x, y)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid")
@pytest.mark.parametrize("size", [(5, 6, 7), (4, 1, 3)])
def test_affine_coords_agree_with_torch(size):
    theta = random_affine(2, generator(), dtype=torch.float64)
    expected = torch.nn.functional.affine_grid(theta, [2, 1, *size], align_corners=True).permute(
        0, 4, 1, 2, 3
    )
    torch.testing.assert_close(affine_coords(theta, size), expected)


def displacement(count: int, strength: float) -> torch.Tensor:
    """The smooth displacements of an augmentation at 33^3, without its affine maps."""
    drawn = Augmentation.draw(count, generator(), elastic=strength, scale=(1, 1), rotation=0, translation=0)
    identity = affine_coords(torch.eye(3, 4)[None], 33)
    return drawn.coords(33, "cpu") - identity


def test_random_displacements_are_smooth_and_of_the_asked_strength():
    field = displacement(40, 0.1)
    assert field.shape == (40, 3, 33, 33, 33) and field.dtype == torch.float32
    assert torch.equal(field, displacement(40, 0.1))
    # The points of both control grids.
    control = field[..., ::4, ::4, ::4]
    both = control[..., ::2, ::2, ::2].std().item()
    assert both == pytest.approx(0.1 * (1 + 0.5**2) ** 0.5, rel=0.1)
    # Linear between control points: the second difference is 0 off them.
    second = field[..., 2:] - 2 * field[..., 1:-1] + field[..., :-2]
    off = [i for i in range(31) if (i + 1) % 4]
    assert second[..., off].abs().max() < 1e-5 < second.abs().max()
    assert displacement(2, 0.0).abs().max() < 1e-6
    assert displacement(0, 0.1).shape == (0, 3, 33, 33, 33)
