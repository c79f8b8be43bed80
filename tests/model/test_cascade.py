"""The cascade at use: networks of regions answer on crops of the full resolution, in the coordinates of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affine_model import GRIDS, MIDDLE, SCALE, AffineModel, KnownRegion, exam, grid_of, world

import deepatlas_ops as ops
from deepatlas.model.cascade import RIM, add_regions
from deepatlas.space.box import Box


def cascaded(networks: list[KnownRegion], grid: str = "oblique", noise: float = 0.0):
    ct, _ = exam(GRIDS[grid])
    found = AffineModel(32).map_exam(ct)
    if noise:
        smooth = torch.randn(1, 3, 5, 5, 5, generator=torch.Generator().manual_seed(0))
        found.coords.add_(noise * ops.resize(smooth, found.coords.shape[2:]))
    return ct, *add_regions(found.field, found.body, ct, networks)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_region_corrects_the_level_above_inside_its_box(grid):
    """The level above is wrong by up to several mm; the network of the region is right."""
    ct, field, notes = cascaded([KnownRegion("middle")], grid, noise=0.02)
    assert not notes and [p.name for p in field.pieces] == ["middle"]
    place = world(ct.grid) / SCALE
    error = np.linalg.norm(np.moveaxis(field.on(ct.grid).numpy(), 0, -1) - place, axis=-1) * SCALE
    # The box as the exam has it differs a little from that of the atlas, since the level above placed it.
    inside = (np.abs(MIDDLE.own(place)) < 1 - 2.2 * RIM / 32).all(axis=-1)
    assert inside.sum() > 50
    assert error[inside].max() < 0.05
    assert np.median(error[~MIDDLE.contains(place)]) > 0.5


def test_the_network_sees_the_box_at_its_own_resolution():
    network = KnownRegion("middle")
    ct, _, _ = cascaded([network])
    (look,) = network.looks
    want = np.array(MIDDLE.edges) * SCALE / 32
    np.testing.assert_allclose(sorted(look.hu.grid.spacing), sorted(want), rtol=0.05)
    assert look.x.shape == (1, 1, 32, 32, 32)
    # The anatomy of the crop is that of the exam: 20 HU of the body, 150 of the heart.
    assert {20, 150} <= set(np.unique(look.hu.array.round()).astype(int))


def test_regions_within_regions_see_the_answer_of_the_level_above():
    outer, inner = (
        KnownRegion("middle"),
        KnownRegion("heart", Box.between("heart", (-0.15, -0.1, -0.05), (0.15, 0.2, 0.25)), "middle"),
    )
    _, field, notes = cascaded([outer, inner], noise=0.02)
    assert [p.name for p in field.pieces] == ["middle", "heart"] and not notes
    # Placed by the right coordinates of the level above, the view is the box itself.
    corners = inner.region.box.own(inner.looks[0].hu.grid.corners() / SCALE)
    np.testing.assert_allclose(np.abs(corners), 1 - 1 / 32, atol=0.04)


def test_a_network_that_contradicts_the_level_above_is_left_out_and_told():
    outer, inner = KnownRegion("middle", shift=0.8), KnownRegion("heart", within="middle")
    _, field, notes = cascaded([outer, inner])
    assert not field.pieces and not inner.looks
    assert len(notes) == 1 and "region middle" in notes[0] and "0.80 half-edges" in notes[0]


def test_regions_that_the_exam_does_not_show_are_not_asked():
    far = KnownRegion("feet", Box.between("feet", (-0.3, -0.3, -1), (0.3, 0.3, -0.8)))
    half = KnownRegion("half", Box.between("half", (-0.4, -0.4, 0.1), (0.4, 0.4, 0.7)))
    ct, _ = exam(grid_of(half_mm=(70.0, 58.0, 30.0)))
    found = AffineModel(32).map_exam(ct)
    field, notes = add_regions(found.field, found.body, ct, [far, half])
    assert not field.pieces and not notes and not far.looks and not half.looks


def test_the_blend_has_no_jump_at_the_rim_and_no_folds():
    ct, field, _ = cascaded([KnownRegion("middle")], noise=0.02)
    fine = field.on(grid_of(spacing=(1.0, 1.0, 1.0), half_mm=(50.0, 40.0, 50.0)))
    alone = type(field)(field.coords, field.grid).on(
        grid_of(spacing=(1.0, 1.0, 1.0), half_mm=(50.0, 40.0, 50.0))
    )
    jump, usual = (max(np.abs(np.diff(f.numpy(), axis=a)).max() for a in (1, 2, 3)) for f in (fine, alone))
    assert jump < 1.5 * usual
    assert float(ops.folds(fine[None], torch.ones_like(fine[None, :1]))) == 0
