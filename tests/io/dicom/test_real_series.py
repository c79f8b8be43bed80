"""Two real series, voxel by voxel and corner by corner against SimpleITK's series reader and pydicom's decoder."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from real_exams import real

from deepatlas.exams.cohort import find_exams
from deepatlas.exams.read import read_volume
from deepatlas.io.dicom.choose import choose_series
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.read import read_series
from deepatlas.io.dicom.scan import scan_dicom


@pytest.fixture(scope="module")
def lung(tmp_path_factory) -> Path:
    """A thorax CT of 107 slices with its RTSTRUCT, plan and dose, implicit VR, files numbered out of order."""
    archive = real("lung1/LUNG1-003_dicom.tar.xz")
    folder = tmp_path_factory.mktemp("lung1")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def by_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (z, y, x) and corners (RAS mm) of the largest series of a folder."""
    reader = sitk.ImageSeriesReader()
    series = (reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder)))
    reader.SetFileNames(max(series, key=len))
    image = reader.Execute()
    last = np.array(image.GetSize()) - 1
    corners = [
        image.TransformIndexToPhysicalPoint((np.array(c) * last).tolist()) for c in np.ndindex(2, 2, 2)
    ]
    return sitk.GetArrayFromImage(image), np.array(corners) * (-1, -1, 1)


def agrees(folder: Path, shape: tuple[int, int, int]) -> None:
    notes: list[str] = []
    volume = read_volume(folder, notes=notes)
    assert not notes and volume.array.shape == shape and volume.array.dtype == np.float32
    array, corners = by_itk(folder)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.grid.corners(), corners, atol=1e-6)
    assert np.linalg.det(volume.grid.affine[:3, :3]) > 0


@pytest.mark.slow(2)
def test_lung1(lung):
    folder = next(p for p in lung.iterdir() if p.is_dir())
    agrees(folder, (107, 512, 512))
    assert [e.id for e in find_exams(lung).exams] == [folder.name]


def test_lung1_scan(lung):
    files = [Found(p, p.name) for p in sorted(lung.rglob("*.dcm"))]
    scan = scan_dicom(files)
    assert len(files) == 110 and len(scan.series) == 1 and not scan.rest
    (series,) = scan.series
    assert len(series.slices) == 107 and len(set(series.sop_uids)) == 107
    assert [o.modality for o in scan.labels] == ["RTSTRUCT"] and scan.labels[0].referenced == (series.series,)
    assert sorted(r.reason.split(":")[0] for r in scan.refusals) == ["RT Dose", "RT Plan"]
    choice = choose_series(scan.series)
    assert choice.taken is series
    (name,) = choice.reasons
    assert name == "series 1 (axial, 107 x 512 x 512, 0.977 x 0.977 x 3 mm)"
    shown = str(choice.reasons) + str(series.facts) + str(scan.refusals)
    assert "LUNG1" not in shown and "2018" not in shown


def test_lung1_with_slices_gone_is_refused(lung):
    scan = scan_dicom(Found(p, p.name) for p in sorted(lung.rglob("*.dcm")))
    gone = {f.name for f in scan.series[0].slices[40:43]}
    rest = scan_dicom(Found(p, p.name) for p in sorted(lung.rglob("*.dcm")) if p.name not in gone)
    (reason,) = choose_series(rest.series).reasons.values()
    assert "3 slices missing of 107: 3 after slice 40 (at 117 of 318 mm)" in reason.why


@pytest.mark.slow(2)
def test_totalsegmentator_jpeg2000():
    """20 slices in JPEG 2000 with every UID and the patient emptied; pydicom decodes them with another library."""
    folder = real("totalsegmentator/dicom")
    agrees(folder, (20, 512, 512))
    (series,) = scan_dicom(Found(p, p.name) for p in sorted(folder.iterdir())).series
    reading = read_series(series)
    assert (
        reading.facts["kernel"] == "Br38f"
        and reading.facts["transfer_syntax"] == pydicom.uid.JPEG2000Lossless
    )
    for k in (0, 11, 19):
        ds = pydicom.dcmread(series.slices[k].path)
        try:
            stored = ds.pixel_array
        except RuntimeError:
            pytest.skip("pydicom has no JPEG 2000 decoder here (needs pylibjpeg or Pillow)")
        np.testing.assert_array_equal(
            reading.volume.array[k], stored * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        )
