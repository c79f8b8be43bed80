"""No command writes onto what it reads, and ``--out`` is the file or the folder that a command means."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from small_dataset import write_dataset
from small_exams import LABELS, body, one_line

from deepatlas.cli.main import main
from deepatlas.errors import DataError
from deepatlas.exams.outputs import (
    check_out_file,
    check_out_folder,
    lies_in,
    refuse_overwriting,
    same_place,
)
from deepatlas.io.codec import write_volume

# Never loaded: a command is refused before it loads its model.
MODEL = ("--model", "headneck", "--template", "headneck")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A single CT, a data directory and a dataset."""
    root = tmp_path_factory.mktemp("made")
    ct, seg = body()
    write_volume(root / "scan.nii.gz", ct)
    write_volume(root / "data" / "e1" / "ct.nii.gz", ct)
    write_volume(root / "data" / "e1" / "seg.nii.gz", seg)
    (root / "data" / "labels.json").write_text(json.dumps(LABELS))
    (root / "points.csv").write_text("name,x,y,z\na,1,2,3\n")
    (root / "names.json").write_text('{"bone": ["bone"]}')
    write_dataset(root / "set")
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of what was made, which is the working directory, with a few links."""
    root = tmp_path / "here"
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refused(capsys, *argv: str) -> str:
    """The line with which a command is refused."""
    assert main(list(argv)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("deepatlas: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("segment", *MODEL, "scan.nii.gz", "--out", "."), "scan.nii.gz: is read by this command and would"),
        (("segment", *MODEL, "scan.nii.gz", "--out", "data/.."), "scan.nii.gz"),
        (("segment", *MODEL, "scan.nii.gz", "--out", "linked"), "linked/scan.nii.gz: is (part of) scan.nii.gz"),
        (("segment", *MODEL, "scan.nii.gz", "--out", "hard"), "hard/scan.nii.gz: is (part of) scan.nii.gz"),
        (("segment", *MODEL, "scan.nii.gz", "--out", "soft"), "soft/scan.nii.gz: is (part of) scan.nii.gz"),
        (("segment", *MODEL, "soft/scan.nii.gz", "--out", "."), "scan.nii.gz: is (part of) soft/scan.nii.gz"),
        (("segment", *MODEL, "data", "--out", "data"), "data/labels.json"),
        (("segment", *MODEL, "data/e1", "--out", "data"), "data/labels.json"),
        (("segment", *MODEL, "scan.nii.gz", "--out", "new.nii.gz"), "has the name of a .nii.gz file"),
        (("segment", *MODEL, "scan.nii.gz", "--out", "points.csv"), "is a file, and --out is a folder"),
        (("segment", *MODEL, "scan.nii.gz", "--out", "points.csv/x"), "points.csv is a file, not a folder"),
        (("evaluate", *MODEL, "--data", "set", "--out", "set"), "set/report.html"),
        (("evaluate", *MODEL, "--data", "data", "--out", "out.csv"), "has the name of a .csv file"),
        (("template", "--model", "headneck", "--data", "set", "--out", "set/packed.h5"), "packed.h5: is read"),
        (("template", "--model", "model.pt", "--data", "data", "--out", "model.h5"), "is (part of) model.pt"),
        (("template", "--model", "headneck", "--data", "data", "--out", "t.nii.gz"), "suffix of another format"),
        (("template", "--model", "headneck", "--data", "data", "--out", "data"), "is a folder, and --out is a"),
        (("locate", "--model", "headneck", "--from", "scan.nii.gz", "--to", "data/e1", "--points", "points.csv",
          "--out", "data/../points.csv"), "points.csv"),
        (("locate", "--model", "headneck", "--from", "scan.nii.gz", "--to", "data/e1", "--points", "points.csv",
          "--out", "scan.nii.gz"), "suffix of another format"),
        (("prepare", "data", "linked/data"), "is the source itself"),
        (("prepare", "data", "linked/data/x"), "lies in the source"),
        (("prepare", "data", "points.csv"), "is a file, and DST is a folder"),
        (("prepare", "data", "new.h5"), "has the name of a .h5 file"),
        (("prepare", "data", "set", "--labels", "set/dataset.json"), "dataset.json: lies in"),
        (("prepare", "data", "set", "--labels", "hard.json"), "is (part of) hard.json"),
        (("phantom", "points.csv"), "is a file, and OUT is a folder"),
        (("phantom", "new.nii.gz"), "has the name of a .nii.gz file"),
        (("train", "--data", "data", "--out", "linked/data"), "is the data itself"),
        (("train", "--data", "set", "--out", "set/run"), "lies in the dataset"),
        (("train", "--data", "data", "--out", "run"), "is (part of) data/labels.json"),
        (("train", "--data", "data", "--out", "points.csv"), "is a file, and --out is a folder"),
    ],
)  # fmt: skip
def test_no_command_writes_onto_what_it_reads(here, capsys, argv, words):
    (here / "linked").symlink_to(".")
    for folder in ("hard", "soft", "run"):
        (here / folder).mkdir()
    os.link("scan.nii.gz", "hard/scan.nii.gz")
    os.link("set/dataset.json", "hard.json")
    os.link("data/labels.json", "run/config.json")
    (here / "soft" / "scan.nii.gz").symlink_to("../scan.nii.gz")
    (here / "model.pt").write_bytes(b"a model")
    os.link("model.pt", "model.h5")
    before = content(here)
    assert words in refused(capsys, *argv)
    assert content(here) == before


def test_a_slice_in_the_folder_of_a_series_is_not_overwritten_but_other_files_in_it_are(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "case.nii.gz").write_bytes(bytes(128) + b"DICM" + bytes(8))
    (series / "mask.nii.gz").write_bytes(b"a mask of the last run")
    (tmp_path / "link").symlink_to(series)
    with pytest.raises(DataError, match="case.nii.gz: is .part of."):
        refuse_overwriting([series / "case.nii.gz"], [tmp_path / "link"])
    refuse_overwriting([series / "mask.nii.gz", series / "new.nii.gz"], [tmp_path / "link"])


def test_names_that_cannot_be_written_are_refused_before_any_work(here, capsys, tmp_path):
    odd, long = os.fsdecode(b"M\xfcl"), "x" * 250
    assert "a run cannot have a name that is not UTF-8" in refused(
        capsys, "train", "--data", "data", "--out", odd
    )
    assert "a run cannot have" in refused(capsys, "train", "--resume", odd)
    assert "a dataset cannot have" in refused(capsys, "prepare", "data", odd)
    shutil.copy("scan.nii.gz", f"{long}.nii")
    err = refused(capsys, "segment", *MODEL, f"{long}.nii", "--out", "new")
    assert "the name is too long; choose a shorter one" in err and not (here / "new").exists()


def test_names_that_are_meant_are_accepted(tmp_path):
    for name in ("runs/v0.1", "new", "a.b.c", "."):
        check_out_folder(tmp_path / name)
    (tmp_path / "odd.h5").mkdir()
    check_out_folder(tmp_path / "odd.h5")
    for name in ("t.h5", "T.H5", "new/t.hdf5", "template", "template.v2"):
        check_out_file(tmp_path / name, (".h5", ".hdf5"))
    with pytest.raises(DataError) as error:
        check_out_file(tmp_path / "odd.h5", (".h5",))
    assert "give a file name, such as" in one_line(error.value)


def test_places_are_compared_as_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    assert same_place(tmp_path / "link", tmp_path / "a") and not same_place(tmp_path, tmp_path / "a")
    assert not same_place(tmp_path / "none", tmp_path / "none")
    assert lies_in(tmp_path / "link" / "b" / "new", tmp_path / "a")
    assert lies_in(tmp_path / "a", tmp_path / "link")
    assert not lies_in(tmp_path / "ab", tmp_path / "a")


def test_a_place_where_nothing_can_be_made_is_found_before_the_work(made, tmp_path, monkeypatch, capsys):
    nowhere = Path("/proc/deepatlas/new")
    for check in (check_out_folder, lambda path: check_out_file(path, (".h5",))):
        with pytest.raises(DataError, match="nothing can be made in /proc; choose another folder"):
            check(nowhere)
    check_out_folder(nowhere, writes=False)
    data, scan, points = made / "data", made / "scan.nii.gz", made / "points.csv"
    carried = ("--model", "headneck", "--from", scan, "--points", points, "--to", scan)
    commands = [
        ("segment", *MODEL, scan, "--out", nowhere),
        ("template", "--model", "headneck", "--data", data, "--out", nowhere / "t.h5"),
        ("propagate", *carried, "--out", nowhere),
        ("locate", *carried, "--out", nowhere / "f.csv"),
        ("locate", *carried, "--out", f"{nowhere}/"),
        ("register", "--model", "headneck", "--fixed", scan, "--moving", scan, "--out", nowhere),
        ("follow", *MODEL, scan, scan, "--out", nowhere),
        ("crop", scan, *MODEL, "--structures", "Mandible", "--out", nowhere),
        ("uncrop", data / "e1" / "seg.nii.gz", "--exam", scan, "--out", nowhere / "a.nii.gz"),
        ("evaluate", *MODEL, "--data", data, "--out", nowhere),
        ("calibrate", *MODEL, "--data", data, "--out", nowhere / "t.h5"),
        ("template-edit", "headneck", "--out", nowhere / "t.h5"),
        ("template-edit", "headneck", "--export", nowhere),
        ("index", data, *MODEL, "--out", nowhere / "i.sqlite"),
        ("report", data, *MODEL, "--out", nowhere / "r.html"),
        ("export", made / "set", "--out", nowhere),
        ("phantom", nowhere),
        ("train", "--data", data, "--out", nowhere),
    ]
    # Neither a model nor the voxels of an exam are read before.
    monkeypatch.setattr("deepatlas.api.Model.load", None)
    for command in commands:
        assert "cannot write: nothing can be made in /proc" in refused(capsys, *map(str, command)), command
    # Whatever the permissions say, a trial tells, and leaves nothing.
    monkeypatch.setattr(Path, "mkdir", _read_only)
    with pytest.raises(DataError, match="out: cannot write: the file system is read-only"):
        check_out_folder(tmp_path / "out")
    with pytest.raises(DataError, match=f"{tmp_path}: cannot write"):
        check_out_folder(tmp_path)
    monkeypatch.undo()
    check_out_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _read_only(path, *arguments, **options):
    raise OSError(errno.EROFS, "Read-only file system", str(path))
