"""The models that come with the package."""

from __future__ import annotations

import pytest
from real_exams import real

import deepatlas
from deepatlas.errors import DataWarning, DeepAtlasError
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.exams.read import read_volume
from deepatlas.localize.template.build import build_template
from deepatlas.pretrained import FOLDER, MODEL, shipped
from deepatlas.store.store import Store


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


def test_a_folder_with_the_name_of_a_shipped_model_counts_only_if_it_is_a_run(tmp_path, monkeypatch):
    here = tmp_path / "headneck"
    here.mkdir()
    (here / "template.h5").write_bytes(b"no template")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(DataWarning, match="the shipped model is used, not the folder"):
        model = deepatlas.load("headneck", "cpu")
    with pytest.warns(DataWarning, match="the shipped model is used, not the folder"):
        deepatlas.Template.load("headneck").check_model(model.fingerprint)
    (here / "config.json").touch()
    for load in (deepatlas.load, deepatlas.Template.load):
        with (
            pytest.warns(DataWarning, match="the run in the folder of that name is used"),
            pytest.raises(DeepAtlasError, match="no finished model yet|not a template file"),
        ):
            load("headneck")
    # As a path, it is never the shipped model.
    with pytest.raises(DeepAtlasError, match="no finished model yet"):
        deepatlas.load("./headneck")


def test_a_file_with_the_name_of_a_shipped_model_is_used_and_named(tmp_path, monkeypatch):
    (tmp_path / "headneck").write_bytes(b"no model")
    monkeypatch.chdir(tmp_path)
    with (
        pytest.warns(DataWarning, match="the file of that name is used"),
        pytest.raises(DeepAtlasError, match="headneck: not a readable model"),
    ):
        deepatlas.load("headneck")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.pt", deepatlas.load),
        ("t.h5", deepatlas.Template.load),
        ("ct.nii.gz", read_volume),
        ("seg.nrrd", lambda path: read_volume(path, labels=True)),
        ("slice.dcm", read_volume),
        ("exam.h5", read_volume),
        ("store.h5", Store),
    ],
)
def test_a_pointer_of_git_lfs_is_named(tmp_path, name, read):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(DeepAtlasError, match=f"{name}: a pointer of git-lfs, not the file itself; run"):
        read(tmp_path / name)


def test_half_precision_takes_half_the_space_and_keeps_the_fingerprint(tmp_path):
    model = deepatlas.load("headneck", device="cpu")
    sizes = {}
    for half in (True, False):
        model.save(tmp_path / f"{half}.pt", half=half)
        sizes[half] = (tmp_path / f"{half}.pt").stat().st_size
        assert deepatlas.load(tmp_path / f"{half}.pt", device="cpu").fingerprint == model.fingerprint
    assert sizes[True] < 0.55 * sizes[False]


@pytest.mark.slow(2)
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
