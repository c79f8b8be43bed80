"""Reading and writing NIfTI, NRRD and MetaImage files, and the errors for damaged or unsuitable ones."""

from __future__ import annotations

import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from small_exams import oblique, one_line

from deepatlas.errors import DataError, DataWarning, WriteError
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import image_suffix, read_grid, write_volume
from deepatlas.io.glance import Holds, glance
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]


def volume(seed=0, dtype=np.int16) -> Volume:
    rng = np.random.default_rng(seed)
    grid = oblique(rng)
    return Volume(rng.integers(-1000, 1000, size=grid.shape).astype(dtype), grid)


def voxels_apart(a: Grid, b: Grid) -> float:
    return float(np.abs(a.world_to_voxel(b.corners()) - a.world_to_voxel(a.corners())).max())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_written_files_are_read_back_unchanged(tmp_path, suffix, seed):
    rng = np.random.default_rng(seed)
    original = Volume(rng.integers(0, 9, size=(20, 24, 28)).astype(np.uint8), oblique(rng))
    path = write_volume(tmp_path / f"mask{suffix}", original)
    back = read_volume(path, labels=True)
    assert back.array.dtype == np.uint8 and back.name == str(path)
    np.testing.assert_array_equal(back.array, original.array)
    assert voxels_apart(back.grid, original.grid) < 0.01
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("seed", range(4))
def test_nibabel_sees_the_same_points(tmp_path, seed):
    original = volume(seed)
    image = nib.load(write_volume(tmp_path / "a.nii.gz", original))
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), original.array)
    assert voxels_apart(Grid(original.grid.shape, image.affine), original.grid) < 0.01

    nib.save(nib.Nifti1Image(original.array.transpose(2, 1, 0), original.grid.affine), tmp_path / "b.nii.gz")
    back = read_volume(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(back.array, original.array)
    assert voxels_apart(back.grid, original.grid) < 0.01


@pytest.mark.parametrize("suffix", FORMATS)
def test_simpleitk_sees_the_same_points(tmp_path, suffix):
    original = volume(5)
    image = sitk.ReadImage(str(write_volume(tmp_path / f"a{suffix}", original)))
    point = np.array(image.TransformIndexToPhysicalPoint((3, 4, 5)))
    np.testing.assert_allclose(point * [-1, -1, 1], original.grid.voxel_to_world([3, 4, 5]), atol=1e-3)
    assert image[3, 4, 5] == original.array[5, 4, 3]


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64]
)
def test_numbers_of_every_type_are_preserved(tmp_path, dtype):
    array = (np.arange(5 * 6 * 7).reshape(5, 6, 7) % 2 + 0).astype(dtype)
    path = write_volume(tmp_path / "a.nii.gz", Volume(array, Grid.from_spacing((5, 6, 7))))
    np.testing.assert_array_equal(read_volume(path, labels=True).array, array)


def test_hounsfield_scaling_is_applied(tmp_path):
    raw = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    image = nib.Nifti1Image(raw.transpose(2, 1, 0), np.eye(4))
    image.header.set_slope_inter(20.0, -1024.0)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii").get_fdata().transpose(2, 1, 0)
    back = read_volume(tmp_path / "a.nii")
    assert back.array.dtype == np.float32
    np.testing.assert_allclose(back.array, stored, atol=0.5)


def test_labels_get_the_smallest_type_that_holds_them(tmp_path):
    grid = Grid.from_spacing((4, 4, 4))
    for top, dtype in [(255, np.uint8), (256, np.uint16), (70000, np.int32)]:
        array = np.zeros((4, 4, 4), dtype=np.float32)
        array[0, 0, 0] = top
        path = write_volume(tmp_path / "a.nrrd", Volume(array, grid))
        assert read_volume(path, labels=True).array.dtype == dtype


# -- bad files --------------------------------------------------------------------------------------


def message(path, *, labels=False) -> str:
    with pytest.raises(DataError) as error:
        read_volume(path, labels=labels)
    text = one_line(error.value)
    assert str(path) in text
    return text


def test_files_that_are_missing_empty_or_of_another_kind(tmp_path):
    assert "no such file" in message(tmp_path / "none.nii.gz")
    assert "is a folder" in message(tmp_path)
    (tmp_path / "empty.nii.gz").touch()
    assert "is empty" in message(tmp_path / "empty.nii.gz")
    (tmp_path / "a.txt").write_text("hello")
    assert "unknown kind" in message(tmp_path / "a.txt")
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    assert "holds no DICOM image" in message(tmp_path / "IM0001")
    assert "no label image" in message(tmp_path / "IM0001", labels=True)
    assert image_suffix("x/ct.v2.NII.GZ") == ".nii.gz" and image_suffix("x/ct.gz") == ""


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_refused(tmp_path, suffix):
    path = write_volume(tmp_path / f"a{suffix}", volume())
    whole = path.read_bytes()
    for part in (0.9, 0.5, 0.01):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert any(word in message(path) for word in ("truncated", "too short", "damaged", "not a MetaImage"))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_damaged_compressed_voxels_are_refused(tmp_path, suffix):
    path = write_volume(tmp_path / f"a{suffix}", volume())
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(b ^ 0x5A for b in data[middle : middle + 40])
    path.write_bytes(bytes(data))
    assert "damaged" in message(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_wrong_suffix_is_refused(tmp_path, suffix, capfd):
    other = write_volume(tmp_path / ("b.nrrd" if suffix.startswith(".nii") else "b.nii"), volume())
    path = tmp_path / f"a{suffix}"
    path.write_bytes(other.read_bytes())
    assert "not" in message(path)
    path.write_bytes(b"this is no image " * 40)
    message(path)
    # The C++ libraries print nothing.
    assert capfd.readouterr().err == ""


def test_an_uncompressed_file_with_a_gz_suffix_is_read(tmp_path):
    path = write_volume(tmp_path / "a.nii", volume())
    path.rename(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii.gz").array, volume().array)


def save_nifti(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((8, 9), ["2-D", "8 x 9"]),
        ((8, 9, 1), ["1 voxel", "8 x 9 x 1"]),
        ((8, 9, 3), ["3 voxel", "at least 4"]),
        ((8, 9, 7, 3), ["4-D", "8 x 9 x 7 x 3", "split"]),
        ((8, 9, 7, 1, 3), ["5-D"]),
    ],
)
def test_images_that_are_not_three_dimensional_are_refused(tmp_path, shape, words):
    array = np.random.default_rng(0).integers(-99, 99, size=shape).astype(np.int16)
    text = message(save_nifti(tmp_path / "a.nii.gz", array))
    assert all(word in text for word in words), text


def test_trailing_axis_of_one_is_accepted(tmp_path):
    array = np.random.default_rng(0).integers(-99, 99, size=(5, 6, 7, 1)).astype(np.int16)
    assert read_volume(save_nifti(tmp_path / "a.nii", array)).array.shape == (7, 6, 5)


def test_colour_and_complex_images_are_refused(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((6, 6, 6, 3), dtype=np.uint8), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "rgb.nrrd"))
    assert "3 values per voxel" in message(tmp_path / "rgb.nrrd")
    save_nifti(tmp_path / "c.nii", np.zeros((5, 6, 7), dtype=np.complex64))
    assert "values per voxel" in message(tmp_path / "c.nii")


def test_constant_images_and_nan_voxels_are_refused(tmp_path):
    assert "every voxel is 7" in message(
        save_nifti(tmp_path / "c.nii", np.full((5, 6, 7), 7, dtype=np.int16))
    )
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    assert "2 voxels are NaN or infinite" in message(save_nifti(tmp_path / "n.nii", array))
    save_nifti(tmp_path / "n.nii.gz", array.astype(np.float64))
    assert "2 voxels are NaN" in message(tmp_path / "n.nii.gz")
    image = sitk.GetImageFromArray(array)
    sitk.WriteImage(image, str(tmp_path / "n.nrrd"))
    assert "2 voxels are NaN" in message(tmp_path / "n.nrrd")
    assert "NaN" in message(tmp_path / "n.nii", labels=True)


def test_sheared_geometry_is_refused(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    array = np.random.default_rng(0).integers(-99, 99, size=(5, 6, 7)).astype(np.int16)
    for text in (
        message(save_nifti(tmp_path / "a.nii.gz", array, affine)),
        message(_sheared_nrrd(tmp_path / "a.nrrd")),
    ):
        assert "right angles" in text and "dcm2niix" in text


def _sheared_nrrd(path):
    header = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\n"
        "space directions: (1,0,0) (0.3,1,0) (0,0,1)\nkinds: domain domain domain\nencoding: raw\n"
        "space origin: (0,0,0)\n\n"
    )
    path.write_bytes(header.encode() + bytes(range(64)))
    return path


def test_labels_that_are_fractional_or_negative_are_refused(tmp_path):
    array = np.zeros((5, 6, 7), dtype=np.float32)
    array[0, 0, :3] = 0.5
    assert "3 voxels are not integers" in message(save_nifti(tmp_path / "a.nii", array), labels=True)
    array[0, 0, :3] = -2
    assert "negative label -2" in message(save_nifti(tmp_path / "a.nii", array), labels=True)


def test_missing_orientation_is_noted(tmp_path):
    path = write_volume(tmp_path / "a.nii", volume())
    data = bytearray(path.read_bytes())
    data[252:256] = bytes(4)
    path.write_bytes(bytes(data))
    with pytest.warns(DataWarning, match="no orientation"):
        read_volume(path)
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_volume(path, notes=notes)
    assert len(notes) == 1 and "no orientation" in notes[0]


def test_impossible_dimensions_in_the_header_are_refused(tmp_path, capfd):
    path = write_volume(tmp_path / "a.nii.gz", volume())
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[40:42] = (99).to_bytes(2, "little")
    path.write_bytes(gzip.compress(bytes(data)))
    assert "damaged NIfTI header" in message(path)
    assert capfd.readouterr().err == ""


# -- writing ----------------------------------------------------------------------------------------


def test_unsupported_suffixes_and_types_are_not_written(tmp_path):
    with pytest.raises(WriteError, match="cannot write this kind"):
        write_volume(tmp_path / "a.mhd", volume())
    grid = Grid.from_spacing((4, 4, 4))
    with pytest.raises(DataError, match="renumber"):
        write_volume(tmp_path / "a.nii", Volume(np.full((4, 4, 4), 2**40), grid))
    with pytest.raises(DataError, match="complex"):
        write_volume(tmp_path / "a.nii", Volume(np.zeros((4, 4, 4), dtype=complex), grid))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "a.nii.gz", volume(0))
    before = path.read_bytes()

    def half(image, name, **_):
        with open(name, "wb") as handle:
            handle.write(before[:200])

    monkeypatch.setattr(sitk, "WriteImage", half)
    with pytest.raises(WriteError, match="cannot write") as error:
        write_volume(path, volume(1))
    one_line(error.value)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


# -- headers that contradict themselves or the file -------------------------------------------------


def nifti_with(path, *, qform=None, sform=None, pixdim=None, extra=b""):
    array = np.random.default_rng(0).integers(-900, 900, size=(5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((1, 1, 1))
    image.set_qform(qform, code=0 if qform is None else 1)
    image.set_sform(sform, code=0 if sform is None else 1)
    nib.save(image, path)
    data = bytearray(path.read_bytes())
    if pixdim:
        data[80:92] = np.array(pixdim, dtype="<f4").tobytes()
    path.write_bytes(bytes(data) + extra)
    return path


def noted(path) -> list[str]:
    notes: list[str] = []
    read_volume(path, notes=notes)
    return notes


def test_a_nifti_with_two_geometries_is_noted_or_refused(tmp_path):
    """A note names the geometry that is used. If ITK mixes them into a third geometry, the file is refused."""
    here, there = np.diag([-2.0, 2, 3, 1]), np.diag([-2.0, 2, 3, 1])
    there[:3, 3] = 10, 0, 0
    assert noted(nifti_with(tmp_path / "a.nii", qform=here, sform=here)) == []
    (note,) = noted(nifti_with(tmp_path / "b.nii", qform=here, sform=there))
    assert "geometries 10 mm apart (qform, sform)" in note
    mixed = nifti_with(tmp_path / "c.nii", sform=here, pixdim=(2, 2, 5))
    try:
        read = read_volume(mixed)
    except DataError as error:
        assert "contradicts itself" in one_line(error)
    else:
        # This version of ITK takes the spacing from the sform.
        np.testing.assert_allclose(read.grid.affine, here, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_the_geometry_of_a_nifti_header_agrees_with_nibabel(tmp_path, seed):
    """Rotations of every kind, including half turns and left-handed axes, are read without a contradiction."""
    rng = np.random.default_rng(seed)
    affine = (
        oblique(rng, angle=3.0).affine
        if seed < 4
        else np.diag([1.0, -1, -1, 1] if seed == 4 else [-1.0, -1, 1, 1])
    )
    path = nifti_with(tmp_path / "a.nii", qform=affine, sform=affine if seed % 2 else None)
    assert noted(path) == []
    np.testing.assert_allclose(read_volume(path).grid.affine, nib.load(path).affine, atol=1e-3)


def test_more_bytes_than_the_header_describes_are_noted(tmp_path):
    here = np.diag([2.0, 2, 3, 1])
    assert "12 bytes more" in noted(nifti_with(tmp_path / "a.nii", qform=here, extra=bytes(12)))[0]
    for suffix in (".nrrd", ".mha"):
        image = sitk.GetImageFromArray(volume().array)
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        with open(tmp_path / f"a{suffix}", "ab") as file:
            file.write(bytes(12))
        assert any("12 bytes more" in note for note in noted(tmp_path / f"a{suffix}"))
    # In a compressed file, the decompressed bytes are counted.
    path = write_volume(tmp_path / "b.nrrd", volume())
    path.write_bytes(path.read_bytes().replace(b"sizes: 28", b"sizes: 14"))
    assert any("bytes more than its header says" in note for note in noted(path))


@pytest.mark.parametrize(
    ("suffix", "old", "new", "words"),
    [
        (".mha", b"CompressedDataSize", b"CompressedDateSize", "CompressedDataSize is missing"),
        (".mha", b"ElementSpacing = ", b"ElementSpacing = 1 ", "ElementSpacing"),
        (".mha", b"ElementSpacing = ", b"ElementSpacing = x", "ElementSpacing"),
        (".mha", b"DimSize = 28", b"DimSize = 28.", "DimSize"),
        (".mha", b"MET_SHORT", b"MET_SHOUT", "ElementType"),
        (".mha", b"CompressedData = True", b"CompressedData = Tree", "CompressedData Tree"),
        (".mha", b"NDims = 3", b"NDims = 4", "DimSize"),
        (".nrrd", b"space origin: (", b"space origin: (1,", "space origin"),
        (".nrrd", b"space origin: (", b"space origin: (&", "space origin"),
        (".nrrd", b"endian: little", b"endian: lottle", "endian"),
        (".nrrd", b"type: short", b"type: shirt", "type"),
    ],
)
def test_a_header_is_read_strictly(tmp_path, suffix, old, new, words, capfd):
    path = write_volume(tmp_path / f"a{suffix}", volume())
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    text = message(path)
    assert "damaged" in text and words in text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("suffix", "key"),
    [
        (".mha", b"Offset"),
        (".mha", b"TransformMatrix"),
        (".nrrd", b"space origin"),
        (".nrrd", b"space directions"),
    ],
)
def test_a_missing_geometry_is_noted(tmp_path, suffix, key):
    path = write_volume(tmp_path / f"a{suffix}", volume())
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(key)))
    assert any(f"has no {key.decode()}" in note for note in noted(path))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_nifti_2_is_called_by_its_name_with_a_cure_that_works(tmp_path, name, order, capfd):
    original = volume(2)
    header = nib.Nifti2Header(endianness=order)
    image = nib.Nifti2Image(original.array.transpose(2, 1, 0), original.grid.affine, header)
    path = tmp_path / name
    nib.save(image, path)
    for text in (message(path), message(path, labels=True)):
        assert "is a NIfTI-2" in text and "damaged" not in text
    with pytest.raises(DataError, match="is a NIfTI-2"):
        read_grid(path)
    assert glance(path).holds is Holds.UNKNOWN
    assert capfd.readouterr().err == ""
    new = tmp_path / "b.nii.gz"
    nib.Nifti1Image.from_image(nib.load(path)).to_filename(new)
    back = read_volume(new)
    np.testing.assert_array_equal(back.array, original.array)
    assert voxels_apart(back.grid, original.grid) < 0.01


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [
        (".nrrd", b"sizes: 28 24 20", b"sizes: 90000 90000 9000"),
        (".mha", b"DimSize = 28 24 20", b"DimSize = 90000 90000 9000"),
    ],
)
def test_files_larger_than_the_memory_are_refused(tmp_path, suffix, old, new):
    """The header alone decides, because decompressing such a file to count its bytes would take hours."""
    path = write_volume(tmp_path / f"a{suffix}", volume())
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    assert "1.46e+05 GB of voxels" in message(path)
    path = write_volume(tmp_path / "a.nii.gz", volume())
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[42:48] = np.array([30000] * 3, dtype="<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data)))
    assert "5.4e+04 GB of voxels" in message(path)


def test_voxels_in_another_file_are_read(tmp_path):
    image = sitk.GetImageFromArray(volume().array)
    for suffix in (".mhd", ".nhdr"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        np.testing.assert_array_equal(read_volume(tmp_path / f"a{suffix}").array, volume().array)
    raw = tmp_path / "a.raw"
    raw.write_bytes(raw.read_bytes()[:-1])
    for suffix in (".mhd", ".nhdr"):
        with pytest.raises(DataError, match="truncated"):
            read_volume(tmp_path / f"a{suffix}")
    raw.unlink()
    for suffix in (".mhd", ".nhdr"):
        assert "in another file, which is missing" in message(tmp_path / f"a{suffix}")


def test_a_compressed_file_beside_its_uncompressed_twin(tmp_path):
    """In a folder with both, ITK reads the header of x.nii.gz and the voxels of x.nii; nibabel does not."""
    rng = np.random.default_rng(0)
    for folder, names in (
        ("a", ("x.nii", "x.nii.gz")),
        ("b", ("x.nii.gz", "x.nii")),
        ("c", ("x.NII", "x.NII.gz")),
    ):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            array = rng.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "saved.nii.gz")
            if name.lower().endswith(".gz"):
                path.write_bytes((tmp_path / "saved.nii.gz").read_bytes())
            else:
                path.write_bytes(gzip.decompress((tmp_path / "saved.nii.gz").read_bytes()))
            np.testing.assert_array_equal(read_volume(path, notes=[]).array, array.T)
        for name in names:
            expected = np.asarray(nib.load(tmp_path / folder / name).dataobj).T
            np.testing.assert_array_equal(read_volume(tmp_path / folder / name, notes=[]).array, expected)
