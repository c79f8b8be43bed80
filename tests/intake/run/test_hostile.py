"""The command on a source with every kind of fault and a few good exams: it ends, with a line for each fault."""

from __future__ import annotations

import csv
import os
import re
import shutil
import socket
import zipfile

import numpy as np
from make_dicom import write_ct
from small_exams import write_cohort

from deepatlas.cli import main as cli
from deepatlas.intake.dataset.check import check_dataset
from deepatlas.intake.dataset.folder import Dataset
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


def _series(folder, number: int) -> list:
    hu = np.random.default_rng(number).integers(-1000, 300, (8, 24, 26))
    hu[:, 6:18, 6:18] = 40
    study = f"1.2.826.0.1.{number}"
    affine = np.diag([-4.0, -4.0, 5.0, 1.0])
    return write_ct(folder, hu, affine, study=study, tags={"PatientID": f"SECRET{number}"})


def _hostile(src) -> None:
    # e1 and e2 have labels, e3 has none.
    write_cohort(src, 3)
    cut = src / "e3" / "ct.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-500])
    _series(src.parent / "good", 1)
    with zipfile.ZipFile(src / "good.zip", "w") as archive:
        for path in sorted((src.parent / "good").iterdir()):
            archive.write(path, f"study/{path.name}")
        archive.writestr("../../escaped.dcm", b"x")
    for gap, damage in (("short", slice(0, -100)), ("headless", slice(300, None))):
        files = _series(src / gap, 2 + len(gap))
        files[3].write_bytes(files[3].read_bytes()[damage])
    with zipfile.ZipFile(src / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"m{number}.dcm", bytes(1_000_000))
    data = bytearray((src / "bomb.zip").read_bytes())
    entries = [match.start() for match in re.finditer(b"PK\1\2", data)]
    for at in entries[1:]:
        data[at + 42 : at + 46] = data[entries[0] + 42 : entries[0] + 46]
    (src / "bomb.zip").write_bytes(data)
    (src / "broken.zip").write_bytes(b"PK\3\4 and no more")
    os.mkfifo(src / "pipe.nii.gz")
    (src / "loop").symlink_to("..")
    (src / "gone.nii").symlink_to("nowhere.nii")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(src)
        server.bind("s.dcm")
        os.chdir(here)
    flat = np.random.default_rng(0).integers(-900, 900, (10, 12)).astype(np.int16)
    write_volume(src / "e4" / "ct.nii", Volume(np.stack([flat] * 8), Grid.from_spacing((8, 10, 12))))
    header = bytearray((src / "e4" / "ct.nii").read_bytes())
    # More columns than the file has.
    header[42:44] = (20000).to_bytes(2, "little")
    (src / "e4" / "ct.nii").write_bytes(header)
    (src / "notes\n.txt").write_text("a name of two lines")


# {end of a name: words of the reason}.
EXPECTED = {
    "e3": "gzip stream ends early",
    "e4": "truncated",
    "../../escaped.dcm": "leads out of the archive",
    "bomb.zip": "overlap",
    "broken.zip": "damaged or truncated archive",
    "pipe.nii.gz": "a FIFO",
    "s.dcm": "a socket",
    "loop": "a loop",
    "gone.nii": "broken symbolic link",
}


def test_a_hostile_source_ends_with_a_line_for_each(tmp_path, capfd, in_this_process):
    src, dst = tmp_path / "src", tmp_path / "dst"
    src.mkdir()
    _hostile(src)
    assert cli.main(["prepare", str(src), str(dst), "--workers", "1"]) == 0
    assert "Traceback" not in capfd.readouterr().err
    dataset = Dataset(dst)
    assert len(dataset) == 3 and check_dataset(dst) == []
    with open(tmp_path / "dst.private" / "key.csv", newline="") as handle:
        names = {row["id"]: row["name"] for row in csv.DictReader(handle)}
    assert {names[exam] for exam in dataset.ids} == {"e1", "e2", "SECRET1"}
    with open(tmp_path / "dst.private" / "refused.csv", newline="") as handle:
        refused = {row["name"]: row["reason"] for row in csv.DictReader(handle)}
    for part, words in EXPECTED.items():
        reasons = [reason for name, reason in refused.items() if name.endswith(part)]
        assert len(reasons) == 1 and words in reasons[0], (part, refused)
    for number, folder in ((2 + len("short"), "short"), (2 + len("headless"), "headless")):
        assert any(f"SECRET{number}" in name or folder in name for name in refused), refused
    assert all("\n" not in name + reason for name, reason in refused.items())
    assert not list(tmp_path.rglob("escaped.dcm"))
    hidden = [p.name for p in (tmp_path / "dst.private").iterdir() if "scratch" in p.name]
    assert hidden == [], "what was unpacked is still there"
    for path in dst.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"SECRET" not in content and str(src).encode() not in content, path


def test_a_source_without_a_usable_exam_is_one_line_and_exit_code_1(tmp_path, capfd, in_this_process):
    src = tmp_path / "src"
    src.mkdir()
    os.mkfifo(src / "a.dcm")
    (src / "b.zip").write_bytes(b"PK")
    (src / "c").symlink_to("c")
    shutil.copy(__file__, src / "d.txt")
    assert cli.main(["prepare", str(src), str(tmp_path / "dst")]) == 1
    assert "deepatlas: error: " in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "dst" / "dataset.json").exists()
