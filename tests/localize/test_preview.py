"""The preview of an exam: outlines of whole masks where the structures are, with the sides right."""

from __future__ import annotations

import numpy as np
import pytest
from affine_model import GRIDS, LABELS, exam
from matplotlib import image as picture

from deepatlas.errors import WriteError
from deepatlas.localize import preview
from deepatlas.localize.preview import write_preview
from deepatlas.pictures.view import PLANES, View
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume


@pytest.mark.parametrize("grid", ["plain", "flipped", "sagittal"])
def test_a_png_shows_the_planes_in_the_same_way_for_any_grid(grid, tmp_path, monkeypatch):
    ct, seg = exam(GRIDS[grid])
    seen = {}
    draw = preview.overlay_figure

    def figure(slices, atlas, masks, reference, names, shape, spacing, **more):
        seen.update(slices=slices, masks=masks, names=names, more=more)
        return draw(slices, atlas, masks, reference, names, shape, spacing, **more)

    monkeypatch.setattr(preview, "overlay_figure", figure)
    path = write_preview(tmp_path / "e.png", ct, Labels.of(seg), LABELS, title="e")
    assert picture.imread(path).shape[2] == 4
    assert seen["names"] == LABELS
    for plane, slice_, masks in zip(PLANES, seen["slices"], seen["masks"], strict=True):
        assert 0 <= slice_.min() and slice_.max() <= 1
        for mask in masks:
            assert mask.shape == slice_.shape
        # The liver lies on the right, the spleen on the left: the liver is on the left of a radiological picture.
        if plane != "sagittal":
            columns = {
                name: np.nonzero(View(plane).orient(mask))[1].mean()
                for name, mask in zip(LABELS, masks, strict=True)
                if mask.any()
            }
            seen[plane] = columns
            others = [columns[name] for name in ("spleen", "heart") if name in columns]
            assert others and all(columns["liver"] < other for other in others)
    assert "spleen" in seen["axial"] or "spleen" in seen["coronal"]


def test_an_empty_exam_and_one_without_units_are_drawn_too(tmp_path):
    ct, seg = exam(GRIDS["coarse"])
    empty = Labels(np.zeros_like(seg.array), seg.grid)
    write_preview(tmp_path / "empty.png", ct, empty, LABELS)
    image = Volume(ct.array * 100 + 5000, ct.grid)
    write_preview(tmp_path / "mr.png", image, Labels.of(seg), LABELS, hounsfield=False)
    shown = picture.imread(tmp_path / "mr.png")[..., :3]
    assert shown.std() > 0.05 and (tmp_path / "empty.png").exists()


def test_a_path_that_cannot_be_written_is_one_line(tmp_path):
    ct, seg = exam(GRIDS["coarse"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="cannot write"):
        write_preview(tmp_path / "file" / "a.png", ct, Labels.of(seg), LABELS)
