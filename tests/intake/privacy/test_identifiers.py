"""No identifier reaches a dataset: all eighteen kinds of HIPAA's Safe Harbor are planted wherever text is possible.

Every planted value contains a token that occurs nowhere else. Every byte of the dataset, decompressed and decoded, and
every file name is then searched for the tokens in all encodings that text may have.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import sqlite3
import zipfile
import zlib
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from drawn_objects import rtstruct, saved
from make_dicom import uid, write_capture, write_ct, write_localizer, write_report
from prepare_here import prepare_here
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from small_exams import body

# 45 CFR 164.514(b)(2)(i): (A) to (R).
PLANTED = {
    "name": "Zyxwvut^Quentin",
    "address": "77 Kumquatlane Blefuscu",
    "date of birth": "19330527",
    "telephone": "555-0147-8833",
    "fax": "555-0199-2211",
    "email": "quentin@blefuscu.example",
    "social security": "987-65-4320",
    "record number": "MRN48151623",
    "health plan": "PLANX7734501",
    "account": "ACC0091827364",
    "certificate": "LICQ55512093",
    "vehicle": "VIN4Y1SL65848Z411439",
    "device": "SER8877665544",
    "url": "https://blefuscu.example/p/quentin",
    "ip": "203.0.113.77",
    "biometric": "FPRINTa9f8e7d6",
    "photograph": "faceZQ.jpg",
    "other": "TATTOOdragonZQ",
}
# What must not be found: the values, and the words that identify their owner.
TOKENS = sorted(
    {*PLANTED.values(), "Zyxwvut", "Quentin", "Kumquatlane", "Blefuscu", "1933", "0527", "48151623", "7734501",
     "0091827364", "55512093", "65848Z", "8877665544", "FPRINT", "faceZQ", "TATTOO", "dragonZQ", "0147", "2211"}
)  # fmt: skip
TOKENS = [t for t in TOKENS if len(t) > 4]
NAME, MRN, BORN = PLANTED["name"], PLANTED["record number"], PLANTED["date of birth"]
FOLDER = "Zyxwvut_Quentin_19330527"


def tags(number: int) -> dict:
    """Identifiers in the header, in their own elements and in free text."""
    text = " ".join(PLANTED.values())
    return {
        "PatientName": NAME,
        "PatientID": MRN,
        "OtherPatientIDs": PLANTED["health plan"],
        "PatientBirthDate": BORN,
        "PatientAddress": PLANTED["address"],
        "PatientTelephoneNumbers": PLANTED["telephone"],
        "ReferringPhysicianName": "Lagado^" + NAME,
        "OperatorsName": NAME,
        "InstitutionName": PLANTED["address"],
        "AccessionNumber": PLANTED["account"],
        "StudyID": PLANTED["certificate"][:16],
        "DeviceSerialNumber": PLANTED["device"],
        "StationName": PLANTED["vehicle"][:16],
        "StudyDescription": f"{NAME} {BORN}",
        "SeriesDescription": f"{PLANTED['other']} {PLANTED['email']}",
        "ProtocolName": PLANTED["url"][:60],
        "PatientComments": text,
        "ImageComments": text,
        "ContrastBolusAgent": f"{NAME} {PLANTED['ip']}",
        "ConvolutionKernel": PLANTED["biometric"][:16],
        "StudyDate": BORN,
        "SeriesNumber": int("48151623") + number,
        "PatientMotherBirthName": NAME,
        "EthnicGroup": PLANTED["photograph"],
    }


def poison(path: Path) -> None:
    """Add identifiers in nested sequences, in private elements, and after the pixels."""
    ds = pydicom.dcmread(path)
    item = Dataset()
    item.PatientName, item.PatientID, item.TextValue = NAME, MRN, " ".join(PLANTED.values())
    deeper = Dataset()
    deeper.PersonName, deeper.RequestedProcedureDescription = NAME, PLANTED["url"]
    item.ContentSequence = Sequence([deeper])
    ds.RequestAttributesSequence = Sequence([item])
    ds.OtherPatientIDsSequence = Sequence([deeper])
    block = ds.private_block(0x0011, f"MAKER {NAME}", create=True)
    block.add_new(0x01, "LO", NAME)
    block.add_new(0x02, "UN", " ".join(PLANTED.values()).encode())
    block.add_new(0x03, "SQ", Sequence([deeper]))
    ds.add_new(0xFFFCFFFC, "OB", (" ".join(PLANTED.values()) + " ").encode()[: 2 * 150])
    ds.save_as(path)


def identified_uid(number: int) -> str:
    """Some hospitals put the numbers of patients into their UIDs."""
    return f"1.2.826.0.1.48151623.19330527.{number}"


def plant_dicom(root: Path) -> None:
    ct, seg = body((12, 40, 40), seed=1)
    ct.array = ct.array.clip(min=-1024)
    study, series = identified_uid(1), identified_uid(2)
    folder = root / FOLDER / PLANTED["address"] / MRN
    files = write_ct(folder, ct.array, ct.grid.affine, study=study, series=series, frame=identified_uid(3),
                     tags=tags(0), name=f"{NAME}_{MRN}_{{:04d}}.dcm")  # fmt: skip
    write_ct(folder / "other", ct.array[::2], ct.grid.affine @ np.diag([1, 1, 2, 1]), study=study,
             series=identified_uid(4), number=7, tags=tags(1))  # fmt: skip
    write_localizer(folder / f"{NAME}.dcm", study, tags=tags(2))
    write_capture(folder / PLANTED["photograph"], study, tags=tags(3))
    write_report(folder / f"dose {PLANTED['email']}.dcm", study, tags=tags(4))
    slices = [pydicom.dcmread(f) for f in files]
    z = slices[3].ImagePositionPatient[2]
    square = np.array([[-20, -20, z], [20, -20, z], [20, 20, z], [-20, 20, z]], float)
    names = [NAME, "Quentin_liver", "heart", f"lung {MRN}", f"GTV {BORN}", PLANTED["email"], "TATTOOdragonZQ"]
    drawn = rtstruct(slices, {name: [square] for name in names})
    for keyword, value in tags(5).items():
        setattr(drawn, keyword, value)
    drawn.StructureSetLabel = drawn.StructureSetName = drawn.StructureSetDescription = NAME[:16]
    saved(drawn, folder / f"RS.{MRN}.dcm")
    for path in folder.rglob("*"):
        if path.is_file():
            poison(path)
    broken = root / FOLDER / "broken"
    for number, path in enumerate(write_ct(broken, ct.array, ct.grid.affine, study=identified_uid(9), tags=tags(6),
                                           drop=[4, 5])):  # fmt: skip
        path.rename(broken / f"{PLANTED['social security']}-{number}.dcm")
    cut = root / f"{NAME}.dcm"
    cut.write_bytes(files[0].read_bytes()[:700])
    (root / f"{MRN}.dcm").write_text(" ".join(PLANTED.values()))
    mixed = root / "mixed"
    write_ct(
        mixed / "a",
        ct.array,
        ct.grid.affine,
        study=identified_uid(11),
        series=identified_uid(12),
        tags=tags(7),
    )
    write_ct(mixed / "b", ct.array, ct.grid.affine, study=identified_uid(11), series=identified_uid(13),
             tags={**tags(8), "PatientID": PLANTED["health plan"]})  # fmt: skip
    drop = root / "nothing to draw on"
    drop.mkdir()
    lost = rtstruct(slices, {NAME: [square]})
    lost.StudyInstanceUID, lost.SeriesInstanceUID = uid("lost"), uid("lost", 1)
    lost.ReferencedFrameOfReferenceSequence = Sequence([])
    saved(lost, drop / f"{NAME}.dcm")
    with zipfile.ZipFile(root / f"{FOLDER}.zip", "w") as archive:
        moved = root / "moved"
        for path in write_ct(moved, ct.array, ct.grid.affine, study=identified_uid(21), tags=tags(9)):
            archive.write(path, f"{NAME}/{MRN}/{path.name}")
            path.unlink()
        archive.writestr(f"../{NAME}.dcm", b"escape")


def plant_nifti(root: Path) -> None:
    ct, seg = body((12, 40, 40), seed=2)
    folder = root / f"{NAME} {PLANTED['ip']}"
    folder.mkdir()

    def write(array, path, intent=True):
        image = nib.Nifti1Image(array.transpose(2, 1, 0), ct.grid.affine)
        image.header["descrip"] = f"{NAME} {MRN} {BORN}".encode()[:79]
        image.header["aux_file"] = PLANTED["photograph"].encode()[:23]
        image.header["db_name"] = MRN.encode()[:17]
        if intent:
            image.header["intent_name"] = NAME.encode()[:15]
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, " ".join(PLANTED.values()).encode()))
        image.header.extensions.append(nib.nifti1.Nifti1Extension(2, b"\0" * 8 + NAME.encode()))
        nib.save(image, path)

    write(np.rint(ct.array).astype(np.int16), folder / "ct.nii.gz")
    write(seg.array, folder / "seg.nii.gz")
    table = {f"{NAME}": 1, "lung": 2, f"liver of {MRN}": 3, f"born {BORN}": 4, "Quentin": 5}
    (folder / "labels.json").write_text(json.dumps(table))
    damaged = root / f"{FOLDER}_cut"
    damaged.mkdir()
    (damaged / "ct.nii.gz").write_bytes((folder / "ct.nii.gz").read_bytes()[:3000])
    (damaged / f"{PLANTED['email']}_seg.nii.gz").write_bytes(b"nothing")
    (root / PLANTED["certificate"]).mkdir()
    (root / PLANTED["certificate"] / "labels.json").write_text(f"not JSON: {NAME}")
    write(np.rint(ct.array).astype(np.int16), root / PLANTED["certificate"] / f"{MRN}.nii.gz")
    write(seg.array, root / PLANTED["certificate"] / f"{MRN}_seg.nii.gz")
    (root / PLANTED["certificate"] / f"{MRN}.nii").write_bytes(
        gzip.decompress((folder / "ct.nii.gz").read_bytes()).replace(b"n+1\0", b"Quen")
    )


def plant_others(root: Path) -> None:
    ct, seg = body((12, 40, 40), seed=3)
    for suffix in (".nrrd", ".mha"):
        folder = root / f"{PLANTED['account']}{suffix[1:]}"
        folder.mkdir()
        image = sitk.GetImageFromArray(np.rint(ct.array).astype(np.int16))
        image.SetSpacing((4.0, 4.0, 5.0))
        for key, value in PLANTED.items():
            image.SetMetaData(key.replace(" ", "_"), value)
        sitk.WriteImage(image, str(folder / f"{NAME}{suffix}"))
        raw = (folder / f"{NAME}{suffix}").read_bytes()
        if suffix == ".nrrd":
            (folder / f"{MRN}_broken.nrrd").write_bytes(
                raw.replace(b"dimension: 3", f"dimension: {NAME}".encode())
            )
            (folder / f"{MRN}_odd.nrrd").write_bytes(
                raw.replace(b"encoding: raw", f"encoding: {NAME}".encode())
            )
            labels = sitk.GetImageFromArray(seg.array)
            labels.SetSpacing((4.0, 4.0, 5.0))
            labels.SetMetaData("Segment0_Name", NAME)
            labels.SetMetaData("Segment0_LabelValue", "1")
            labels.SetMetaData("Segment1_Name", "lung")
            labels.SetMetaData("Segment1_LabelValue", "2")
            sitk.WriteImage(labels, str(folder / f"{NAME}.seg.nrrd"))
        else:
            (folder / f"{MRN}.mhd").write_text(
                f"ObjectType = Image\nNDims = 3\nElementDataFile = {NAME}.raw\n"
            )
            broken = raw.replace(b"ElementType = MET_SHORT", f"ElementType = {NAME}".encode())
            (folder / f"{MRN}_broken.mha").write_bytes(broken)
    (root / f"notes.{NAME}").write_text(" ".join(PLANTED.values()))
    (root / f"{NAME}.{MRN}").write_text("an ending that is a number of a record")
    (root / "dangling").symlink_to(root / f"{NAME}.gone")
    (root / f"{FOLDER}2.zip").write_bytes(b"PK\3\4" + NAME.encode() * 20)


def everything(folder: Path):
    """Every text that can be extracted from the dataset: ``(place, bytes)``."""
    for path in sorted(folder.rglob("*")):
        yield str(path), str(path.relative_to(folder)).encode()
        if not path.is_file():
            continue
        raw = path.read_bytes()
        yield str(path), raw
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                found = []
                file.visititems(lambda name, item, found=found: found.append((name, item)))
                for name, item in [("/", file), *found]:
                    yield f"{path}:{name}", name.encode()
                    yield f"{path}:{name} attributes", repr(dict(item.attrs)).encode()
                    if isinstance(item, h5py.Dataset):
                        value = item[()]
                        yield (
                            f"{path}:{name}",
                            value if isinstance(value, bytes) else np.asarray(value).tobytes(),
                        )
                        if np.asarray(value).dtype == object:
                            yield f"{path}:{name}", repr(value).encode()
        if path.suffix == ".sqlite":
            with sqlite3.connect(path) as db:
                for line in db.iterdump():
                    yield f"{path} dump", line.encode()
        if path.suffix == ".html":
            for found in re.findall(rb"base64,([A-Za-z0-9+/=]+)", raw):
                png = base64.b64decode(found)
                yield f"{path} picture", png
                place = 8
                while place < len(png):
                    size, kind = int.from_bytes(png[place : place + 4], "big"), png[place + 4 : place + 8]
                    chunk = png[place + 8 : place + 8 + size]
                    yield f"{path} picture {kind!r}", chunk
                    if kind in (b"iTXt", b"zTXt"):
                        yield f"{path} picture {kind!r}", zlib.decompress(chunk.partition(b"\0")[2][1:])
                    place += 12 + size


def leaks(folder: Path) -> list[str]:
    """The places where tokens occur, in any case and encoding."""
    forms = {}
    for token in TOKENS:
        for text in {token, token.replace("^", " ")}:
            for encoding in ("utf-8", "utf-16-le", "utf-16-be", "latin-1"):
                forms.setdefault(text.lower().encode(encoding), token)
            # base64 of a text depends on its position modulo three.
            for shift in range(3):
                inner = base64.b64encode(b"x" * shift + text.encode())[4 * (shift > 0) : -4].lower()
                forms.setdefault(inner, token) if len(inner) >= 8 else None
            forms.setdefault(text.encode().hex().encode(), token)
    found = []
    for where, data in everything(folder):
        data = data.lower()
        for form, token in forms.items():
            if (at := data.find(form)) >= 0:
                found.append(f"{token!r} in {where}: …{data[max(0, at - 60) : at + 60]!r}")
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    plant_dicom(root)
    plant_nifti(root)
    plant_others(root)
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    dst = tmp_path_factory.mktemp("out") / "dataset"
    return prepare_here(source, dst, histograms=True)


def test_the_search_finds_what_it_looks_for(tmp_path):
    """Tokens that are hidden in each of the places are found."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "x", data=np.frombuffer(b"..Zyxwvut.." * 50, np.uint8), compression="gzip", chunks=(550,)
        )
        file.attrs["who"] = NAME
    with sqlite3.connect(tmp_path / "b.sqlite") as db:
        db.execute("CREATE TABLE t (x TEXT)")
        db.execute("INSERT INTO t VALUES (?)", (MRN,))
    (tmp_path / "c.txt").write_text(PLANTED["address"], encoding="utf-16")
    (tmp_path / "d.html").write_bytes(
        b"base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 5 + b"Blefuscu")
    )
    (tmp_path / f"e{BORN}").write_bytes(b"")
    found = "\n".join(leaks(tmp_path))
    assert all(
        name in found for name in ("a.h5:x", "a.h5:/ attributes", "b.sqlite", "c.txt", "d.html picture")
    )
    assert "e19330527" in found


@pytest.mark.slow(6)
def test_no_identifier_reaches_the_dataset(prepared, source):
    assert prepared.exams >= 5, prepared.refused
    assert leaks(prepared.dataset) == []


def test_planted_exams_were_prepared_or_refused(prepared):
    """Otherwise an empty folder would have been searched."""
    with sqlite3.connect(prepared.dataset / "manifest.sqlite") as db:
        kinds = {row[0] for row in db.execute("SELECT json_extract(facts, '$.format') FROM exams")}
        reasons = " ".join(row[0] for row in db.execute("SELECT reason FROM refusals"))
        series = db.execute("SELECT count(*) FROM series WHERE taken = 0").fetchone()[0]
        names = {n for (text,) in db.execute("SELECT structures FROM exams") for n in json.loads(text)}
    assert kinds == {"dicom", "nifti", "nrrd", "metaimage"} and series >= 2
    assert {"heart", "lung"} <= names and not any("uentin" in n for n in names)
    for words in ("more than one patient", "2 slices missing of 12", "Comprehensive SR", "label table"):
        assert words in reasons, reasons
    assert len(prepared.refused) >= 5


def test_names_are_in_the_private_folder_and_nowhere_else(prepared):
    private = prepared.dataset.with_name("dataset.private")
    key = (private / "key.csv").read_text()
    assert MRN in key and FOLDER in key and identified_uid(1) in key
    assert NAME in (private / "refused.csv").read_text()
    assert all(
        path.stat().st_mode & 0o077 == 0 for path in private.iterdir() if path.suffix in (".csv", ".sqlite")
    )


def test_reasons_stay_readable(prepared):
    """Names are cut out of a message, but not the reason."""
    page = (prepared.dataset / "report.html").read_text()
    assert "files of more than one patient carry the same StudyInstanceUID" in page
    assert page.count("…") < 40
