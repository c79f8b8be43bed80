"""The examples of docs/aligning.md run as they stand, with a model whose coordinates are known."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
from affine_model import GRIDS, LABELS, anatomy_template, exam
from affine_user import AffineUser

import deepatlas
from deepatlas.cli.main import build_parser
from deepatlas.evaluate.metrics.dice import dice
from deepatlas.space.box import Box
from deepatlas.space.markup import Markups

PAGE = Path(__file__).resolve().parents[1] / "docs" / "aligning.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_examples_in_python_run(tmp_path, monkeypatch, capsys):
    for name, grid in (("a", "coarse"), ("b", "anisotropic")):
        ct, seg = exam(GRIDS[grid], name)
        ct.save(tmp_path / f"{name}.nii.gz")
        seg.save(tmp_path / f"{name}-seg.nii.gz")
    box = Box("pons", np.array([0.1, 0.1, 0.2]), np.diag([0.3, 0.3, 0.25]))
    anatomy_template(32, Markups(boxes=(box,))).save(tmp_path / "t.h5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deepatlas, "load", lambda name: AffineUser())
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(compile(block, PAGE.name, "exec"), names)
    np.testing.assert_allclose(names["places"], [[5.0, -4.0, 12.0]], atol=0.05)
    truth = exam(GRIDS["coarse"], "a")[1]
    assert min(dice(truth.array == i, names["moved"].array == i) for i in LABELS.values()) > 0.85
    assert deepatlas.read_volume("b-on-a.nii.gz").grid.matches(truth.grid, 1e-3)
    assert names["view"].volume.grid.shape == (64, 96, 96) and names["back"].grid == names["view"].exam_grid
    assert "1.0 Grid(96 x 96 x 64" in capsys.readouterr().out


def test_the_commands_have_these_options():
    # A line that ends with a backslash goes on.
    lines = re.findall(r"^deepatlas (.*)$", TEXT.replace("\\\n", " "), re.M)
    assert len(lines) == 6
    for line in lines:
        args = build_parser().parse_args(shlex.split(line))
        assert args.out and callable(args.run)
