"""The examples of docs/templates.md run as they stand: with a model whose coordinates are known, and with a network."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from affine_model import GRIDS, LABELS, exam
from affine_user import AffineUser

import deepatlas
from deepatlas import Box, Example, Markups, Point, Template, write_markups
from deepatlas.api import Model
from deepatlas.cli.main import main
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.io.codec import write_volume

PAGE = Path(__file__).resolve().parents[1] / "docs" / "templates.md"
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S))
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, grid in (("a", "coarse"), ("b", "anisotropic")):
        ct, seg = exam(GRIDS[grid], name)
        write_volume(tmp_path / f"{name}.nii.gz", ct)
        if name == "a":
            write_volume(tmp_path / "a-seg.nii.gz", seg)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow(1)
def test_the_examples_of_templates_and_of_the_loop_run(folder, monkeypatch, capsys):
    monkeypatch.setattr(deepatlas, "load", lambda name: AffineUser())
    names: dict = {}
    for block in BLOCKS[:2]:
        exec(compile(block, PAGE.name, "exec"), names)
    found = names["found"]
    np.testing.assert_allclose(found.points.points, [(5.0, -4.0, 12.0)], atol=0.05)
    assert [box.name for box in found.boxes] == ["roi", "organs"] and found.found == 3
    truth = exam(GRIDS["anisotropic"], "b")[1]
    assert min(dice(names["labels"].mask(i), truth.array == i) for i in LABELS.values()) > 0.9
    assert {p.name for p in folder.glob("b*")} == {"b.nii.gz", "b-seg.nii.gz", "b.mrk.json", "better.h5"}
    assert deepatlas.Template.load("better.h5").meta["exams"] == ["a", "b"]
    assert len(list((folder / "coordinates").iterdir())) == 2


@pytest.mark.slow(2)
def test_the_commands_run_one_after_the_other(folder, monkeypatch, capsys):
    def load(name, **settings):
        model = AffineUser()
        model.refine, model.average = settings["refine"] or 0, settings["average"]
        return model

    monkeypatch.setattr(Model, "load", load)
    (folder / "a-seg.nii.gz").rename(folder / "seg.nii.gz")
    write_volume(folder / "c" / "ct.nii.gz", exam(GRIDS["flipped"], "c")[0])
    marks = Markups((Point("carina", (5.0, -4.0, 12.0)), Point("apex", (0.0, 10.0, 30.0))))
    for name in ("landmarks.mrk.json", "landmarks.fcsv", "landmarks.csv"):
        write_markups(name, marks)
    write_markups("rois.mrk.json", Markups(boxes=(Box.between("roi", (-30, -20, -25), (20, 25, 30)),)))
    AffineUser().template(Example("b.nii.gz", marks=Markups((Point("other", (1.0, 2.0, 3.0)),)))).save(
        "other.h5"
    )
    commands = [
        shlex.split(line, comments=True) for line in SHELL.splitlines() if line.startswith("deepatlas ")
    ]
    assert [c[1] for c in commands] == [
        "propagate", "propagate", "locate", "template", "locate", "template-edit", "template-edit", "info",
    ]  # fmt: skip
    for command in commands:
        code, err = main(command[1:]), capsys.readouterr().err
        assert code == 0 and "error" not in err, (command, err)
    assert {p.name for p in (folder / "carried").iterdir()} == {
        "labels.json",
        "b.nii.gz",
        "c.nii.gz",
        "b.mrk.json",
    }
    assert [p.name for p in Template.load("both.h5").marks.points] == ["bifurcation", "apex", "other"]
    assert {p.name for p in (folder / "atlas" / "masks").iterdir()} == {f"{n}.nii.gz" for n in LABELS}


@pytest.mark.slow(2)
def test_the_example_with_monai_runs(folder, monkeypatch, capsys):
    load = deepatlas.load
    monkeypatch.setattr(deepatlas, "load", lambda name: load(name, device="cpu", refine=0))
    names: dict = {"deepatlas": deepatlas}
    exec(compile(BLOCKS[2], PAGE.name, "exec"), names)
    x, model = names["x"], deepatlas.load("headneck")
    channels = 1 + 3 + model.config.network.features
    assert tuple(x.shape) == (channels, 32, 32, 32) and "8, 32, 32, 32" in capsys.readouterr().out
    # The channels belong to the voxels: those of the crop are those of the exam there.
    whole = torch.cat([model.coordinates("a.nii.gz"), model.features("a.nii.gz")]).permute(0, 3, 2, 1)
    first = np.linalg.inv(GRIDS["coarse"].affine) @ np.asarray(x.affine)[:, 3]
    i, j, k = np.rint(first[:3]).astype(int)
    want = whole[:, i : i + 32, j : j + 32, k : k + 32]
    torch.testing.assert_close(x.as_tensor()[1:], want, rtol=1e-4, atol=1e-4)
