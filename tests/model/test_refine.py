"""Refinement finds a deformation that the prediction of the network lacks, and never increases the loss."""

import numpy as np
import pytest
import torch
from affine_model import GRIDS, exam

import deepatlas_ops as ops
from deepatlas.api import Model
from deepatlas.model.refine import refine_coordinates
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.presets import preset
from deepatlas.space.affine import affine_coords

CONFIG = preset("tiny").override(["loss.size=16"])


@pytest.fixture(scope="module")
def scene():
    """An atlas, the true map of an exam, an affine part of that map as the prediction, and the image of the exam."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(1, 1, 9, 9, 9, generator=generator)
    atlas = Atlas(33).requires_grad_(False)
    atlas.values.copy_(ops.resize(noise, (33,) * 3))
    plain = 0.8 * affine_coords(torch.eye(3, 4)[None], 32)
    true = plain + ops.resize(0.04 * torch.randn(1, 3, 4, 4, 4, generator=generator), (32,) * 3)
    return atlas, true, plain, atlas(true)


def error(coords, true):
    return (ops.resize(coords, true.shape[2:]) - true).norm(dim=1).mean().item()


@pytest.mark.parametrize("size", [8, 32], ids=["coarse prediction", "fine prediction"])
def test_the_true_map_is_found(scene, size):
    atlas, true, plain, image = scene
    values = atlas.values.clone()
    start = ops.resize(plain, (size,) * 3)
    refined = refine_coordinates(start, image, torch.ones_like(image), atlas, CONFIG, 40)
    assert refined.shape == start.shape and not refined.requires_grad
    assert error(refined, true) < 0.5 * error(start, true)
    assert refined.abs().max() <= 1 and torch.equal(atlas.values, values)


def test_refinement_runs_inside_no_grad_and_is_reproducible(scene):
    atlas, _, plain, image = scene
    with torch.no_grad():
        first = refine_coordinates(plain, image, torch.ones_like(image), atlas, CONFIG, 3)
        assert torch.equal(first, refine_coordinates(plain, image, torch.ones_like(image), atlas, CONFIG, 3))
    assert not torch.equal(first, plain)


def test_the_prediction_is_kept_where_refinement_has_nothing_to_gain(scene):
    atlas, true, plain, image = scene
    mask = torch.ones_like(image)
    assert refine_coordinates(plain, image, mask, atlas, CONFIG, 0) is plain
    assert refine_coordinates(plain, image, torch.zeros_like(image), atlas, CONFIG, 5) is plain
    # Steps of this length can only do harm.
    far = CONFIG.override(["refine.lr=5.0"])
    assert refine_coordinates(true, image, mask, atlas, far, 2) is true


def test_a_model_refines_every_exam():
    torch.manual_seed(0)
    config = preset("tiny").override(["network.atlas_size=32", "refine.control=4"])
    atlas = Atlas(32)
    atlas.values.data.uniform_()
    network = CoordinateNetwork(config.network)
    volume, _ = exam(GRIDS["anisotropic"], "e")
    plain = Model(config, network, atlas).map_exam(volume).coords
    refined = Model(config, network, atlas, refine=3).map_exam(volume).coords
    assert plain.shape == refined.shape and not torch.equal(plain, refined)
    again = Model(config, network, atlas, refine=0).map_exam(volume).coords
    np.testing.assert_array_equal(plain.numpy(), again.numpy())
