"""The picture of the cascade: what the network of every level sees of an exam, and the atlas there (Fig. 6)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import SimpleITK as sitk
import torch
from affine_model import GRIDS, AffineModel, KnownRegion, exam

from deepatlas.evaluate.cascade_figure import cascade_figure
from deepatlas.model.cascade import add_regions
from deepatlas.space.box import Box


def test_every_row_is_the_input_of_a_network_and_outlines_the_others():
    ct, _ = exam(GRIDS["oblique"])
    networks = [
        KnownRegion("middle"),
        KnownRegion("heart", Box.between("heart", (-0.15, -0.1, -0.05), (0.15, 0.2, 0.25)), "middle"),
    ]
    found = AffineModel(32).map_exam(ct)
    field, _ = add_regions(found.field, found.body, ct, networks)
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64, 64)
    model = SimpleNamespace(regions=networks, atlas=ramp, intensity="hu")

    figure = cascade_figure(model, field, ct, "an exam")
    images = [axes.images[0].get_array() for axes in figure.axes]
    assert len(images) == 4 * 3
    # Both regions lie in the whole exam, and the inner one in the outer one.
    outlines = [len(axes.collections) for axes in figure.axes]
    assert outlines == [2, 0, 2, 0, 1, 0, 1, 0, 0, 0, 0, 0]

    # The coronal slice of the outer region, resampled by SimpleITK.
    grid = field.pieces[0].grid
    image = sitk.GetImageFromArray(np.asarray(ct.array, dtype=np.float32))
    lps = np.diag([-1.0, -1.0, 1.0])

    def frame(g):
        spacing = np.linalg.norm(g.affine[:3, :3], axis=0)
        return (
            (lps @ g.affine[:3, 3]).tolist(),
            spacing.tolist(),
            (lps @ g.affine[:3, :3] / spacing).ravel().tolist(),
        )

    origin, spacing, direction = frame(ct.grid)
    image.SetOrigin(origin), image.SetSpacing(spacing), image.SetDirection(direction)
    origin, spacing, direction = frame(grid)
    cut = sitk.GetArrayFromImage(
        sitk.Resample(
            image, grid.shape[::-1], sitk.Transform(), sitk.sitkLinear, origin, spacing, direction, -1000.0
        )
    )
    want = ((cut.clip(-256, 256) + 256) / 512)[:, :, ::-1][::-1]
    seen = np.asarray(images[4])
    nearest = min(np.abs(seen - want[:, y]).mean() for y in range(grid.shape[1]))
    assert nearest < 0.02

    # The atlas rises from the left to the right; a region holds the part between its sides, seen from the front.
    low, high = 0.5 + np.array([-0.4, 0.45]) / 2
    shown = np.asarray(images[5])
    half = (high - low) / 32 / 2
    np.testing.assert_allclose(shown[0, [0, -1]], [high - half, low + half], atol=0.01)
