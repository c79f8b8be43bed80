"""A run on images without a unit, from the names of its files to the use of its model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from small_crops import SETTINGS, write_crops

import deepatlas
from deepatlas.cli.main import main as command
from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.file import Template
from deepatlas.store.store import Store
from deepatlas.train.__main__ import main
from deepatlas.train.cache import entries


@pytest.fixture(scope="module")
def run(no_pictures, tmp_path_factory):
    """A finished run: (data, run folder)."""
    folder = tmp_path_factory.mktemp("mr")
    data, out = write_crops(folder / "data"), folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", str(folder / "cache"))
        arguments = ["--data", data, "--preset", "mr", "--out", out, "--device", "cpu", "--quiet", *SETTINGS]
        assert main([*map(str, arguments), "distil.steps=[2]", "cohort.steps=2", "train.accumulate=1"]) == 0
        (store,) = (entry.path for entry in entries())
        with Store(store) as there:
            assert there.intensity == "percentile" and there.mask[:].all()
    return data, out


@pytest.mark.slow(4)
def test_the_kind_of_the_values_travels_with_the_model(run, capsys):
    data, out = run
    result = json.loads((out / "result.json").read_text())
    assert result["skipped"] == {} and 0 <= result["dice"] <= 1
    model = deepatlas.load(out)
    assert model.intensity == "percentile" == Template.load(out / "template.h5").meta["intensity"]
    for path in (out, out / "template.h5"):
        assert command(["info", str(path), "--json"]) == 0
        assert '"intensity": "percentile"' in capsys.readouterr().out


@pytest.mark.slow(2)
def test_the_scale_of_an_exam_does_not_matter_to_its_coordinates(run):
    data, out = run
    model = deepatlas.load(out)
    exam = read_volume(data / "e4" / "MR.nii")
    assert exam.modality == "MR" and read_volume(data / "e1" / "image.nii.gz").modality == ""
    other = replace(exam, array=exam.array * 0.25)
    np.testing.assert_allclose(model.coordinates(exam), model.coordinates(other), atol=1e-3)
    template = Template.load(out / "template.h5")
    assert np.array_equal(model.segment(exam, template).array, model.segment(other, template).array)


@pytest.mark.slow(2)
def test_the_commands_take_the_exams_by_their_names(run, tmp_path, capsys):
    data, out = run
    template = tmp_path / "t.h5"
    one = ["--model", str(out), "--fast", "--quiet", "--device", "cpu"]
    assert command(["template", *one, "--data", str(data), "--exams", "e1", "--out", str(template)]) == 0
    report = ["--template", str(template), "--data", str(data), "--out", str(tmp_path / "r")]
    assert command(["evaluate", *one, *report]) == 0
    rows = (tmp_path / "r" / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["e1", "e2", "e3"]
    masks = ["segment", *one, "--template", str(template), str(data / "e2"), "--out", str(tmp_path / "m")]
    assert command(masks) == 0 and list((tmp_path / "m").rglob("e2*"))


@pytest.mark.slow(2)
def test_a_ct_is_noted_and_an_mr_refused_by_a_model_of_the_other(run, tmp_path, phantom_model):
    data, out = run
    exam = read_volume(data / "e4" / "MR.nii")
    path = write_volume(tmp_path / "e4" / "ct.nii.gz", exam)
    with pytest.warns(DataWarning, match="is a CT, where images of data.intensity=percentile are expected"):
        deepatlas.load(out).map_exam(path)
    with pytest.raises(DataError, match="MR.nii: is an MR, where a CT in Hounsfield units is expected"):
        phantom_model.map_exam(data / "e4" / "MR.nii")


@pytest.fixture
def phantom_model():
    return deepatlas.load("headneck", device="cpu")


def test_mr_for_a_preset_of_ct_names_the_preset(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    data = write_crops(tmp_path / "data")
    assert main(["--data", str(data), "--preset", "small", "--out", str(tmp_path / "run"), "--quiet"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "none of its 4 exams can be used (for MR: --preset mr); the first: " in error
