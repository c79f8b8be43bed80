"""Runs of ``deepatlas finetune``: from a model and from scratch, killed and resumed, used, and refused."""

import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import torch
from fast_settings import FAST
from forked import ranks
from small_exams import LABELS, one_line, write_cohort

import deepatlas
from deepatlas import checkpoint
from deepatlas.cli.main import main
from deepatlas.errors import DeepAtlasError
from deepatlas.io.codec import write_volume
from deepatlas.model.engine import Engine
from deepatlas.nn import Atlas, CoordinateNetwork
from deepatlas.presets import preset

SETTINGS = [
    "finetune.head_steps=2",
    "finetune.steps=4",
    "finetune.batch=2",
    "train.average=0.5",
    "data.holdout=0",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four exams, of which the last has no labels and the third has a bone alone."""
    root = write_cohort(tmp_path_factory.mktemp("labelled") / "data", 4)
    path = root / "e3" / "seg.nii.gz"
    seg = deepatlas.read_volume(path)
    write_volume(path, deepatlas.Volume(np.where(seg.array == 1, seg.array, 0).astype(np.uint8), seg.grid))
    return root


@pytest.fixture(scope="module", autouse=True)
def environment(no_pictures, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of coordinates with random weights, whose finest level is not used."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    fast = [s for s in FAST if "finest_level" not in s and "train.steps" not in s]
    config = preset("tiny").override([*fast, "network.finest_level=1", "train.steps=[2,2]"]).validate()
    torch.manual_seed(5)
    Engine(config, CoordinateNetwork(config.network), Atlas(config.network.atlas_size), {}).save(path)
    return path


def start(model, data, out, *more):
    place = [
        "finetune",
        "--model",
        str(model),
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--json",
    ]
    return [*place, *SETTINGS, *more, "--quiet"]


def weights(out):
    return checkpoint.load(out / "checkpoint.pt")["modules"]


def records(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 1
    return one_line(ValueError(capsys.readouterr().err.strip()))


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(start(model, data, out)) == 0
    return out


@pytest.mark.slow(1)
def test_a_run_learns_from_the_labelled_exams_alone(whole, model):
    assert [(r["phase"], r["step"]) for r in records(whole)] == [
        ("finetune-head", 0), ("finetune-head", 1), ("finetune", 0), ("finetune", 3),
    ]  # fmt: skip
    assert all(r["dice_loss"] > 0 and r["cross_entropy"] > 0 for r in records(whole))
    result = json.loads((whole / "result.json").read_text())
    assert result["labelled_exams"] == ["e1", "e2", "e3"] and result["learned_structures"] == list(LABELS)
    assert result["model"] == str(model) and result["from_scratch"] is False
    found = deepatlas.load(whole, "cpu")
    assert found.structures.labels == LABELS and found.structures.sizes[0] > 0
    assert found.card["init"]["model"] == Engine.load(model, "cpu").fingerprint
    assert found.card["labels"] == {"exams": 3, "structures": list(LABELS)}
    assert not (whole / "template.h5").exists() and not (whole / "atlas.nii.gz").exists()


def test_the_head_learns_alone_first(model, data, tmp_path):
    out = tmp_path / "run"
    assert main(start(model, data, out, "finetune.steps=0")) == 0
    trained = Engine.load(model, "cpu").network.state_dict()
    for name, value in weights(out)["network"].items():
        if name.startswith("backbone."):
            assert torch.equal(value, trained[name.removeprefix("backbone.")]), name
    # From scratch, no weight is that of the model, and there is no such phase.
    assert main(start(model, data, tmp_path / "scratch", "finetune.steps=0", "--from-scratch")) == 0
    assert {r["phase"] for r in records(tmp_path / "scratch")} == {"finetune"}
    assert len(records(tmp_path / "scratch")) == len(records(out)) == 2
    kernel = "encoder.0.first.conv.weight"
    assert not torch.allclose(
        weights(tmp_path / "scratch")["network"][f"backbone.{kernel}"], trained[kernel], atol=0.1
    )


class _Killed(BaseException):
    """What nothing in the run catches."""


@pytest.mark.slow(1)
@pytest.mark.parametrize(("at", "resident"), [(1, "auto"), (4, "false")])
def test_a_killed_run_resumes_bit_for_bit(model, data, whole, tmp_path, monkeypatch, at, resident):
    out = tmp_path / "run"
    save, count = checkpoint.save, []

    def killed(path, state):
        save(path, state)
        count.append(path)
        if len(count) == at:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(_Killed):
            main(start(model, data, out, "train.checkpoint_minutes=0", f"data.resident={resident}"))
    assert not (out / "model.pt").exists()
    # The other command continues it as well.
    assert main(["finetune" if at == 1 else "train", "--resume", str(out), "--device", "cpu", "--quiet"]) == 0
    theirs = weights(out)
    for module, values in weights(whole).items():
        for name, value in values.items():
            assert torch.equal(value, theirs[module][name]), (module, name)
    assert records(out) == records(whole)
    assert deepatlas.load(out, "cpu").fingerprint == deepatlas.load(whole, "cpu").fingerprint


@pytest.mark.slow(1)
def same_losses(run, other):
    for a, b in zip(records(run), records(other), strict=True):
        assert (a["phase"], a["step"]) == (b["phase"], b["step"])
        for key in ("dice_loss", "cross_entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-3), (a["phase"], a["step"], key)


def test_parts_of_a_batch_give_the_same_run(model, data, whole, tmp_path):
    assert main(start(model, data, tmp_path / "run", "train.accumulate=2")) == 0
    same_losses(tmp_path / "run", whole)
    theirs = weights(tmp_path / "run")["network"]
    for name, value in weights(whole)["network"].items():
        # A normalisation of every channel hides the bias before it. Its gradient is rounding, of which Adam makes
        # whole steps.
        if not name.endswith("bias"):
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_processes_compute_the_run_of_one(model, data, whole, environment, tmp_path):
    out = tmp_path / "run"
    ranks("undrawn", start(model, data, out), environment, 2, tmp_path)
    same_losses(out, whole)


def test_it_is_used_without_a_template(whole, model, data, tmp_path, capsys):
    exam = data / "e4" / "ct.nii.gz"
    out = tmp_path / "masks"
    capsys.readouterr()
    # So few steps find nothing that is more probable than not.
    use = ["segment", "--model", str(whole), str(exam), "--threshold", "0.02"]
    assert main([*use, "--out", str(out), "--masks", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["exams"]["e4"]
    assert facts["fit"] is None and facts["known"] is None and "no atlas" in facts["reason"]
    written = nibabel.load(out / "e4.nii.gz")
    assert json.loads((out / "labels.json").read_text()) == LABELS
    labels = deepatlas.load(whole, "cpu").segment(exam, threshold=0.02)
    assert labels.ids() and labels.fit.known is None
    assert (labels.array.T == np.asarray(written.dataobj)).all()
    assert np.allclose(written.affine, nibabel.load(exam).affine, atol=1e-4)
    for name, identity in LABELS.items():
        mask = np.asarray(nibabel.load(out / "e4" / f"{name}.nii.gz").dataobj)
        assert (mask == labels.mask(identity).T).all()
    # Fewer structures, another threshold, several views.
    arguments = [
        "--out",
        tmp_path / "few",
        "--threshold",
        "0.1",
        "--average",
        "2",
        "--json",
        "--structures",
        "bone",
    ]
    assert main([str(a) for a in ("segment", "--model", whole, exam, *arguments)]) == 0
    assert json.loads((tmp_path / "few" / "labels.json").read_text()) == {"bone": 1}

    arguments = ("--data", data, "--exams", "e1", "e3", "--out", tmp_path / "eval", "--no-pictures", "--json")
    capsys.readouterr()
    assert main([str(a) for a in ("evaluate", "--model", whole, *arguments)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["template"] is None and summary["fit"]["e1"]["fit"] is None
    # In e3 no lung was drawn.
    rows = (tmp_path / "eval" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["e1", "bone"], ["e1", "lung"], ["e3", "bone"]]
    assert "Supervised segmentation" in (tmp_path / "eval" / "report.html").read_text()
    capsys.readouterr()
    assert main(["info", str(whole), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["model"]["structures"] == LABELS and about["run"]["fine_tuned_from"] == str(model)


def test_what_needs_coordinates_refuses_it_in_one_line(whole, model, data, tmp_path, capsys):
    exam, points = data / "e4" / "ct.nii.gz", tmp_path / "points.csv"
    points.write_text("name,x,y,z\na,0,0,0\n")
    use = ("--model", whole)
    for arguments in (
        ("locate", *use, "--from", exam, "--to", exam, "--points", points, "--out", tmp_path / "o.csv"),
        ("template", *use, "--data", data, "--out", tmp_path / "t.h5"),
    ):
        assert f"{whole}: was trained on labels" in refusal(capsys, *arguments)
    line = refusal(capsys, "segment", *use, "--template", "t.h5", exam, "--out", tmp_path / "o")
    assert "has its structures by itself; leave out --template t.h5" in line
    line = refusal(capsys, "segment", *use, "--refine", "3", exam, "--out", tmp_path / "o")
    assert "no atlas to register an exam to" in line
    line = refusal(capsys, "segment", *use, exam, "--out", tmp_path / "o", "--structures", "bon")
    assert "bone" in line
    line = refusal(capsys, "segment", "--model", model, exam, "--out", tmp_path / "o")
    assert "needs --template T; make one with `deepatlas template`" in line
    line = refusal(capsys, "train", "--init", whole, "--data", data, "--out", tmp_path / "r")
    assert "--init" in line and "has no coordinates any more" in line
    masks = deepatlas.load(whole, "cpu")
    for call in (lambda: masks.coordinates(exam), lambda: masks.atlas):
        with pytest.raises(DeepAtlasError) as error:
            call()
        assert "gives masks of its structures, not coordinates" in one_line(error.value)
    with pytest.raises(DeepAtlasError) as error:
        deepatlas.load(model, "cpu").segment(exam)
    assert "needs a template" in one_line(error.value)
    assert masks.fit(exam).known is None


def test_score_and_what_the_grid_keeps(model, data, tmp_path, capsys):
    capsys.readouterr()
    arguments = [a for a in start(model, data, tmp_path / "run") if not a.startswith("data.holdout")]
    arguments += ["--test", str(data), "--test-exams", "e1"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    # Of the same directory, the exam is left out of training.
    assert result["labelled_exams"] == ["e2", "e3"] and result["test_exams"] == ["e1"]
    assert set(result["dice_per_structure"]) == set(LABELS) and 0 <= result["dice"] <= 1
    grid = result["grid"]
    assert grid["size"] == 16 and 0.5 < grid["dice"] < 1
    assert grid["dice"] == pytest.approx(np.mean(list(grid["dice_per_structure"].values())))
    assert (tmp_path / "run" / "evaluation" / "metrics.csv").is_file()


@pytest.mark.slow(1)
def test_bad_input_is_one_line_and_leaves_no_run(model, data, tmp_path, capsys, whole):
    without = tmp_path / "without"
    shutil.copytree(data, without)
    for seg in without.glob("*/seg.nii.gz"):
        seg.unlink()

    def line(*more, of=model, root=data):
        return refusal(capsys, *start(of, root, tmp_path / "run", *more))

    assert "none of its 4 training exams has labels" in line(root=without)
    assert "section" in line("finetune.stepz=3") and "is not known" in line("finetune.stepz=3")
    assert "finetune.steps must be at least 0" in line("finetune.steps=-1")
    assert "above 0 where finetune.cross_entropy is 0" in line("finetune.dice=0", "finetune.cross_entropy=0")
    assert "did you mean" in line("--structures", "bon")
    assert "give the model that it came from" in line(of=whole)
    assert "network.channels=[8,8,16]" in line("network.channels=[8,16,16]")
    assert "has learned from exams of data.crop" in line("data.crop=null")
    assert "no run folder or model file" in line(of="nowhere")
    assert "give --model M" in refusal(capsys, "finetune", "--data", data, "--out", tmp_path / "run")
    assert "leave out --data" in refusal(capsys, "finetune", "--resume", whole, "--data", data)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    # A structure that labels.json names and nobody drew.
    root = tmp_path / "more"
    shutil.copytree(data, root)
    (root / "labels.json").write_text(json.dumps(LABELS | {"spleen": 7}))
    found = refusal(capsys, *start(model, root, tmp_path / "run2", "--structures", "bone", "spleen"))
    assert "spleen is drawn in none of the 3 labelled training exams" in found
    # Weights of another version's network.
    other = checkpoint.load(model)
    other["network"] = {f"{name}_": value for name, value in other["network"].items()}
    checkpoint.save(tmp_path / "other.pt", {k: v for k, v in other.items() if k != "format"})
    assert "its weights are not those of this version's network" in line(of=tmp_path / "other.pt")


def test_a_split_decides_whose_labels_are_used(model, data, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"labelled": ["e2"], "validation": ["e1"]}))
    assert main(start(model, data, tmp_path / "run", "--split", str(split), "--structures", "bone")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["labelled_exams"] == ["e2"] and result["test_exams"] == ["e1"]
    assert result["learned_structures"] == ["bone"] and list(result["dice_per_structure"]) == ["bone"]


def test_exams_of_another_kind(model, data, tmp_path, capsys):
    root = tmp_path / "mr"
    shutil.copytree(data, root)
    for path in root.glob("*/ct.nii.gz"):
        path.rename(path.with_name("mr.nii.gz"))
    assert "data.intensity" in refusal(capsys, *start(model, root, tmp_path / "run"))


@pytest.mark.slow
def test_a_short_training_finds_structures_in_exams_that_it_has_not_seen(model, tmp_path):
    root = write_cohort(tmp_path / "data", 7)
    steps = [
        "finetune.head_steps=10",
        "finetune.steps=80",
        "finetune.batch=4",
        "finetune.lr=0.01",
        "finetune.warmup=5",
    ]
    more = [*steps, "train.average=0.9", "--test", str(root), "--test-exams", "e5", "e6"]
    assert main(start(model, root, tmp_path / "run", *more, "--from-scratch")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["dice"] > 0.6 and result["dice"] > 0.8 * result["grid"]["dice"]
