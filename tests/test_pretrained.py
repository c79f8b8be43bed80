"""The models that come with the package."""

from __future__ import annotations

import pytest
from real_exams import real

import deepatlas
from deepatlas.errors import DeepAtlasError
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.exams.read import read_volume
from deepatlas.localize.template.build import build_template
from deepatlas.pretrained import FOLDER, MODEL, shipped


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_loads_by_name_is_small_and_has_a_card(name):
    model = deepatlas.load(name, device="cpu")
    assert (FOLDER / name / MODEL).stat().st_size < 15e6
    assert model.network.training is False and all(p.isfinite().all() for p in model.network.parameters())
    template = deepatlas.Template.load(name)
    template.check_model(model.fingerprint)
    assert sum(f.stat().st_size for f in (FOLDER / name).iterdir()) < 15e6 and template.masks.max() > 0.5
    assert "## Limits" in (FOLDER / name / "README.md").read_text() and model.card["commit"]


def test_an_unknown_model_is_an_error_that_lists_the_shipped_ones(tmp_path):
    assert shipped() == ["headneck"]
    with pytest.raises(
        DeepAtlasError, match="kneck: no run folder or model file there.*shipped are: headneck"
    ):
        deepatlas.load("kneck")


def test_a_folder_has_precedence_over_a_shipped_model_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "headneck").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeepAtlasError, match="no finished model yet"):
        deepatlas.load("headneck")


def test_half_precision_takes_half_the_space_and_keeps_the_fingerprint(tmp_path):
    model = deepatlas.load("headneck", device="cpu")
    sizes = {}
    for half in (True, False):
        model.save(tmp_path / f"{half}.pt", half=half)
        sizes[half] = (tmp_path / f"{half}.pt").stat().st_size
        assert deepatlas.load(tmp_path / f"{half}.pt", device="cpu").fingerprint == model.fingerprint
    assert sizes[True] < 0.55 * sizes[False]


def test_headneck_finds_structures_of_an_exam_from_one_example():
    openkbp = real("openkbp")
    model = deepatlas.load("headneck", device="cpu")
    names = ["Brainstem", "RightParotid", "LeftParotid", "Mandible"]
    template = build_template(model, openkbp / "train", ["pt_122"], names)
    folder = openkbp / "validation" / "pt_222"
    truth = read_volume(folder / "seg.nii.gz", labels=True)
    found = model.segment(folder / "ct.nii.gz", template)
    assert found.grid.matches(truth.grid, 1e-3)
    scores = [dice(truth.array == i, found.array == i) for i in template.labels.values()]
    assert min(scores) > 0.4 and sum(scores) / len(scores) > 0.6
