"""The score of a region's run: the structures that lie in it, with and without its network."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from affine_model import ANATOMY, GRIDS, LABELS, SCALE, AffineModel, exam

from deepatlas.io.codec import write_volume
from deepatlas.model.regions import Region
from deepatlas.presets import preset
from deepatlas.space.box import Box
from deepatlas.train.log import NullLog
from deepatlas.train.region_score import score_region
from deepatlas.train.request import Request
from deepatlas.train.score import best_steps
from deepatlas.train.split import Split


def region_of(*names: str) -> SimpleNamespace:
    """The network of a region around structures; with the known coordinates of the root there is nothing to add."""
    low = [min(ANATOMY[n][1][a] - ANATOMY[n][2][a] - 4 for n in names) / SCALE for a in range(3)]
    high = [max(ANATOMY[n][1][a] + ANATOMY[n][2][a] + 4 for n in names) / SCALE for a in range(3)]
    return SimpleNamespace(region=Region("part", Box.between("part", low, high)), fingerprint="part-network")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    for name, grid in (("e1", "coarse"), ("e2", "anisotropic")):
        ct, seg = exam(GRIDS[grid], name)
        if name == "e2":
            # The spleen was not drawn in the exam to test on.
            seg = replace(seg, array=seg.array * (seg.array != LABELS["spleen"]))
        write_volume(root / name / "ct.nii.gz", ct)
        write_volume(root / name / "seg.nii.gz", seg)
    (root / "labels.json").write_text(json.dumps(LABELS))
    return root


@pytest.fixture
def scored(data, tmp_path, monkeypatch):
    monkeypatch.setattr("deepatlas.train.region_score.save_overview", lambda *args: None)
    model = AffineModel(32)
    split = Split(["e1"], ["e2"], [str(data)], "e1", ["e1"], [str(data)], ["e1"])
    request = Request(str(tmp_path), data=str(data), structures=["liver", "spleen"])
    config = preset("tiny")
    config = replace(config, refine=replace(config.refine, steps=2))

    def run(*names: str):
        log = NullLog()
        return score_region(tmp_path, model, region_of(*names), config, request, split, log)

    return run


@pytest.mark.slow(2)
def test_the_score_is_that_of_the_structures_that_were_drawn_in_the_region(scored):
    result = scored("liver", "spleen")
    assert list(result["dice_per_structure"]) == ["liver"] and result["structures"] == 1
    assert result["dice"] > 0.9 and result["without"]["dice"] == result["dice"]
    assert result["refined"]["steps"] == 2 and best_steps(result) == 0


@pytest.mark.slow(1)
def test_a_region_whose_structures_no_test_exam_shows_has_no_score(scored):
    result = scored("spleen")
    assert result["structures"] == 0 and "dice" not in result and "refined" not in result


def test_a_model_without_a_dice_is_not_refined():
    assert best_steps({"dice": None, "refined": {"steps": 20, "dice": None}}) == 0
    assert best_steps({"dice": 0.5, "refined": {"steps": 20, "dice": 0.6}}) == 20
