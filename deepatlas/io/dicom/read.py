"""Read a DICOM series as a CT volume: decoded, stacked by position, and put on an orthogonal, even grid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, PassingError
from deepatlas.io.dicom.choose import choose_series, no_anatomy
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.geometry import SAME_GRID, SAME_ORIENTATION, SAME_SPACING, Stack, arrange
from deepatlas.io.dicom.header import Header
from deepatlas.io.dicom.kernel import known_kernel, tissue
from deepatlas.io.dicom.parts import plane_of
from deepatlas.io.dicom.pixels import read_pixels
from deepatlas.io.dicom.scan import Scan, scan_dicom
from deepatlas.io.dicom.series import DicomSeries, Reading
from deepatlas.space.constants import AIR, LPS_FROM_RAS, MIN_VOXELS
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# Difference of a direction cosine between slices from which on a warning is given: 0.05 mm at the rim of a body.
_WOBBLE = 2e-4
# A CT without a rescale whose lowest value is above this is not in Hounsfield units.
_NO_AIR = -500.0


def read_series(series: DicomSeries) -> Reading:
    """Read the pixels of a series into a CT. Each file is opened once; its header comes with the series.

    Positions come from ImagePositionPatient and ImageOrientationPatient alone. The array is float32 Hounsfield
    units [slices, rows, columns]; its axes x (along a row), y (down a column) and z (along their cross product)
    are right-handed, and its :class:`~deepatlas.space.grid.Grid` is in RAS+ mm.

    Corrected, and listed in ``corrections``: a gantry tilt (every slice is moved within its plane onto orthogonal
    axes by linear interpolation; rows and columns that this adds are -1024 HU), uneven spacing without a gap (linear
    interpolation between slices), second copies of a slice with equal pixels, PixelPaddingValue (set to -1024 HU).

    Raises:
        DataError: one line without identifiers for everything that leaves the volume in doubt: missing slices (how
            many, and where), different images at one position, files that cannot be decoded or are cut short, values
            that are not Hounsfield units.
        PassingError: a file cannot be read now, or has changed since its header was read.
    """
    headers = series.headers
    for number, header in enumerate(headers, 1):
        if header.orientation is None or header.positions is None or header.spacing is None:
            raise DataError(
                f"image {number} of {len(headers)} has no usable ImagePositionPatient, ImageOrientationPatient or "
                "PixelSpacing; export the series again"
            )
    head = headers[0]
    positions = _positions(series)
    thickness = np.concatenate([header.thicknesses for header in headers])
    plane = plane_of(headers)
    stack = arrange(positions, plane.orientation, plane.spacing, thickness)
    if len(stack.planes) < MIN_VOXELS:
        raise DataError(f"the series has {len(stack.planes)} slices; a volume needs at least {MIN_VOXELS}")
    corrections, warnings = list(stack.corrections), [*stack.warnings, *series.facts.get("left_out", ())]
    try:
        array = _slices(series, stack, corrections, warnings)
    except MemoryError as error:
        size = f"{len(stack.planes)} x {head.rows} x {head.columns}"
        raise DataError(f"no memory for its {size} voxels; read it on a larger machine") from error
    _check_values(array, headers, warnings)
    wobble = max(float(np.abs(np.subtract(h.orientation, head.orientation)).max()) for h in headers)  # type: ignore
    if wobble > _WOBBLE:
        warnings.append(f"the slices' orientation differs by up to {np.degrees(wobble):.2f} degrees")
    spacings = np.array([h.spacing for h in headers])
    if np.ptp(spacings, axis=0).max() > SAME_SPACING:
        warnings.append(
            f"the slices' PixelSpacing differs ({spacings.min():.7g} to {spacings.max():.7g} mm); the mean is used, "
            f"which puts pixels up to {plane.off:.2f} pixels off"
        )
    if commas := sum(h.commas for h in headers):
        warnings.append(f"{commas} of {len(headers)} headers have decimal commas; they are read as points")
    if len(series.uids) > 1:
        warnings.append(f"its slices carry {len(series.uids)} SeriesInstanceUIDs; joined by their positions")
    affine = stack.affine
    if not stack.straight:
        array, affine = _unshifted(array, stack)
    if not stack.even:
        array = _evened(array, stack)
    if any(h.lossy for h in headers):
        warnings.append("the pixels were compressed with a loss at some time")
    volume = Volume(array, Grid(array.shape, LPS_FROM_RAS @ affine), modality="CT")
    return Reading(volume, corrections, warnings, _facts(headers, stack), series)


def read_folder(path: str | os.PathLike[str], override: str | int | None = None) -> Reading:
    """Read the CT series of a folder (and of the folders below it), or an enhanced multi-frame file.

    Of several series, :func:`~deepatlas.io.dicom.choose.choose_series` chooses one. A single series is read even if
    it would not be chosen because it is sharp or not axial.

    Raises:
        DataError: one line that names ``path``, if there is no CT series, the series belong to several exams, or the
            series cannot be read.
    """
    path = Path(path)
    series, scan = find_series(path, override)
    try:
        reading = read_series(series)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    reading.volume.name = str(path)
    if lost := sum(refusal.damaged for refusal in scan.refusals):
        reading.warnings.append(f"{lost} DICOM file{'s' * (lost != 1)} with a damaged header left out")
    if lost := sum(refusal.zipped for refusal in scan.refusals):
        reading.warnings.append(
            f"{lost} DICOM file{'s' * (lost != 1)} compressed with gzip left out; unpack them (gunzip)"
        )
    return reading


def find_series(path: Path, override: str | int | None = None) -> tuple[DicomSeries, Scan]:
    """The series that :func:`read_folder` reads, and all that is there, from headers alone.

    Raises :class:`~deepatlas.errors.DataError` as :func:`read_folder` does.
    """
    try:
        if path.is_dir():
            files = [Found(p, p.relative_to(path).as_posix()) for p in sorted(path.rglob("*")) if p.is_file()]
        else:
            files = [Found(path, path.name)]
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}; check its permissions") from error
    scan = scan_dicom(files)
    exams = scan.exams()
    if len(exams) > 1:
        raise DataError(f"{path}: holds DICOM of {len(exams)} exams; give the folder of one of them")
    if not exams:
        why = f" ({scan.refusals[0].reason})" if scan.refusals else ""
        raise DataError(f"{path}: holds no DICOM image{why}; give the folder of a CT series")
    (series,) = exams.values()
    if not path.is_dir() and series[0].facts["images"] == 1 and series[0].facts["kind"] == "CT Image":
        raise DataError(f"{path}: one slice of a series; give the folder that holds all of them")
    try:
        taken = choose_series(series, override).taken
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if taken is None and len(alone := [s for s in series if _volume(s)]) == 1:
        taken = alone[0]
    if taken is None:
        reasons = choose_series(series).reasons
        listed = "; ".join(f"{name} {verdict}" for name, verdict in reasons.items())
        raise DataError(f"{path}: no series to take: {listed}")
    return taken, scan


def _volume(series: DicomSeries) -> bool:
    """Whether a series is a CT volume, chosen or not."""
    facts = series.facts
    sound = facts["modality"] == "CT" and not facts["problem"] and not facts["localizer"]
    return sound and facts["hounsfield"] and not no_anatomy(series)


def _positions(series: DicomSeries) -> NDArray[np.float64]:
    """The positions of all frames, [N, 3]; :class:`DataError` unless the images share size, spacing, orientation."""
    headers = series.headers
    head = headers[0]
    for header in headers[1:]:
        if (header.rows, header.columns) != (head.rows, head.columns):
            raise DataError(
                f"its images differ in size ({head.rows} x {head.columns} and {header.rows} x {header.columns})"
            )
    spacings, directions = [h.spacing for h in headers], [h.orientation for h in headers]
    sizes = np.abs(np.subtract(spacings, head.spacing)).max() > SAME_SPACING  # type: ignore[arg-type]
    turns = np.abs(np.subtract(directions, head.orientation)).max() > SAME_ORIENTATION  # type: ignore[arg-type]
    if (sizes or turns) and plane_of(headers).off >= SAME_GRID:
        what = " and ".join(["PixelSpacing"] * bool(sizes) + ["orientation"] * bool(turns))
        raise DataError(f"its images differ in {what}; export its parts separately")
    return np.concatenate([header.positions for header in headers])  # type: ignore[misc]


def _slices(
    series: DicomSeries,
    stack: Stack,
    corrections: list[str],
    warnings: list[str],
) -> NDArray[np.float32]:
    """The planes of the stack in their order, [K, rows, columns] HU. Copies of a slice are compared and left out."""
    headers = series.headers
    head = headers[0]
    array = np.empty((len(stack.planes), head.rows, head.columns), dtype=np.float32)
    plane_of = {index: k for k, plane in enumerate(stack.planes) for index in plane}
    done: set[int] = set()
    padded = copies = 0
    doubtful = False
    index = 0
    for number, (found, header) in enumerate(zip(series.slices, headers, strict=True), 1):
        try:
            pixels = read_pixels(found.path, header)
        except DataError as error:
            kind = PassingError if isinstance(error, PassingError) else DataError
            raise kind(f"image {number} of {len(headers)}: {error}") from error
        padded += pixels.padded
        doubtful |= pixels.doubtful_padding
        for frame in pixels.hu:
            k = plane_of[index]
            if k not in done:
                array[k] = frame
                done.add(k)
            elif np.array_equal(array[k], frame):
                copies += 1
            else:
                raise DataError(
                    f"two different images lie at slice {k + 1} of {len(stack.planes)} (several times or "
                    "reconstructions in one series); export them separately"
                )
            index += 1
    if copies:
        corrections.append(f"{copies} duplicate slice{'s' * (copies != 1)} with equal pixels left out")
    if padded:
        corrections.append(f"{padded:,} padding voxels set to {AIR:g} HU")
    if doubtful:
        warnings.append("PixelPaddingValue lies among tissue values and was left alone")
    return array


def _check_values(array: NDArray[np.float32], headers: Sequence[Header], warnings: list[str]) -> None:
    # The sum turns -0, as which a message would call it, into 0.
    low, high = float(array.min()) + 0.0, float(array.max()) + 0.0
    if low == high:
        raise DataError(f"every voxel is {low:g}; the series holds nothing, export it again")
    if any(np.isnan(header.rescale).any() for header in headers):
        if low > _NO_AIR:
            raise DataError(
                f"RescaleSlope or RescaleIntercept is missing and its values ({low:g} to {high:g}) hold no air, so "
                "they are no Hounsfield units; export the series again"
            )
        warnings.append("RescaleSlope or RescaleIntercept is missing; the stored values are taken for HU")
    elif np.ptp(np.concatenate([header.rescale for header in headers]), axis=0).max() > 0:
        warnings.append("RescaleSlope or RescaleIntercept differs between slices; each has its own applied")


def _unshifted(array: NDArray[np.float32], stack: Stack) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Move every slice within its plane, onto a grid that is wide enough for all; also returns its affine (LPS)."""
    x_size, y_size, _ = stack.spacing
    # In pixels.
    shifts = stack.shifts / (x_size, y_size)
    low = np.floor(shifts.min(axis=0) + 1e-6).astype(int)
    high = np.ceil(shifts.max(axis=0) - 1e-6).astype(int)
    rows, columns = array.shape[1] + high[1] - low[1], array.shape[2] + high[0] - low[0]
    moved = np.full((len(array), rows, columns), AIR, dtype=np.float32)
    for k, plane in enumerate(array):
        down, along = shifts[k, 1] - low[1], shifts[k, 0] - low[0]
        moved[k] = _moved(_moved(plane, down, rows, 0), along, columns, 1)
    affine = stack.affine.copy()
    affine[:3, 3] += low[0] * affine[:3, 0] + low[1] * affine[:3, 1]
    return moved, affine


def _moved(plane: NDArray[np.float32], shift: float, size: int, axis: int) -> NDArray[np.float32]:
    """``plane`` moved by ``shift`` >= 0 voxels along ``axis``, which gets ``size`` voxels; linear, with air around."""
    if abs(shift - round(shift)) < 1e-6:
        shift = round(shift)
    plane = np.moveaxis(plane, axis, 0)
    # The position in the old plane of every voxel of the new one.
    at = np.arange(size) - shift
    inside = (at > -0.5) & (at < len(plane) - 0.5)
    at = np.clip(at, 0, len(plane) - 1)
    lower = np.minimum(at.astype(int), len(plane) - 2)
    weight = (at - lower).astype(np.float32)[:, None]
    new = plane[lower] * (1 - weight) + plane[lower + 1] * weight
    new[~inside] = AIR
    return np.moveaxis(new, 0, axis)


def _evened(array: NDArray[np.float32], stack: Stack) -> NDArray[np.float32]:
    """The array interpolated linearly between its slices, at even distances."""
    levels = np.minimum(np.arange(stack.count) * stack.spacing[2], stack.levels[-1])
    above = np.clip(np.searchsorted(stack.levels, levels, side="right"), 1, len(stack.levels) - 1)
    below = above - 1
    weight = (levels - stack.levels[below]) / (stack.levels[above] - stack.levels[below])
    new = np.empty((stack.count, *array.shape[1:]), dtype=np.float32)
    for k, (i, j, w) in enumerate(zip(below, above, weight.astype(np.float32), strict=True)):
        new[k] = array[i] if w == 0 else array[i] * (1 - w) + array[j] * w
    return new


def _facts(headers: Sequence[Header], stack: Stack) -> dict[str, Any]:
    """Provenance that identifies nobody: numbers, and terms of the standard or of a manufacturer's list."""
    head = headers[0]
    kernel = known_kernel(head.kernel)
    return {
        "modality": head.modality,
        "transfer_syntax": head.known_syntax,
        "kernel": kernel,
        "tissue": tissue(kernel, head.window),
        "kvp": head.kvp,
        "slice_thickness": head.thickness,
        "spacing": tuple(round(v, 5) for v in stack.spacing),
        "slices": len(stack.planes),
        "multiframe": head.is_multiframe,
        "contrast": head.contrast,
    }
