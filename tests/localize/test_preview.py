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


@pytest.mark.parametrize("looked_at", [128, 13, 7])
@pytest.mark.parametrize("name", ["plain", "flipped", "sagittal", "oblique"])
def test_the_slices_are_those_that_were_chosen(name, looked_at, tmp_path, monkeypatch):
    """A structure of one voxel is in all three planes, also where only every n-th voxel is looked at."""
    grid = GRIDS[name]
    monkeypatch.setattr(preview, "_LOOKED_AT", looked_at)
    step = [max(1, n // looked_at) for n in grid.shape]
    place = tuple(n // 3 // s * s for n, s in zip(grid.shape, step, strict=True))
    array = np.zeros(grid.shape, np.uint8)
    array[place] = 1
    ct, _ = exam(grid)
    marked = ct.array.copy()
    marked[place] = 3000
    seen = {}

    def figure(slices, atlas, masks, *more, **others):
        seen.update(slices=slices, masks=masks)
        return draw(slices, atlas, masks, *more, **others)

    draw = preview.overlay_figure
    monkeypatch.setattr(preview, "overlay_figure", figure)
    write_preview(tmp_path / "e.png", Volume(marked, grid), Labels(array, grid), {"spot": 1})
    for slice_, masks in zip(seen["slices"], seen["masks"], strict=True):
        assert masks.sum() == 1 and slice_[masks[0]] == slice_.max() == 1


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


@pytest.mark.slow(1)
@pytest.mark.parametrize("grid", ["plain", "flipped", "sagittal"])
def test_the_air_beside_the_patient_is_left_out(grid, tmp_path, monkeypatch):
    """A scan that is three times as wide as the patient; all of its length and of the structures is shown."""
    ct, seg = exam(GRIDS[grid])
    far = [0 if abs(ct.grid.affine[2, 2 - axis]) > 1 else 40 for axis in range(3)]
    wide = [(n, n) for n in far]
    around = ct.grid.cropped([-n for n in far], np.add(ct.grid.shape, np.multiply(far, 2)).tolist())
    ct = Volume(np.pad(ct.array, wide, constant_values=-1000), around)
    labels = Labels(np.pad(seg.array, wide), around)
    seen = {}

    def figure(slices, atlas, masks, reference, names, shape, spacing, **more):
        seen.update(slices=slices, masks=masks, shape=shape, spacing=spacing)
        return draw(slices, atlas, masks, reference, names, shape, spacing, **more)

    draw = preview.overlay_figure
    monkeypatch.setattr(preview, "overlay_figure", figure)
    write_preview(tmp_path / "e.png", ct, labels, LABELS)
    axial, coronal, sagittal = seen["slices"]
    assert axial.shape == seen["shape"][1:] and coronal.shape == seen["shape"][::2] == (
        len(coronal),
        axial.shape[1],
    )
    assert sagittal.shape == seen["shape"][:2]
    x, y, z = np.multiply(seen["shape"][::-1], seen["spacing"])
    # The body is 116 x 92 mm wide, and the exam 145 mm long.
    assert 116 < x < 145 and 92 < y < 121 and z > 140
    whole = labels.canonical()
    for axis, masks in enumerate(seen["masks"]):
        for mask, identity in zip(masks, LABELS.values(), strict=True):
            sums = whole.mask(identity).sum(axis=tuple(a for a in range(3) if a != axis))
            assert int(mask.sum()) in sums
