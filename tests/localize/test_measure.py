"""Measures of structures, against the label statistics of SimpleITK and NumPy on the world places of all voxels."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from drawn_objects import random_grid
from exported_series import NAMES, masks, structures
from itk_images import as_image, everywhere

from deepatlas.errors import DataError
from deepatlas.localize.measure import statistics
from deepatlas.localize.measure_files import COLUMNS, StatisticsFiles
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


@pytest.fixture(scope="module")
def measured():
    grid = random_grid(np.random.default_rng(4), (9, 30, 26))
    hu = np.random.default_rng(5).normal(40, 30, grid.shape).astype(np.float32)
    labels = structures(grid)
    volume = Volume(hu, grid, "e1")
    return (
        labels,
        volume,
        {s.name: s for s in statistics(labels, volume, NAMES, {"liver": 0.5, "gtv": np.nan})},
    )


@pytest.mark.parametrize("name", ["liver", "kidney_left", "tumour (odd)", "gtv"])
def test_a_structure_measures_what_simpleitk_says(name, measured):
    _, volume, found = measured
    mask = masks(volume.grid.shape)[name]
    label = as_image(mask.astype(np.uint8), volume.grid)
    shape, values = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
    shape.Execute(label)
    values.Execute(label, as_image(volume.array, volume.grid))
    got = found[name]
    assert got.voxels == shape.GetNumberOfPixels(1) == mask.sum()
    assert got.ml == pytest.approx(shape.GetPhysicalSize(1) / 1000)
    np.testing.assert_allclose(got.centroid_mm, np.array(shape.GetCentroid(1)) * [-1, -1, 1], atol=1e-6)
    assert got.mean == pytest.approx(values.GetMean(1), abs=1e-3)
    np.testing.assert_allclose(
        [got.p5, got.p50, got.p95], np.percentile(volume.array[mask], [5, 50, 95]), rtol=1e-6
    )


def test_the_box_holds_every_corner_of_every_voxel(measured):
    labels, volume, found = measured
    affine = volume.grid.affine
    for name, mask in masks(volume.grid.shape).items():
        if not mask.any():
            continue
        centres = everywhere(volume.grid)[mask]
        corners = (np.array(list(np.ndindex(2, 2, 2))) - 0.5) @ affine[:3, :3].T
        every = (centres[:, None] + corners).reshape(-1, 3)
        np.testing.assert_allclose(found[name].low_mm, every.min(axis=0))
        np.testing.assert_allclose(found[name].high_mm, every.max(axis=0))


def test_a_structure_without_a_voxel_has_no_measure(measured, tmp_path):
    _, _, found = measured
    spleen = found["spleen"]
    assert spleen.voxels == 0 and spleen.ml == 0 and np.isnan(spleen.mean) and np.isnan(spleen.low_mm).all()
    assert spleen.to_dict()["mean"] is None and spleen.to_dict()["centroid_mm"] == [None] * 3
    assert found["liver"].coverage == 0.5 and found["gtv"].coverage is None


def test_the_tables_hold_the_same(measured, tmp_path):
    _, _, found = measured
    with StatisticsFiles(tmp_path) as files:
        files.add("e1", list(found.values()), {"fit": 0.71234, "known": True})
    whole = json.loads((tmp_path / "statistics.json").read_text())["e1"]
    assert whole["fit"] == 0.71234 and whole["known"] is True
    assert whole["structures"]["liver"]["ml"] == found["liver"].ml
    with open(tmp_path / "statistics.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == COLUMNS and [r["structure"] for r in rows] == list(NAMES)
    first = rows[0]
    assert (first["exam"], first["fit"], first["known"], first["coverage"]) == (
        "e1",
        "0.712",
        "true",
        "0.500",
    )
    assert float(first["ml"]) == pytest.approx(found["liver"].ml, abs=1e-3)
    assert float(first["low_z"]) == pytest.approx(found["liver"].low_mm[2], abs=1e-2)
    assert rows[-1]["mean"] == "" and rows[-1]["voxels"] == "0"


def test_names_come_from_the_labels_and_another_grid_is_refused(measured):
    labels, volume, _ = measured
    assert [s.name for s in statistics(labels, volume)] == ["2", "4", "7", "9"]
    other = Volume(np.zeros((9, 30, 26)), Grid.from_spacing((9, 30, 26)), "e2")
    with pytest.raises(DataError, match="e2: the labels are on another grid"):
        statistics(labels, other)
