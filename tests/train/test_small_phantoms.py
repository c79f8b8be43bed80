"""A run without data on phantoms of all structures and of a chosen voxel size."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from fast_settings import FAST

from deepatlas.phantom.structures import ALL_STRUCTURES
from deepatlas.train.__main__ import main


@pytest.mark.slow
def test_a_run_on_phantoms_of_all_structures_scores_them(no_pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    settings = ["phantom.structures=all", "phantom.anatomy=1", "seed=1", "loss.labels=1", "refine.steps=0"]
    # Scores of all structures would take most of the time.
    few = ["--structures", "liver", "psoas_right", "thyroid"]
    arguments = [
        "--preset",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
        *few,
        *FAST,
        *settings,
    ]
    assert main(arguments) == 0
    assert "too small for the voxels" in capsys.readouterr().err
    root = tmp_path / "run" / "phantom"
    for part in ("train", "test"):
        assert json.loads((root / part / "labels.json").read_text()) == ALL_STRUCTURES
    seg = nibabel.load(root / "test" / "phantom_0003" / "seg.nii.gz")
    assert np.allclose(seg.header.get_zooms(), 8)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["coordinate_error_mm"] > 0 and 0 < result["affine_dice"] < 1
    rows = (tmp_path / "run" / "evaluation" / "metrics.csv").read_text()
    assert "psoas_right" in rows and "liver" in rows
