"""A disk that is full: one line, nothing half written, and what was finished stays."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from affine_model import GRIDS, LABELS, AffineModel, anatomy_template, exam
from full_disk import small_files
from mounted import run_mounted

from deepatlas.cli import main as cli
from deepatlas.io.codec import write_volume
from deepatlas.space.volume import Volume

COMMANDS = {
    "segment": ("--template", "t.h5", "--statistics", "--preview", "a.nii.gz"),
    "register": ("--fixed", "a.nii.gz", "--moving", "b.nii.gz"),
    "follow": ("--template", "t.h5", "a.nii.gz", "b.nii.gz"),
    "crop": ("a.nii.gz", "b.nii.gz", "--template", "t.h5", "--structures", "heart"),
    "crop to hdf5": ("a.nii.gz", "--template", "t.h5", "--structures", "heart", "--format", "hdf5"),
    "propagate": ("--from", "a.nii.gz", "--masks", "a-seg.nii.gz", "--suffix", ".nii", "--to", "b.nii.gz"),
}
# Names of structures, which stand before the first mask and are whole.
TABLES = {"labels.json", "labels.label", "labels.ctbl"}


def write_inputs(folder) -> None:
    """Two exams with noise, which does not compress, masks of the first, and a template."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        ct, seg = exam(GRIDS["coarse"], name)
        noisy = ct.array + rng.normal(0, 9, ct.array.shape)
        write_volume(folder / f"{name}.nii.gz", Volume(noisy.astype(np.int16), ct.grid))
    # Noise in a mask as well, so that no file is small.
    speckled = np.where(rng.random(seg.array.shape) > 0.5, seg.array, 0).astype(np.uint8)
    write_volume(folder / "a-seg.nii.gz", Volume(speckled, seg.grid))
    (folder / "labels.json").write_text(json.dumps(LABELS))
    anatomy_template(32).save(folder / "t.h5")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    write_inputs(folder)
    return folder


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *a, **k: AffineModel(32))


@pytest.mark.parametrize("case", COMMANDS)
def test_one_line_and_nothing_half_written(case, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    argv = [
        case.split()[0],
        "--model",
        "m",
        *COMMANDS[case],
        "--quiet",
        "--out",
        str(tmp_path / "new" / "out"),
    ]
    with small_files(700):
        code = cli.main(argv)
    err = capsys.readouterr().err
    assert code == 1 and err.count("\n") == 1, err
    assert err.startswith(f"deepatlas: error: {tmp_path}") and "cannot write" in err
    # The name is that of the file which the user would have got.
    assert "/." not in err
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= TABLES


def test_what_was_finished_stays_and_its_measures_too(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    argv = [
        "segment",
        "--model",
        "m",
        "--template",
        "t.h5",
        "--statistics",
        "--quiet",
        "--out",
        str(tmp_path),
    ]
    taken = cli_segment_fails_at(monkeypatch, "b")
    assert cli.main([*argv, "a.nii.gz", "b.nii.gz"]) == 1
    assert taken == ["a", "b"] and "disk is full" in capsys.readouterr().err
    measured = json.loads((tmp_path / "statistics.json").read_text())
    assert list(measured) == ["a"] and set(measured["a"]["structures"]) == set(LABELS)
    # Another run adds its exams to those that are there.
    monkeypatch.undo()
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *a, **k: AffineModel(32))
    monkeypatch.chdir(inputs)
    assert cli.main([*argv, "b.nii.gz"]) == 0
    assert list(json.loads((tmp_path / "statistics.json").read_text())) == ["a", "b"]
    rows = (tmp_path / "statistics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(LABELS) and rows[1].startswith("a,liver,5,")


def cli_segment_fails_at(monkeypatch, name: str) -> list[str]:
    """Let the mask of one exam meet a full disk; returns the list of exams whose masks were written."""
    from deepatlas.errors import WriteError
    from deepatlas.io.export import labels as module

    before, taken = module.write_labels, []

    def write(path, *arguments, **options):
        taken.append(path.name.split(".")[0])
        if taken[-1] == name:
            raise WriteError(f"{path}: cannot write: the disk is full; free space or write somewhere else")
        return before(path, *arguments, **options)

    monkeypatch.setattr(module, "write_labels", write)
    return taken


JOBS = """
import io, os, sys
import nibabel
from contextlib import redirect_stderr
from pathlib import Path
from unittest import mock
from affine_model import AffineModel
from test_full_disk_of_commands import COMMANDS, write_inputs
from deepatlas.cli import main as cli
write_inputs(Path("."))
for case, argv in COMMANDS.items():
    said = io.StringIO()
    with redirect_stderr(said), mock.patch("deepatlas.api.Model.load", lambda *a, **k: AffineModel(32)):
        code = cli.main([case.split()[0], "--model", "m", *argv, "--quiet", "--out", "mounted/" + case])
    left = [f for _, _, files in os.walk("mounted") for f in files]
    print(code, "|", said.getvalue().strip(), "|", *left)
    for f in left:
        # A mask that fitted before the disk was full stays, and is whole.
        assert f.startswith("labels.") or nibabel.load(os.path.join("mounted", case, f)).get_fdata().any(), f
        os.unlink(os.path.join("mounted", case, f))
"""


@pytest.mark.slow(2)
def test_a_disk_that_is_really_full(tmp_path):
    lines = run_mounted(JOBS, tmp_path, "size=24k,nr_inodes=64")
    assert len(lines) == len(COMMANDS)
    for line in lines:
        code, said, left = (part.strip() for part in line.split("|"))
        assert code == "1" and said.startswith("deepatlas: error: mounted/") and "the disk is full" in said, (
            line
        )
        assert set(left.split()) <= TABLES | {"a.nii.gz", "b.nii.gz"} and os.linesep not in said
