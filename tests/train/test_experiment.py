"""The command from data to result on a tiny phantom cohort, and its errors for wrong input."""

import csv
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fast_settings import FAST
from small_exams import write_cohort
from undrawn import undrawn

import deepatlas
from deepatlas import checkpoint
from deepatlas.evaluate.rows import Row
from deepatlas.nn import CoordinateNetwork
from deepatlas.train.__main__ import main
from deepatlas.train.experiment import Experiment
from deepatlas.train.loop import Facts


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("DEEPATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("runs") / "phantom"
    # Templates of all structures would take most of the time.
    few = ["--structures", "heart", "liver", "brain"]
    assert main(["--preset", "tiny", "--out", str(folder), *few, "--quiet", *FAST]) == 0
    return folder


@pytest.mark.slow(12)
def test_a_run_leaves_everything_that_is_promised(run):
    expected = [
        "config.json",
        "log.jsonl",
        "checkpoint.pt",
        "model.pt",
        "atlas.nii.gz",
        "progress.png",
        "template.h5",
        "result.json",
        "figures/overview.png",
        "figures/level-2.png",
        "figures/level-0.png",
        "evaluation/metrics.csv",
        "evaluation/summary.json",
        "evaluation/report.html",
        "evaluation-refined/metrics.csv",
    ]
    assert [name for name in expected if not (run / name).is_file()] == []
    assert list((run / "evaluation" / "figures").glob("*.png"))
    assert list((run / "tensorboard").iterdir())
    # No temporary file is left.
    assert not list(run.rglob(".*"))


@pytest.mark.slow(1)
def test_the_result_holds_dice_and_true_error(run):
    result = json.loads((run / "result.json").read_text())
    assert 0 <= result["dice"] <= 1 and result["exams"] == 1
    assert (
        result["coordinate_error_mm"] > 0 and 0 <= result["folds"] <= 1 and 0 < result["affine_dice"] < 0.75
    )
    refined = result["refined"]
    assert refined["steps"] == 2 and 0 <= refined["dice"] <= 1 and refined["coordinate_error_mm"] > 0
    # The Dice of a network that has learned for two steps may be 0 with and without refinement.
    assert refined["coordinate_error_mm"] != result["coordinate_error_mm"] and "affine_dice" not in refined
    with (run / "evaluation" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == Row.columns()
    assert {row["exam"] for row in rows} == {"phantom_0003"}


@pytest.mark.slow(1)
def test_the_log_covers_every_phase(run):
    phases = [json.loads(line)["phase"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(phases)) == [
        "autoencoder",
        "coarse",
        "level-2",
        "head-1",
        "level-1",
        "head-0",
        "level-0",
    ]


@pytest.mark.slow(1)
def test_the_model_loads_and_gives_native_coordinates(run):
    model = deepatlas.load(run)
    exam = run / "phantom" / "test" / "phantom_0003" / "ct.nii.gz"
    coords = model.coordinates(exam)
    size = sitk.ReadImage(str(exam)).GetSize()
    assert tuple(coords.shape) == (3, *size[::-1])
    assert np.isfinite(coords.numpy()).all() and coords.abs().max() <= 1.5
    assert deepatlas.load(run / "model.pt").fingerprint == model.fingerprint


@pytest.mark.slow(5)
def test_a_finished_run_is_not_overwritten_and_resumes_to_the_same_result(run, capsys):
    assert main(["--preset", "tiny", "--out", str(run), "--quiet", *FAST]) == 1
    assert f"{run}: holds a run already" in capsys.readouterr().err
    before = json.loads((run / "result.json").read_text())
    with undrawn():
        assert main(["--resume", str(run), "--quiet"]) == 0
    after = json.loads((run / "result.json").read_text())
    assert after["dice"] == before["dice"] and after["coordinate_error_mm"] == before["coordinate_error_mm"]


SHORT = [s for s in FAST if "phantom" not in s]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small labelled exams, on which a run is scored in a second."""
    return str(write_cohort(tmp_path_factory.mktemp("data") / "exams", 4))


@pytest.mark.slow(2)
def test_training_on_a_directory_holds_labelled_exams_out(data, tmp_path, cache, capsys):
    out = ["--preset", "tiny", "--out", str(tmp_path / "r")]
    with undrawn():
        assert main(["--data", data, *out, "--quiet", "--json", *SHORT]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["test_exams"]) == 1 and result["template_exams"][0] not in result["test_exams"]
    assert "coordinate_error_mm" not in result


@pytest.mark.slow(8)
def test_bfloat16_and_compiled_networks_train_and_are_saved_in_float32(data, tmp_path, cache, monkeypatch):
    backends = []

    def compiled(function):
        backends.append(function)
        # Traces as inductor does, without the minutes of a C++ compiler.
        return torch_compile(function, backend="aot_eager")

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    out = tmp_path / "r"
    # Without labels the run ends with its model; two levels compile faster than three.
    unlabelled = shutil.copytree(
        data, tmp_path / "data", ignore=shutil.ignore_patterns("seg.*", "labels.json")
    )
    half = ["train.compile=true", "train.precision=bfloat16"]
    fewer = ["network.channels=[8,16]", "train.steps=[2,2]", "train.head_steps=0"]
    where = ["--data", str(unlabelled), "--preset", "tiny", "--out", str(out), "--quiet"]
    with undrawn():
        assert main([*where, *SHORT, *fewer, *half]) == 0
    # The network and the autoencoder.
    assert len(backends) == 2
    model = deepatlas.load(out)
    assert all(p.dtype == torch.float32 for p in model.network.parameters())
    assert set(model.network.state_dict()) == set(CoordinateNetwork(model.config.network).state_dict())
    losses = [json.loads(line).get("total", 0.0) for line in (out / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all() and max(losses) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such data directory"),
        (["--resume", "nowhere"], "no such file, so nowhere is no run folder"),
        (["--resume", "nowhere", "--preset", "tiny"], "leave out --preset"),
        (["--test-exams", "a"], "give --test DIR too"),
        (["train.batch=x"], "train.batch must be of type int"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, monkeypatch, capsys, cache):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow(1)
def test_a_run_folder_of_an_earlier_version_resumes(run, tmp_path):
    """Its config.json and checkpoint lack the settings that were added since, and the ids of the exams."""
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation*", "phantom"))
    saved = json.loads((copy / "config.json").read_text())
    state = checkpoint.load(copy / checkpoint.NAME)
    del saved["config"]["loss"]["gradient"], state["config"]["loss"]["gradient"], state["facts"]["exams"]
    assert set(state["facts"]) == {"seed_exam", "seed_mask"}
    (copy / "config.json").write_text(json.dumps(saved))
    checkpoint.save(copy / checkpoint.NAME, state)
    experiment = Experiment.resume(copy, device="cpu", quiet=True)
    assert experiment.config == deepatlas.load(run).config and experiment.request.data is None
    assert Facts(**experiment.state["facts"]).exams is None


@pytest.mark.slow(1)
def test_a_changed_config_is_refused_on_resume(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluation*", "phantom"))
    saved = json.loads((copy / "config.json").read_text())
    saved["config"]["train"]["lr"] = 1.0
    (copy / "config.json").write_text(json.dumps(saved))
    assert main(["--resume", str(copy), "--quiet"]) == 1
    assert "changed since the checkpoint" in capsys.readouterr().err


def test_an_unknown_seed_exam_is_named(data, cache, tmp_path, capsys):
    out = ["--preset", "tiny", "--out", str(tmp_path / "r"), "--quiet"]
    assert main(["--data", data, *out, "--seed-exam", "x"]) == 1
    assert "no exam 'x'" in capsys.readouterr().err
