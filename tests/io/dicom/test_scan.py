"""Arbitrary files to series, and one series of each exam with the reasons."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from make_dicom import uid, write_capture, write_ct, write_localizer, write_report
from pydicom.uid import JPEGLSLossless

from deepatlas.errors import DataError
from deepatlas.io.dicom.choose import choose_series, series_names
from deepatlas.io.dicom.found import Found, Refusal
from deepatlas.io.dicom.header import read_header
from deepatlas.io.dicom.kernel import known_kernel, tissue
from deepatlas.io.dicom.read import read_series
from deepatlas.io.dicom.scan import scan_dicom

AFFINE = np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])
CORONAL = np.array([[-0.8, 0, 0, 40], [0, 0, 2.5, 30], [0, -0.7, 0, 100], [0, 0, 0, 1.0]])
SECRETS = ("PAT-0001", "Doe", "Jane", "19500102", "4711", "20200304", "Secret")


def body(slices: int = 6, seed: int = 0, shape=(12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, size=(slices, *shape)).astype(float)


def below(root: Path) -> list[Found]:
    return [Found(p, p.relative_to(root).as_posix()) for p in sorted(root.rglob("*")) if p.is_file()]


def scanned(root: Path):
    scan = scan_dicom(below(root))
    for refusal in scan.refusals:
        assert "\n" not in refusal.reason and not any(s in refusal.reason for s in SECRETS)
    return scan


def test_a_hospital_export(tmp_path):
    """Two patients and three exams, in nested and flat folders, with all the other objects of their studies."""
    s1, s2, s3 = (uid("study", i) for i in range(3))
    other = {"PatientID": "PAT-0002"}
    write_ct(tmp_path / "A" / "deep" / "er", body(6), AFFINE, study=s1, number=2, name="IM{:04d}")
    write_ct(tmp_path / "A", body(9), AFFINE, study=s1, number=3, name="I{}", preamble=False)
    write_localizer(tmp_path / "A" / "topo", s1)
    write_capture(tmp_path / "A" / "shot.dcm", s1)
    write_report(tmp_path / "A" / "dose", s1)
    write_ct(tmp_path / "mixed", body(5, 1), AFFINE, study=s2, number=2, name="a{}", tags=other)
    write_ct(tmp_path / "mixed", body(5, 2), AFFINE, study=s3, number=2, name="b{}", tags=other)
    _dicomdir(tmp_path / "DICOMDIR")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(4000))
    scan = scanned(tmp_path)
    exams = scan.exams()
    assert set(exams) == {("PAT-0001", s1), ("PAT-0002", s2), ("PAT-0002", s3)}
    first = {s.facts["number"]: s for s in exams["PAT-0001", s1]}
    assert {n: s.facts["slices"] for n, s in first.items()} == {1: 1, 2: 6, 3: 9, 99: 1}
    assert first[1].facts["localizer"] and first[99].facts["kind"].startswith("Secondary Capture")
    assert first[2].facts["orientation"] == "axial"
    assert first[2].facts["spacing"] == pytest.approx((0.8, 0.7, 2.5))
    assert first[2].facts["extent"] == pytest.approx(12.5)
    refused = {r.name: r.reason for r in scan.refusals}
    assert set(refused) == {"A/dose", "DICOMDIR"}
    assert "Comprehensive SR" in refused["A/dose"] and "an index" in refused["DICOMDIR"]
    assert {f.name for f in scan.rest} == {"readme.txt", "empty", "noise"}
    choice = choose_series(exams["PAT-0001", s1])
    assert choice.taken is first[3] and len(choice.reasons) == 4
    np.testing.assert_array_equal(read_series(choice.taken).volume.array, body(9))
    for key in (("PAT-0002", s2), ("PAT-0002", s3)):
        assert choose_series(exams[key]).taken is exams[key][0]


def _dicomdir(path: Path) -> None:
    from pydicom.fileset import FileSet

    write_ct(path.parent / "disc-source", body(4), AFFINE)
    files = FileSet()
    for p in sorted((path.parent / "disc-source").iterdir()):
        files.add(p)
    files.write(path.parent / "disc")
    shutil.move(path.parent / "disc" / "DICOMDIR", path)
    shutil.rmtree(path.parent / "disc")
    shutil.rmtree(path.parent / "disc-source")


def test_slices_are_in_the_order_of_their_places(tmp_path):
    paths = write_ct(tmp_path, body(8), AFFINE, shuffle=5)
    (series,) = scanned(tmp_path).series
    assert [f.path for f in series.slices] == paths
    assert list(series.sop_uids) == [pydicom.dcmread(p).SOPInstanceUID for p in paths]
    assert series.frame == pydicom.dcmread(paths[0]).FrameOfReferenceUID


def test_second_copies_are_left_out_and_named(tmp_path):
    paths = write_ct(tmp_path / "a", body(), AFFINE)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    scan = scanned(tmp_path)
    (series,) = scan.series
    assert len(series.slices) == 6 and {f.name[:2] for f in series.slices} == {"a/"}
    assert {r.name for r in scan.refusals} == {f"b/{p.name}" for p in paths}
    assert all("second copy" in r.reason for r in scan.refusals)
    paths[2].write_bytes(paths[2].read_bytes()[:-30])  # now the other copy is the whole one
    scan = scanned(tmp_path)
    (series,) = scan.series
    assert sum(f.name.startswith("b/") for f in series.slices) == 1
    assert f"a/{paths[2].name}" in {r.name for r in scan.refusals}
    np.testing.assert_array_equal(read_series(series).volume.array, body())


def test_one_uid_at_several_places_is_no_copy(tmp_path):
    """A careless anonymiser gave every slice the same SOPInstanceUID."""
    write_ct(tmp_path, body(), AFFINE, tags={"SOPInstanceUID": "1.2.3"})
    scan = scanned(tmp_path)
    assert len(scan.series[0].slices) == 6 and not scan.refusals


def test_uids_that_were_emptied(tmp_path):
    """Some public collections have no study, series or instance UID and no patient."""
    blank = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName"), "")
    for name in ("x", "y"):
        write_ct(tmp_path / name, body(), AFFINE, tags=blank)
    exams = scanned(tmp_path).exams()
    assert len(exams) == 2 and all(len(s) == 1 and len(s[0].slices) == 6 for s in exams.values())


@pytest.mark.parametrize(
    "second",
    [
        {"affine": CORONAL},
        {"affine": AFFINE @ np.diag([1.5, 1.5, 1, 1])},
        {"hu": body(4, 1, (14, 10))},
        {"tags": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}},
        {"tags": {"AcquisitionNumber": 2}},
        {"tags": {"TemporalPositionIdentifier": 2}},
        {"tags": {"NominalPercentageOfCardiacPhase": 75}},
        {"tags": {"AcquisitionTime": "101500"}},
        {"tags": {"ImageType": ["DERIVED", "PRIMARY", "MONO_E"]}},
        {"tags": {"ConvolutionKernel": "B70f"}},
        {"tags": {"FrameOfReferenceUID": "1.2.3"}},
        {"multiframe": True},
    ],
    ids=str,
)
def test_a_series_is_split_into_what_can_be_stacked(tmp_path, second):
    series, study = uid("one series"), uid("study")
    write_ct(tmp_path / "a", body(6), AFFINE, study=study, series=series)
    options = {"hu": body(4, 1), "affine": AFFINE, **second}
    tags = {**options.pop("tags", {})}
    write_ct(tmp_path / "b", options.pop("hu"), options.pop("affine"), study=study, series=series,
             slice_tags={k: {"SOPInstanceUID": uid("b", k)} for k in range(4)}, tags=tags, **options)  # fmt: skip
    scan = scanned(tmp_path)
    assert [(s.series, len(s.slices) * (s.facts["images"] // len(s.slices))) for s in scan.series] == [
        (series, 6),
        (f"{series}#2", 4),
    ]
    assert not scan.refusals
    np.testing.assert_array_equal(read_series(scan.series[0]).volume.array, body(6))
    assert len(set(series_names(scan.series))) == 2


def test_what_makes_no_volume_says_why(tmp_path):
    study = uid("s")
    cases = {
        2: ({"ImagePositionPatient": None}, {}, "ImagePositionPatient"),
        3: ({"ImageOrientationPatient": None}, {}, "no ImageOrientationPatient"),
        4: ({"PixelSpacing": None}, {}, "no PixelSpacing"),
        5: ({}, {"drop": (2,)}, "1 slice missing of 6"),
        6: ({"PixelSpacing": [0, 0]}, {}, "not positive"),
        7: ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.9, 0]}, {}, "right angle"),
        8: ({"PixelSpacing": "abc"}, {}, "no PixelSpacing"),
    }
    for number, (tags, options, _) in cases.items():
        write_ct(
            tmp_path / str(number), body(), AFFINE, study=study, number=number, tags=_raw(tags), **options
        )
    scan = scanned(tmp_path)
    choice = choose_series(scan.series)
    assert choice.taken is None
    for number, (_, _, words) in cases.items():
        (reason,) = [str(r) for name, r in choice.reasons.items() if name.startswith(f"series {number} ")]
        assert words in reason


def _raw(tags: dict) -> dict:
    return tags if tags.get("PixelSpacing") != "abc" else {"PixelSpacing": None, "PatientComments": "x"}


@pytest.mark.slow(1)
def test_damaged_headers_are_refused_and_do_not_stop_the_scan(tmp_path):
    paths = write_ct(tmp_path, body(), AFFINE, syntax=JPEGLSLossless)
    whole = paths[0].read_bytes()
    rng = np.random.default_rng(0)
    for case in range(150):
        data = bytearray(whole)
        if case % 2:
            data = data[: rng.integers(1, len(data))]
        for at in rng.integers(0, min(len(data), 1500), size=4):
            data[at] ^= 1 << int(rng.integers(8))
        paths[0].write_bytes(bytes(data))
        header = read_header(Found(paths[0], "x"))
        if isinstance(header, Refusal):
            assert "\n" not in header.reason and not any(s in header.reason for s in SECRETS)
        for series in scan_dicom(below(tmp_path)).series if case % 5 == 0 else ():
            try:
                read_series(series)
            except DataError as error:
                assert not any(s in str(error) for s in SECRETS)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_nothing_is_printed(tmp_path, capfd, caplog):
    write_ct(tmp_path, body(), AFFINE, tags={"PatientBirthDate": "Secret", "StudyDate": "Secret"})
    for path in tmp_path.iterdir():
        data = path.read_bytes().replace(b"B30f", b"B3\xff\xfe")
        path.write_bytes(data.replace(b"1.2.840.10008.5.1.4.1.1.2", b"Secret.10008.5.1.4.1.1.2 "))
    capfd.readouterr()
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scanned(tmp_path)
    assert capfd.readouterr() == ("", "") and not caplog.records


# -- choice ----------------------------------------------------------------------------------------


def exam(root: Path, *series: dict):
    study = uid(root)
    for number, options in enumerate(series, 2):
        options = {"hu": body(6), "affine": AFFINE, **options}
        write_ct(
            root / str(number),
            options.pop("hu"),
            options.pop("affine"),
            study=study,
            number=number,
            **options,
        )
    return scanned(root).series


def test_the_axial_soft_tissue_series_with_the_most_slices(tmp_path):
    series = exam(
        tmp_path,
        {},
        {"hu": body(9)},
        {"hu": body(12), "tags": {"ConvolutionKernel": "B70f"}},
        {"hu": body(12), "affine": CORONAL},
        {"hu": body(12), "drop": (5,)},
        {"hu": body(12), "tags": {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}},
        {"hu": body(12), "tags": {"ImageType": ["DERIVED", "SECONDARY", "MIP"]}},
        {"hu": body(12), "tags": {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}},
        {"hu": body(12), "tags": {"RescaleType": "MGML"}},
        {"hu": body(9), "tags": {"ConvolutionKernel": None}},
    )
    choice = choose_series(series)
    assert choice.taken is not None and choice.taken.facts["number"] == 3
    reasons = {int(name.split()[1]): str(reason) for name, reason in choice.reasons.items()}
    words = {
        2: "6 slices are fewer than 9",
        3: "taken: axial soft-tissue reconstruction with the most slices of 3",
        4: "sharp reconstruction, for bone or lung (kernel B70f)",
        5: "coronal, not axial",
        6: "1 slice missing of 12",
        7: "derived from other images",
        8: "ImageType MIP",
        9: "no CT: MR Image (modality MR)",
        10: "not Hounsfield units",
        11: "comes first by purpose",
    }
    assert set(reasons) == set(words)
    for number, text in words.items():
        assert text in reasons[number] and reasons[number].startswith("taken" if number == 3 else "not taken")
    assert "series 3 (axial, 9 x 12 x 10, 0.8 x 0.7 x 2.5 mm)" in choice.reasons
    assert choose_series(series[::-1]).taken is choice.taken


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_reasons_hold_no_free_text(tmp_path):
    tags = {
        "SeriesDescription": "Secret lung",
        "ConvolutionKernel": "Secret",
        "ImageType": ["DERIVED", "PRIMARY", "SECRET"],
        "Modality": "CT",
    }
    series = exam(
        tmp_path, {"tags": tags}, {"tags": {**tags, "Modality": "SECRET"}}, {"tags": {"Modality": "DOE^JA"}}
    )
    text = str(choose_series(series).reasons) + str([s.facts for s in series])
    assert not any(s.lower() in text.lower() for s in SECRETS)


def test_without_a_soft_series_none_is_taken(tmp_path):
    series = exam(tmp_path, {"tags": {"ConvolutionKernel": "LUNG"}}, {"affine": CORONAL})
    choice = choose_series(series)
    assert choice.taken is None and not any(r.taken for r in choice.reasons.values())


def test_derived_series_serve_where_there_is_no_original(tmp_path):
    series = exam(tmp_path, {"tags": {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}})
    assert choose_series(series).taken is series[0]


def test_override_by_number_and_by_uid(tmp_path):
    sharp = {"tags": {"ConvolutionKernel": "BONEPLUS"}}
    series = exam(tmp_path, {"hu": body(9)}, sharp, {"affine": CORONAL}, {"drop": (3,)})
    write_localizer(tmp_path / "scout", series[0].study, number=3)
    series = scanned(tmp_path).series
    by_number = {s.facts["number"]: s for s in series if not s.facts["localizer"]}
    for number in (3, "3", by_number[3].series):
        choice = choose_series(series, number)
        assert choice.taken is by_number[3]
        assert sorted(r.taken for r in choice.reasons.values()) == [False] * 4 + [True]
    assert choose_series(series, 4).taken is by_number[4]
    assert choose_series(series, "").taken is by_number[2]
    with pytest.raises(DataError, match="series 5 .* was asked for, but 1 slice missing"):
        choose_series(series, 5)
    with pytest.raises(DataError, match="no such series as the one asked for; the exam has: series 2 "):
        choose_series(series, 77)


@pytest.mark.parametrize(
    ("kernel", "window", "description", "expected"),
    [
        ("B30f", None, "", "soft"),
        ("B31s", None, "", "soft"),
        ("Br38f", 1500, "lung", "soft"),
        ("I31f", None, "", "soft"),
        ("H37s", None, "", "soft"),
        ("B70f", 350, "", "sharp"),
        ("B60s", None, "", "sharp"),
        ("Bl57d", None, "", "sharp"),
        ("Hr64", None, "", "sharp"),
        ("STANDARD", None, "", "soft"),
        ("BONEPLUS", None, "", "sharp"),
        ("LUNG", None, "", "sharp"),
        ("B", None, "", "soft"),
        ("L", None, "", "sharp"),
        ("YC", None, "", "sharp"),
        ("FC13", None, "", "soft"),
        ("FC08-H", None, "", "soft"),
        ("FC30", None, "", "sharp"),
        ("FC52", None, "", "sharp"),
        ("FC86", None, "", "sharp"),
        ("", 400, "", "soft"),
        ("", 1500, "", "sharp"),
        ("", 400, "Thorax 1.0 Lunge", "sharp"),
        ("", None, "CT_LUNG_1.25", "sharp"),
        ("", None, "Abdomen", "unknown"),
        ("", None, "plunger", "unknown"),
        ("John Doe", None, "", "unknown"),
    ],
)
def test_kernels(kernel, window, description, expected):
    assert tissue(kernel, window, description) == expected
    assert known_kernel(kernel) == ("" if kernel == "John Doe" else kernel)
