"""CT headers and RTSTRUCT on any grid, made without the code under test: SimpleITK computes the geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds as decimal

from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_LPS = np.diag([-1.0, -1.0, 1.0])


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation, or one with a flip."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def random_grid(rng: np.random.Generator, shape=(9, 40, 48), turn: bool = True) -> Grid:
    """Oblique (unless ``turn`` is False), anisotropic, flipped."""
    affine = np.eye(4)
    axes = rotation(rng) if turn else np.diag(rng.choice([-1.0, 1.0], 3))
    affine[:3, :3] = axes * rng.uniform([0.6, 0.7, 2.0], [1.2, 1.5, 4.0])
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return Grid(shape, affine)


def itk_image(grid: Grid) -> sitk.Image:
    """An empty image with the grid's geometry: the oracle for physical space."""
    image = sitk.Image(*[int(n) for n in grid.shape[::-1]], sitk.sitkUInt8)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS @ grid.affine[:3, 3]).tolist())
    image.SetDirection((_LPS @ (grid.affine[:3, :3] / spacing)).ravel().tolist())
    return image


def turned(volume: Volume, rng: np.random.Generator) -> Volume:
    """The same voxels in another order: axes permuted and flipped, the affine with them."""
    # The axes of the array.
    axes = rng.permutation(3)
    flips = [axis for axis in range(3) if rng.random() < 0.5]
    array = np.flip(volume.array.transpose(axes), flips)
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, old in enumerate(axes):
        to_old[2 - old, 2 - new] = -1 if new in flips else 1
        to_old[2 - old, 3] = array.shape[new] - 1 if new in flips else 0
    return Volume(array, Grid(array.shape, volume.grid.affine @ to_old))


def ct_headers(grid: Grid) -> list[Dataset]:
    """CT slices that lie where the grid says, as DICOM datasets."""
    image = itk_image(grid)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    slices = []
    for index in range(grid.shape[0]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CT_IMAGE
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jonathan", "MRN4711", "", "O"
        ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, index + 1
        ds.Manufacturer = ""
        ds.ImagePositionPatient = [
            decimal(v) for v in image.TransformContinuousIndexToPhysicalPoint((0.0, 0.0, float(index)))
        ]
        ds.ImageOrientationPatient = [decimal(v) for v in (*direction[:, 0], *direction[:, 1])]
        ds.PixelSpacing = [decimal(image.GetSpacing()[1]), decimal(image.GetSpacing()[0])]
        ds.SliceThickness = decimal(image.GetSpacing()[2])
        ds.Rows, ds.Columns = grid.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelData = np.zeros(grid.shape[1:], np.int16).tobytes()
        slices.append(ds)
    return slices


def series_of(slices: list[Dataset]) -> DicomSeries:
    first = slices[0]
    return DicomSeries(
        patient=str(first.PatientID),
        study=first.StudyInstanceUID,
        series=first.SeriesInstanceUID,
        frame=first.FrameOfReferenceUID,
        slices=(),
        sop_uids=tuple(ds.SOPInstanceUID for ds in slices),
    )


def rtstruct(slices: list[Dataset], structures: dict[str, list], **types: str) -> Dataset:
    """An RTSTRUCT. ``structures`` maps names to contours, ``[N, 3]`` in LPS mm or ``(type, points)``."""
    first = slices[0]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID"):
        setattr(ds, keyword, getattr(first, keyword))
    ds.SeriesInstanceUID, ds.Modality = generate_uid(), "RTSTRUCT"
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = Sequence([_image(s.SOPInstanceUID) for s in slices])
    study = Dataset()
    study.RTReferencedSeriesSequence = Sequence([series])
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = Sequence([study])
    ds.ReferencedFrameOfReferenceSequence = Sequence([frame])
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(structures.items(), 1):
        roi, drawn, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = (
            number,
            name,
            first.FrameOfReferenceUID,
        )
        drawn.ReferencedROINumber = seen.ReferencedROINumber = number
        seen.ObservationNumber, seen.RTROIInterpretedType, seen.ROIInterpreter = (
            number,
            types.get(name, "ORGAN"),
            "",
        )
        drawn.ContourSequence = Sequence([_contour(contour) for contour in contours])
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
        ds.RTROIObservationsSequence.append(seen)
    ds.SpecificCharacterSet = "ISO_IR 192"
    return ds


def _contour(contour) -> Dataset:
    kind, points = contour if isinstance(contour, tuple) else ("CLOSED_PLANAR", contour)
    ds = Dataset()
    ds.ContourGeometricType = kind
    ds.NumberOfContourPoints = len(points)
    ds.ContourData = [decimal(float(v)) for v in np.ravel(points)]
    return ds


def _image(uid: str) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = CT_IMAGE, uid
    return ds


def on_slice(grid: Grid, polygon: np.ndarray, index: float) -> np.ndarray:
    """``[N, 2]`` voxel coordinates (x, y) on slice ``index`` as LPS mm ``[N, 3]``, by SimpleITK."""
    image = itk_image(grid)
    return np.array(
        [
            image.TransformContinuousIndexToPhysicalPoint((float(x), float(y), float(index)))
            for x, y in polygon
        ]
    )


def saved(ds: Dataset, path: Path) -> Found:
    ds.save_as(path, enforce_file_format=True)
    return Found(path, path.name)
