"""Runs that learn from labels: kill and resume, several processes, and what is wrong with labels."""

import json
import os
import shutil

import pytest
import torch
from fast_settings import FAST
from forked import ranks
from small_exams import LABELS, one_line, write_cohort

from deepatlas import checkpoint
from deepatlas.errors import DeepAtlasError
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.train.__main__ import main
from deepatlas.train.experiment import Experiment
from deepatlas.train.log import RunLog

SETTINGS = [
    *(s for s in FAST if "phantom" not in s and "similarity" not in s),
    "loss.similarity=intensity",
    "loss.labels=0.5",
    "data.labelled_share=0.5",
    "data.elastic=0.05",
    "data.holdout=0",
    "coarse.lr=0.0005",
    "train.lr=0.0005",
    "distil.steps=[2]",
    "distil.batch=2",
    "cohort.steps=2",
    "refine.steps=0",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four exams, of which the last has no labels."""
    return write_cohort(tmp_path_factory.mktemp("labelled") / "data", 4)


@pytest.fixture(scope="module", autouse=True)
def environment(no_pictures, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        # No template and no score: they are not about labels in training.
        patch.setattr("deepatlas.train.experiment.score", lambda *_: {"training_seconds": 0})
        yield os.environ | {"OMP_NUM_THREADS": "1"}


def start(data, out, *settings):
    place = ["--data", str(data), "--preset", "tiny", "--out", str(out), "--device", "cpu", "--json"]
    return [*place, *SETTINGS, *settings, "--quiet"]


def weights(out):
    return checkpoint.load(out / "checkpoint.pt")["modules"]


def records(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(start(data, out)) == 0
    return out


@pytest.mark.slow(2)
def test_a_run_learns_from_labels(whole):
    names = [line["phase"] for line in records(whole)]
    assert [n for n in dict.fromkeys(names) if n.startswith(("labels", "level", "register"))] == [
        "labels-2", "level-2", "labels-1", "level-1", "labels-0", "level-0", "labels-round-0", "register-0",
    ]  # fmt: skip
    level = [line for line in records(whole) if line["phase"] == "level-0"]
    assert all(line["explicit_labels"] > 0 for line in level)
    # What it has learned is a template of the model.
    model, template = Engine.load(whole, "cpu"), Template.load(whole / "template-learned.h5")
    template.check_model(model.fingerprint)
    assert template.labels == LABELS and template.masks.max() > 0
    assert model.card["labels"] == {"exams": 3, "structures": list(LABELS)}
    assert (torch.from_numpy(template.masks) == weights(whole)["labels"]["values"][0]).all()


class _Killed(BaseException):
    """What nothing in the run catches."""


@pytest.mark.parametrize(
    ("at", "resident"),
    [
        pytest.param("level-0", "false", marks=pytest.mark.slow),
        pytest.param("labels-1", "auto", marks=pytest.mark.slow),
        pytest.param("register-0", "auto", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(data, whole, tmp_path, monkeypatch, at, resident):
    out = tmp_path / "run"
    record = RunLog.record

    def killed(log, phase, step, overall, **scalars):
        if phase == at:
            raise _Killed
        record(log, phase, step, overall, **scalars)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "record", killed)
        with pytest.raises(_Killed):
            main(start(data, out, "train.checkpoint_minutes=0", f"data.resident={resident}"))
    assert not (out / "model.pt").exists()
    assert main(["--resume", str(out), "--device", "cpu", "--quiet", "--json"]) == 0
    for module, values in weights(whole).items():
        for name, value in weights(out)[module].items():
            assert torch.equal(value, values[name]), (module, name)
    assert records(out) == records(whole)


@pytest.mark.slow
def test_two_processes_compute_the_run_of_one(data, whole, environment, tmp_path):
    out = tmp_path / "run"
    ranks("undrawn", ["train", *start(data, out)], environment, 2, tmp_path)
    ours, theirs = records(out), records(whole)
    assert [(r["phase"], r["step"]) for r in ours] == [(r["phase"], r["step"]) for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for key in set(a) - {"phase", "folds", "overlap"}:
            assert a[key] == pytest.approx(b[key], rel=5e-2, abs=5e-3), (a["phase"], a["step"], key)
    a, b = (weights(folder)["labels"]["values"] for folder in (out, whole))
    assert (a - b).abs().flatten().quantile(0.99) < 1e-2 and b.max() > 0.01


@pytest.mark.slow(2)
def test_without_weight_labels_are_not_read(data, tmp_path):
    """The run of exams with labels is that of the same exams without, bit for bit."""
    without = tmp_path / "data"
    shutil.copytree(data, without)
    for seg in without.glob("*/seg.nii.gz"):
        seg.unlink()
    off = ["loss.labels=0", "data.labelled_share=0", "distil.steps=[]"]
    for root, name in ((data, "with"), (without, "without")):
        assert main(start(root, tmp_path / name, *off)) == 0
    ours, theirs = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert list(ours) == list(theirs) == ["network", "atlas", "autoencoder"]
    assert all(torch.equal(v, theirs[m][k]) for m, values in ours.items() for k, v in values.items())
    assert records(tmp_path / "with") == records(tmp_path / "without")
    assert not (tmp_path / "with" / "template-learned.h5").exists()


def test_no_labels_at_all(cohort, tmp_path, capsys):
    assert main(start(cohort, tmp_path / "run")) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "loss.labels=0.5 learns from labels, and none of the 3 training exams has any" in line
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_share_needs_labels():
    from deepatlas.presets import preset

    with pytest.raises(DeepAtlasError) as error:
        preset("tiny").override(["data.labelled_share=0.5"]).validate()
    assert "data.labelled_share must be 0 where loss.labels is 0" in one_line(error.value)


@pytest.mark.slow(2)
def test_what_is_not_learned_is_said(data, tmp_path, capsys):
    """A structure that no exam shows, an exam whose segmentation holds nothing, and labels of another grid."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (root / "labels.json").write_text(json.dumps({**LABELS, "spleen": 7}))
    from small_exams import body

    from deepatlas.io.codec import write_volume
    from deepatlas.space.volume import Volume

    seg = body(seed=1)[1]
    write_volume(root / "e1" / "seg.nii.gz", Volume(seg.array * 0, seg.grid))
    other = body((20, 40, 40), seed=2)[1]
    write_volume(root / "e2" / "seg.nii.gz", other)
    assert main([a for a in start(root, tmp_path / "run") if a != "--quiet"]) == 0
    said = capsys.readouterr().err
    assert "labels of 2 structures in 1 of 3 training exams are learned" in said
    assert "not learned, because no training exam has a label of it: spleen" in said
    assert "segmentations without a voxel count as not drawn: e1" in said
    assert "do not match" in said and "e2" in said
    # Resumed with other structures, it would be another run.
    checkpointed = Experiment.resume(tmp_path / "run", device="cpu", quiet=True)
    checkpointed.state["facts"]["structures"] = ["bone", "liver"]
    with pytest.raises(DeepAtlasError) as error:
        checkpointed.run()
    assert "liver is gone; lung is new; restore them" in one_line(error.value)
