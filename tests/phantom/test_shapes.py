"""Shapes, canvas and deformations of the phantom, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from deepatlas.phantom.deform import (
    STEP,
    Deformation,
    Pose,
    determinant,
    exponential,
    upsample,
    velocity_nodes,
)
from deepatlas.phantom.shapes import Canvas, ellipsoid, halfspace, rotation, stack, tube, union
from deepatlas.space.grid import Grid


def at(shape, points):
    """Distances at points [n, 3]."""
    x, y, z = (np.asarray(c, dtype=np.float32) for c in np.asarray(points, dtype=float).T)
    return shape.distance(x, y, z)


def test_sphere_distance_is_exact():
    points = np.random.default_rng(0).uniform(-30, 30, (200, 3))
    expected = np.linalg.norm(points - (1, 2, 3), axis=1) - 12
    np.testing.assert_allclose(at(ellipsoid((1, 2, 3), (12, 12, 12)), points), expected, atol=1e-3)


def test_rotated_ellipsoid_has_the_correct_surface_and_box():
    shape = ellipsoid((5, 0, 0), (30, 10, 20), yaw=30, pitch=20, roll=-10)
    direction = np.random.default_rng(1).standard_normal((500, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    surface = (direction * (30, 10, 20)) @ rotation(20, -10, 30).T + (5, 0, 0)
    assert np.abs(at(shape, surface)).max() < 1e-3
    assert (surface >= shape.low - 1e-6).all() and (surface <= shape.high + 1e-6).all()
    # The box is tight.
    assert np.abs(surface.max(axis=0) - shape.high).max() < 1.5


def test_capsule_distance_is_exact():
    shape = tube([(0, 0, 0), (0, 0, 40)], 5, steps=1)
    np.testing.assert_allclose(
        at(shape, [(8, 0, 20), (0, 0, 50), (0, 3, -4), (0, 0, 20)]), [3, 5, 0, -5], atol=1e-5
    )


def test_stack_interpolates_its_sections_and_ends_flat():
    shape = stack([(0, 20, 10, 0, 2), (100, 40, 20, 6, 2)])
    np.testing.assert_allclose(
        at(shape, [(20, 0, 0), (0, 26, 100), (40, 6, 100), (0, 0, 103)]), [0, 0, 0, 3], atol=1e-3
    )
    np.testing.assert_allclose(at(shape, [(0, 3, 50)]), -15, atol=1e-3)


def test_set_operations_follow_membership():
    a, b = ellipsoid((0, 0, 0), (10, 10, 10)), ellipsoid((8, 0, 0), (10, 10, 10))
    points = np.random.default_rng(2).uniform(-20, 30, (2000, 3))
    in_a, in_b = at(a, points) < 0, at(b, points) < 0
    assert np.array_equal(at(a & b, points) < 0, in_a & in_b)
    assert np.array_equal(at(a - b, points) < 0, in_a & ~in_b)
    assert np.array_equal(at(union(a, b), points) < 0, in_a | in_b)
    assert np.all(at(union(a, b, blend=6), points) <= at(union(a, b), points) + 1e-5)
    assert np.array_equal(at(b.mirrored(), points * (-1, 1, 1)) < 0, in_b)
    assert np.array_equal(at(halfspace((2, 0, 0), 6), points) < 0, points[:, 0] < 3)


def test_canvas_paints_layers_labels_and_restrictions():
    grid = Grid.from_spacing((21, 21, 21), 1.0, (-10, -10, -10))
    canvas = Canvas(grid, ["air", "bone", "marrow", "gas"], {"ball": 3})
    canvas.paint(ellipsoid((0, 0, 0), (8, 8, 8)), "bone", (3, "marrow"), label="ball")
    canvas.paint(halfspace((0, 1, 0), 0.5), "gas", keep_label=True, over=("marrow",))
    assert [canvas.tissue[10, y, 10] for y in (0, 3, 8, 12, 17, 20)] == [0, 1, 3, 2, 1, 0]
    assert canvas.label[10, 8, 10] == 3 and canvas.label[10, 0, 10] == 0
    volume = (canvas.label == 3).sum()
    assert abs(volume - 4 / 3 * np.pi * 8**3) < 0.04 * volume


def test_upsample_reproduces_linear_fields():
    shape, step = (13, 17, 9), (4, 3, 2)
    control = np.meshgrid(
        *(np.arange(-s, n + 2 * s, s) for n, s in zip(shape, step, strict=True)), indexing="ij"
    )
    voxel = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    field = np.stack([2 * control[0] - control[2] + 1, control[1] * 0.5]).astype(np.float32)
    expected = np.stack([2 * voxel[0] - voxel[2] + 1, voxel[1] * 0.5])
    np.testing.assert_allclose(upsample(field, shape, step), expected, atol=1e-4)


def test_exponential_of_a_linear_velocity_is_the_matrix_exponential():
    rate = np.array([[0.08, -0.15, 0.0], [0.15, 0.05, 0.02], [0.0, 0.04, -0.06]])
    x, y, z = velocity_nodes()
    grid = np.stack(np.broadcast_arrays(x, y, z))
    velocity = np.einsum("ij,jdhw->idhw", rate, grid).astype(np.float32)
    points = np.random.default_rng(3).uniform(-60, 60, (3, 300))
    mapped = points + Deformation(exponential(velocity)).at(points)
    np.testing.assert_allclose(mapped, expm(rate) @ points, atol=0.1)


def test_determinant_of_an_affine_map():
    matrix = np.array([[1.2, 0.1, 0], [-0.2, 0.9, 0.3], [0.1, 0, 1.1]])
    axes = np.meshgrid(np.arange(6) * 2.0, np.arange(5) * 3.0, np.arange(7) * 1.5, indexing="ij")[::-1]
    coords = np.einsum("ij,jdhw->idhw", matrix, np.stack(axes))
    np.testing.assert_allclose(determinant(coords, (1.5, 3.0, 2.0)), np.linalg.det(matrix), rtol=1e-6)


@pytest.mark.parametrize("index", range(3))
def test_random_deformations_are_smooth_and_do_not_fold(index):
    deformation = Deformation.random(np.random.default_rng(index))
    mapped = np.stack([p + d for p, d in zip(velocity_nodes(), deformation.displacement, strict=True)])
    assert determinant(mapped, (STEP,) * 3).min() > 0
    assert 5 < np.linalg.norm(deformation.displacement, axis=0).mean() < 60


def test_pose_and_its_inverse_agree():
    pose = Pose.random(np.random.default_rng(4))
    points = np.random.default_rng(5).uniform(-100, 100, (10, 3))
    world = np.column_stack([pose.to_world(points), np.ones(10)])
    np.testing.assert_allclose((world @ pose.template_from_world().T)[:, :3], points, atol=1e-9)
    assert 0.85 <= pose.scale <= 1.15
