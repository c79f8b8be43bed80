"""Hounsfield units are those that were stored, whatever the transfer syntax and however they were stored."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from make_dicom import COMPRESSED, write_ct
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSNearLossless,
)

from deepatlas.errors import DataError
from deepatlas.io.dicom.codestream import check_codestream, frame_size
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.header import Header, read_header
from deepatlas.io.dicom.pixels import read_pixels
from deepatlas.io.dicom.read import read_folder

SHAPE = (4, 18, 14)
AFFINE = np.array([[-0.8, 0, 0, 40], [0, -0.7, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])
NATIVE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def hounsfield(low: int = -1000, high: int = 2000, seed: int = 0) -> np.ndarray:
    hu = np.random.default_rng(seed).integers(low, high, size=SHAPE).astype(float)
    hu[:, 0, 0], hu[:, 9, 9] = low, high
    return hu


def pixels(path, **change) -> np.ndarray:
    header = read_header(Found(path, path.name))
    assert isinstance(header, Header)
    return read_pixels(path, header).hu


def error_of(path) -> str:
    with pytest.raises(DataError) as error:
        read_folder(path)
    text = str(error.value)
    assert "\n" not in text and not any(s in text for s in ("PAT-0001", "Doe", "19500102", "1.2.826"))
    return text


@pytest.mark.parametrize("multiframe", [False, True], ids=["series", "multiframe"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=lambda s: pydicom.uid.UID(s).name[:28])
def test_every_lossless_transfer_syntax(tmp_path, syntax, signed, multiframe):
    """The encoders are those of pydicom (RLE), CharLS (JPEG-LS) and GDCM. Decoding must restore the values."""
    hu = hounsfield()
    for bits in (12, 16):
        folder = tmp_path / str(bits)
        paths = write_ct(
            folder, hu, AFFINE, syntax=syntax, signed=signed, bits=bits, multiframe=multiframe,
            intercept=0 if signed else -1024,
        )  # fmt: skip
        assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID == syntax
        reading = read_folder(folder)
        np.testing.assert_array_equal(reading.volume.array, hu)
        assert reading.facts["transfer_syntax"] == syntax


@pytest.mark.parametrize("syntax", [JPEGLSNearLossless, JPEGBaseline8Bit, JPEG2000], ids=lambda s: s[-3:])
def test_lossy_compression_agrees_with_pydicom_and_is_said(tmp_path, syntax):
    """The encoders are CharLS's and Pillow's."""
    hu = (np.indices((4, 48, 40)).sum(axis=0) * 2.0 - 100) + np.random.default_rng(0).integers(
        0, 9, (4, 48, 40)
    )
    how = {"bits": 12 if syntax == JPEGLSNearLossless else 16, "intercept": -100}
    tags = {"LossyImageCompression": "01"}
    near = syntax == JPEGLSNearLossless
    paths = write_ct(tmp_path, hu, AFFINE, syntax=NATIVE[0] if near else syntax, tags=tags, **how)
    for path in paths if near else ():
        ds = pydicom.dcmread(path)
        ds.compress(syntax, jls_error=2, generate_instance_uid=False)
        ds.save_as(path)
    reading = read_folder(tmp_path)
    assert "compressed with a loss" in reading.warnings[-1]
    assert reading.facts["transfer_syntax"] == syntax
    for k, path in enumerate(paths):
        own = pydicom.dcmread(path).pixel_array.astype(float) - 100
        assert 0 < np.abs(own - hu[k]).max() < 40
        np.testing.assert_allclose(reading.volume.array[k], own, atol=0 if near else 1)


def test_unknown_transfer_syntaxes_are_refused(tmp_path):
    for path in write_ct(tmp_path, hounsfield(), AFFINE, syntax=JPEG2000Lossless):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = MPEG2MPML
        ds.save_as(path)
    assert "cannot be decoded" in error_of(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"inverted": True},
        {"inverted": True, "bits": 12},
        {"inverted": True, "signed": True, "intercept": 0},
        {"inverted": True, "slope": 0.5},
        {"bits": 12, "high_bit": 13},
        {"bits": 12, "high_bit": 15},
        {"bits": 13, "high_bit": 14, "signed": True, "intercept": 0},
        {"bits": 12, "high_bit": 15, "signed": True, "intercept": 0},
        {"bits": 12, "high_bit": 15, "syntax": ExplicitVRBigEndian},
        {"bits": 14, "signed": True, "intercept": 100},
        {"slope": 0.37, "intercept": -1023.6},
        {"slope": [1, 0.5, 2, 0.25], "intercept": [-1024, -1000, -1001, -1024]},
        {"slope": -1, "intercept": 2500},
        {"tags": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2"}, "multiframe": True, "slope": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_traps_of_storage(tmp_path, options):
    slope, intercept = (
        np.broadcast_to(options.get(k, v), 4)[:, None, None]
        for k, v in (("slope", 1.0), ("intercept", -1024.0))
    )
    hu = np.rint((hounsfield() - intercept) / slope) * slope + intercept
    write_ct(tmp_path, hu, AFFINE, **options)
    np.testing.assert_allclose(read_folder(tmp_path).volume.array, hu, atol=1e-3)


@pytest.mark.parametrize("cells", [lambda c: c & 0xFFF, lambda c: c | 0x5000], ids=["masked sign", "overlay"])
def test_unused_bits_are_ignored(tmp_path, cells):
    """Signed values whose sign does not extend into the unused bits; unsigned values with an overlay there."""
    hu = hounsfield()
    signed = cells(0xFFFF) == 0xFFF
    for path in write_ct(tmp_path, hu, AFFINE, bits=12, signed=signed, intercept=0 if signed else -1024):
        ds = pydicom.dcmread(path)
        ds.PixelData = cells(np.frombuffer(ds.PixelData, np.uint16)).astype(np.uint16).tobytes()
        ds.save_as(path)
    np.testing.assert_array_equal(read_folder(tmp_path).volume.array, hu)


def test_an_odd_high_bit_in_compressed_pixels_is_refused(tmp_path):
    write_ct(tmp_path, hounsfield(), AFFINE, bits=12, high_bit=13, syntax=COMPRESSED[0])
    assert "HighBit 13 with BitsStored 12" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("padding", "options", "air"),
    [
        (-2000, {"signed": True, "intercept": 0}, True),  # as GE writes it
        (63536, {"signed": True, "intercept": 0}, True),  # the same in a tag of the wrong type
        (0, {}, True),  # -1024 HU
        (65535, {}, True),
        (24, {}, True),  # -1000 HU
        (1124, {}, False),  # 100 HU
    ],
)  # fmt: skip
@pytest.mark.parametrize("multiframe", [False, True], ids=["series", "multiframe"])
def test_padding_becomes_air(tmp_path, padding, options, air, multiframe):
    hu = hounsfield(-900, 2000)
    hu[:, 3:5, 3:9] = np.nan
    stored = padding - 65536 if padding == 63536 else padding
    # The tag's type follows PixelRepresentation in what pydicom writes, so the wrong one is put in by hand.
    write_ct(tmp_path, hu, AFFINE, padding=stored, multiframe=multiframe, **options)
    if padding == 63536:
        for path in tmp_path.glob("*.dcm"):
            ds = pydicom.dcmread(path)
            del ds.PixelPaddingValue
            ds.add_new("PixelPaddingValue", "US", 63536)
            ds.save_as(path)
    reading = read_folder(tmp_path)
    expected = hu.copy()
    expected[np.isnan(hu)] = -1024 if air else 100
    np.testing.assert_array_equal(reading.volume.array, expected)
    if air:
        assert "48 padding voxels set to -1024 HU" in reading.corrections
    else:
        assert "PixelPaddingValue lies among tissue" in reading.warnings[0] and not reading.corrections


def test_padding_among_tissue_values_around_the_field_of_view(tmp_path):
    hu = hounsfield(-900, 2000)
    hu[hu == 100] = 101
    hu[:, [0, -1]] = np.nan
    hu[:, :, [0, -1]] = np.nan
    write_ct(tmp_path, hu, AFFINE, padding=1124)
    array = read_folder(tmp_path).volume.array
    assert (array[:, 0] == -1024).all() and (array[:, :, -1] == -1024).all() and (array != 100).all()
    np.testing.assert_array_equal(array[:, 1:-1, 1:-1], hu[:, 1:-1, 1:-1])


def test_a_range_of_padding(tmp_path):
    hu = hounsfield(-900, 2000)
    hu[:, 0, :3] = -1020, -1015, -1010
    write_ct(tmp_path, hu, AFFINE, padding=4, tags={"PixelPaddingRangeLimit": 9})
    array = read_folder(tmp_path).volume.array
    assert (array[:, 0, :3] == [-1024, -1024, -1010]).all()


@pytest.mark.parametrize(
    ("tags", "options", "words"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, {}, "RescaleIntercept is missing and its values"),
        ({"RescaleIntercept": None}, {}, "RescaleIntercept is missing and its values"),
        ({"RescaleSlope": 0}, {}, "RescaleSlope is 0"),
        ({"RescaleType": "US"}, {}, "not Hounsfield units"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, {}, "in colour"),
        ({"BitsStored": 17}, {}, "BitsStored 17 does not fit BitsAllocated 16"),
        ({"HighBit": 3}, {}, "HighBit 3 does not fit BitsStored 16"),
        ({"Rows": 19}, {}, "cut short"),
        *[({"Columns": 13}, {"syntax": syntax}, "36 bytes more than 1 frames") for syntax in NATIVE[:3]],
        *[({"Columns": 13}, {"syntax": syntax}, "decode") for syntax in COMPRESSED],
        *[({"Rows": 19}, {"syntax": syntax, "multiframe": True}, "decode") for syntax in COMPRESSED],
    ],
)  # fmt: skip
def test_what_is_no_hounsfield_image_is_refused(tmp_path, tags, options, words):
    write_ct(tmp_path, hounsfield(), AFFINE, tags=tags, **options)
    assert words in error_of(tmp_path)


def test_stored_hounsfield_units_without_rescale_are_taken_with_a_warning(tmp_path):
    none = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
    write_ct(tmp_path, hounsfield(), AFFINE, signed=True, intercept=0, tags=none)
    reading = read_folder(tmp_path)
    np.testing.assert_array_equal(reading.volume.array, hounsfield())
    assert "are taken for HU" in reading.warnings[0]


@pytest.mark.parametrize("multiframe", [False, True], ids=["series", "multiframe"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *COMPRESSED], ids=lambda s: s[-5:])
def test_files_cut_short_never_give_other_pixels(tmp_path, syntax, multiframe):
    hu = hounsfield()
    paths = write_ct(tmp_path, hu, AFFINE, syntax=syntax, multiframe=multiframe, shuffle=None)
    whole = paths[0].read_bytes()
    refused = 0
    for part in np.linspace(0.05, 0.999, 12):
        paths[0].write_bytes(whole[: int(len(whole) * part)])
        try:
            array = read_folder(tmp_path).volume.array
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # what is cut is the mark of the end, or all of the first slice
            np.testing.assert_array_equal(array, hu[-len(array) :])
    assert refused >= 9


@pytest.mark.parametrize("syntax", [*COMPRESSED[1:], JPEGBaseline8Bit, JPEG2000], ids=lambda s: s[-3:])
def test_the_size_of_a_frame_and_every_damage_to_it(tmp_path, syntax):
    """A flipped bit before the pixels either gives another size or is refused."""
    hu = np.clip(hounsfield(), -1000, -900) + 1000
    path = write_ct(tmp_path, hu, AFFINE, syntax=syntax, intercept=0)[0]
    ds = pydicom.dcmread(path)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    size = frame_size(frame)
    assert (size.rows, size.columns, size.samples) == (18, 14, 1)
    assert size.precision == 8 if syntax == JPEGBaseline8Bit else 8 < size.precision <= 16
    check_codestream(ds.PixelData, syntax, 1, 18, 14, ds.BitsAllocated)
    refused = 0
    for bit in range(8 * min(len(frame), 100)):
        data = bytearray(frame)
        data[bit // 8] ^= 1 << bit % 8
        try:
            frame_size(bytes(data))
        except DataError as error:
            assert "damaged" in str(error)
            refused += 1
    assert refused >= 16
    for length in range(60):
        with pytest.raises(DataError):
            frame_size(frame[:2] + bytes([0xFF] * length))


def test_frames_that_are_missing(tmp_path):
    (path,) = write_ct(tmp_path, hounsfield(), AFFINE, syntax=JPEG2000Lossless, multiframe=True)
    ds = pydicom.dcmread(path)
    frames = list(generate_frames(ds.PixelData, number_of_frames=4))
    with pytest.raises(DataError):
        check_codestream(encapsulate(frames[:3]), JPEG2000Lossless, 4, 18, 14, 16)
    with pytest.raises(DataError, match="decode to 18 x 14 of 1 values, but its header says 14 x 18"):
        check_codestream(ds.PixelData, JPEG2000Lossless, 4, 14, 18, 16)
