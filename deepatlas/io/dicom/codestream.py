"""Check the size that compressed frames state, before a decoder reads them.

The decoders inside GDCM trust their input: JPEG-LS of another width than the header's comes out scrambled, and a
damaged precision or size makes the JPEG decoder write beyond its buffers and ends the process.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.encaps import generate_frames

from deepatlas.errors import DataError

_JPEG_LS = 0xF7
_LOSSLESS = 0xC3
_FRAME_MARKERS = {*range(0xC0, 0xD0), _JPEG_LS} - {0xC4, 0xC8, 0xCC}
_PRECISIONS = {
    0xC0: {8},
    0xC1: {8, 12},
    0xC2: {8, 12},
    _LOSSLESS: set(range(2, 17)),
    _JPEG_LS: set(range(2, 17)),
}
# The start of a JPEG 2000 codestream, followed by its size segment.
_SIZ = b"\xff\x4f\xff\x51"
_RLE = "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class FrameSize:
    """Rows and columns, number of values of a pixel, and bits of a value."""

    rows: int
    columns: int
    samples: int
    precision: int


def check_codestream(data: bytes, syntax: str, frames: int, rows: int, columns: int, allocated: int) -> None:
    """Check that every frame of encapsulated ``data`` is complete and has that size and one value for each pixel.

    Raises :class:`~deepatlas.errors.DataError`, one line without identifiers, if it is not so.
    """
    try:
        found = list(generate_frames(data, number_of_frames=frames))
    except Exception:
        raise _damaged() from None
    if len(found) != frames:
        raise DataError(f"it holds {len(found)} of {frames} frames; copy or export it again")
    if syntax == _RLE:
        # RLE states no size, and GDCM counts its bytes.
        return
    for frame in found:
        size = frame_size(frame)
        if (size.rows, size.columns) != (rows, columns) or size.samples != 1:
            raise DataError(
                f"its pixels decode to {size.rows} x {size.columns} of {size.samples} values, but its header says "
                f"{rows} x {columns} of 1; copy or export it again"
            )
        # The buffers of GDCM have the size that the header states, its decoders that of the frame.
        if -(-size.precision // 8) != allocated // 8:
            raise _damaged()


def frame_size(frame: bytes) -> FrameSize:
    """The size that a JPEG, JPEG-LS or JPEG 2000 frame states; :class:`~deepatlas.errors.DataError` if it has none."""
    if frame[:2] != b"\xff\xd8":
        at = frame[:512].find(_SIZ)
        if at < 0:
            raise _damaged()
        return _jpeg2000(frame[at + 4 :])
    at = 2
    while at + 10 <= len(frame):
        marker = frame[at + 1]
        if frame[at] == 0xFF and marker == 0xFF:
            # A fill byte.
            at += 1
            continue
        if frame[at] != 0xFF or marker == 0xDA:
            # The pixels begin without a size.
            break
        if marker in _FRAME_MARKERS:
            precision = frame[at + 4]
            rows, columns = int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
            if precision not in _PRECISIONS.get(marker, ()):
                raise _damaged()
            return FrameSize(rows, columns, frame[at + 9], precision)
        at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    raise _damaged()


def _jpeg2000(segment: bytes) -> FrameSize:
    """The size in a SIZ segment, which in DICOM describes one image whose components are not subsampled."""
    words = [int.from_bytes(segment[4 + 4 * i : 8 + 4 * i]) for i in range(8)]
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = words
    length, samples = int.from_bytes(segment[:2]), int.from_bytes(segment[36:38])
    sound = length == 38 + 3 * samples and tile_width and tile_height and right > left and bottom > top
    sound = sound and tile_left <= left and tile_top <= top and len(segment) > length
    if not sound or any(segment[39 + 3 * i : 41 + 3 * i] != b"\x01\x01" for i in range(samples)):
        raise _damaged()
    return FrameSize(bottom - top, right - left, samples, (segment[38] & 0x7F) + 1)


def _damaged() -> DataError:
    return DataError("its pixels cannot be decoded (damaged); copy or export it again")
