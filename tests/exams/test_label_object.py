"""DICOM-SEG and RTSTRUCT in place of a label image: the whole masks, of the exam's own series."""

from __future__ import annotations

import json
import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
from affine_model import LABELS, AffineModel, exam, grid_of
from exported_series import NAMES, masks, series, structures, turned_affine
from make_dicom import write_ct

from deepatlas.cli import main as cli
from deepatlas.errors import DataError, DataWarning
from deepatlas.exams.read import read_volume
from deepatlas.io.dicom.read import read_folder
from deepatlas.io.export.labels import write_labels
from deepatlas.localize.template.drawn import names_of, read_drawn
from deepatlas.space.labels import Labels

PRESENT = {name: identity for name, identity in NAMES.items() if name != "spleen"}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """An oblique, anisotropic series, and overlapping structures on it as a DICOM-SEG and an RTSTRUCT."""
    root = tmp_path_factory.mktemp("objects")
    reading = read_folder(series(root / "scan", turned_affine()))
    labels = structures(reading.volume.grid)
    for name, form in (("a.seg.dcm", "dicom-seg"), ("b.rtstruct.dcm", "rtstruct")):
        write_labels(root / name, labels, NAMES, form, source=reading.series)
    return root, reading.volume.grid


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", ["a.seg.dcm", "b.rtstruct.dcm"])
def test_whole_masks_and_names_come_back(scan, name, tmp_path):
    root, grid = scan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seg, table = read_drawn(root / name, grid, "e", source=root / "scan")
    assert set(table) == set(PRESENT) == set(names_of(root / name))
    for structure, identity in table.items():
        np.testing.assert_array_equal(seg.mask(identity), masks(grid.shape)[structure])
    # By a table, whose names may be spelled otherwise; and from a folder in which the file lies alone.
    shutil.copy(root / name, tmp_path / "RS")
    ids = {name.upper(): identity + 300 for name, identity in PRESENT.items()}
    seg, table = read_drawn(tmp_path, grid, "e", ids, source=root / "scan")
    assert table == ids
    np.testing.assert_array_equal(seg.mask(NAMES["liver"] + 300), masks(grid.shape)["liver"])


def test_what_was_drawn_on_another_series_is_refused(scan, tmp_path):
    root, grid = scan
    series(tmp_path / "other", turned_affine(), study="2", series="9")
    for name in ("a.seg.dcm", "b.rtstruct.dcm"):
        with pytest.raises(DataError, match=f"{name}: drawn (on another series|in another frame)"):
            read_drawn(root / name, grid, "e", source=tmp_path / "other")
    with pytest.raises(DataError, match="does not name its structure"):
        read_drawn(root / "a.seg.dcm", grid, "e", {"liver": 1}, source=root / "scan")
    with pytest.raises(DataError, match="neither an RTSTRUCT nor a DICOM-SEG"):
        read_drawn(next((root / "scan").iterdir()), grid, "e", source=root / "scan")
    (tmp_path / "cut.dcm").write_bytes((root / "a.seg.dcm").read_bytes()[:-800])
    with pytest.raises(DataError, match=r"cut\.dcm: truncated"):
        read_drawn(tmp_path / "cut.dcm", grid, "e", source=root / "scan")


def test_an_exam_that_is_no_series_gets_a_line(scan, tmp_path):
    root, grid = scan
    with pytest.warns(DataWarning, match=r"a\.seg\.dcm: the exam is no DICOM series"):
        seg, _ = read_drawn(root / "a.seg.dcm", grid, "e", source=tmp_path / "e.nii.gz")
    assert seg.mask(4 if 4 in seg.ids() else 1).any()


@pytest.mark.slow(1)
def test_propagate_and_template_take_them(tmp_path, monkeypatch, capsys):
    """From a series with an RTSTRUCT onto a NIfTI, with the names and the whole masks."""
    monkeypatch.setattr("deepatlas.api.Model.load", lambda *a, **k: AffineModel(32))
    grid = grid_of(spacing=(3.0, 3.2, 4.0), degrees=(10.0, 0.0, -6.0))
    ct, _ = exam(grid)
    write_ct(tmp_path / "a", ct.array, grid.affine)
    volume = read_volume(tmp_path / "a")
    write_labels(
        tmp_path / "rs.dcm", Labels.of(exam(volume.grid)[1]), LABELS, "rtstruct", source=tmp_path / "a"
    )
    b, seg = exam(grid_of(spacing=(2.5, 2.5, 2.5)), "b")
    nib.save(nib.Nifti1Image(b.array.T.astype(np.int16), b.grid.affine), tmp_path / "b.nii.gz")
    argv = ["propagate", "--model", "m", "--from", tmp_path / "a", "--masks", tmp_path / "rs.dcm", "--to",
            tmp_path / "b.nii.gz", "--out", tmp_path / "o", "--suffix", ".seg.nrrd", "--json", "--quiet"]  # fmt: skip
    assert cli.main([str(a) for a in argv]) == 0
    said = capsys.readouterr()
    table = json.loads(said.out)["labels"]
    assert set(table) == set(LABELS) and "warning" not in said.err
    found = read_volume(tmp_path / "o" / "b.seg.nrrd", labels=True)
    for name, identity in LABELS.items():
        ours, true = found.mask(table[name]), seg.array == identity
        assert 2 * (ours & true).sum() / (ours.sum() + true.sum()) > 0.9
    argv = ["template", "--model", "m", "--image", tmp_path / "a", "--masks", tmp_path / "rs.dcm", "--box",
            "x=Nose", "--out", tmp_path / "t.h5"]  # fmt: skip
    # What the box is to be put around is looked for before the network runs.
    monkeypatch.setattr(AffineModel, "map_exam", None)
    assert cli.main([str(a) for a in argv]) == 1
    err = capsys.readouterr().err
    assert "box x" in err and "Nose" in err and err.count("\n") == 1 and not (tmp_path / "t.h5").exists()
