"""What the fuzz test damages: one entry of ``FORMATS`` for every kind of file that is read.

What "silent wrong" means, and so what :func:`judge` asks for each damaged file:

* The outcome is a :class:`DataError` of one line, or a result. Nothing else: no other exception, no crash, no hang.
* A file that is shorter than it was gives an error, unless what is read is equal to the original bit for bit (only
  padding or a line end was lost) or, for a text header beside its voxels, comes with a warning.
* Positions count as equal within 0.05 voxel, values within 1e-3: what float32 headers and readers differ by.
* A result with no more warnings than the undamaged file gives must be either equal to the original, or what an
  independent reader (nibabel, pynrrd, pydicom, the header's own text for MetaImage) makes of the damaged file: same
  shape, same affine, same values after scaling. So a changed byte in voxels that carry no checksum, or a changed number
  in a header that is still consistent, may pass, for nobody can notice it; but no reader of ours may make something
  else of it.
* Where a checksum covers the content (zip members, gzip and zlib streams, prepared stores and exams) there is no
  independent reader: the result is the original or there is an error.
"""

from __future__ import annotations

import gzip
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.data.grid import Grid
from deepatlas.data.io import read_volume, write_volume
from deepatlas.data.volume import Volume
from deepatlas.errors import DataError

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Format:
    """``make`` writes the files of one exam into a folder; ``read`` is the product's reader, giving arrays by name and
    warnings; ``truth`` an independent reader's arrays, or None where checksums leave nothing to interpret. ``header``
    says how many leading bytes of a file count as header; ``gzipped`` damages half of the cases inside the stream.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], tuple[Arrays, list[str]]]
    truth: Callable[[Path], Arrays] | None = None
    header: Callable[[str, bytes], int] = field(default=lambda name, data: min(len(data), 400))
    gzipped: bool = False
    detached: str = "-"  # suffix of text headers beside their voxels


def grid(shape=(9, 11, 10)) -> Grid:
    """Oblique, anisotropic and flipped."""
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, -1]]) * [0.9, 1.1, 2.5]
    affine[:3, 3] = -40.5, 22.25, 130.125
    return Grid(shape, affine)


def ct(dtype=np.int16) -> Volume:
    rng = np.random.default_rng(3)
    return Volume(rng.integers(-1000, 1500, size=grid().shape).astype(dtype), grid())


def only(folder: Path, suffix: str) -> Path:
    (path,) = folder.glob(f"*{suffix}")
    return path


def arrays_of(volume: Volume) -> Arrays:
    return {"voxels": volume.array, "affine": volume.grid.affine}


def read_image(suffix: str) -> Callable[[Path], tuple[Arrays, list[str]]]:
    def read(folder: Path) -> tuple[Arrays, list[str]]:
        notes: list[str] = []
        return arrays_of(read_volume(only(folder, suffix), notes=notes)), notes

    return read


def squeezed(array: NDArray) -> NDArray:
    return array.reshape(array.shape[array.ndim - 3 :]) if array.ndim > 3 else array


# -- NIfTI ------------------------------------------------------------------------------------------


def make_nifti(name: str, dtype=np.int16, slope=(1.0, 0.0), order: str = "<") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import nibabel as nib

        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(dtype)
        image = nib.Nifti1Image(ct().array.T.astype(dtype), grid().affine, header)
        image.set_qform(grid().affine, code=1)
        image.set_sform(grid().affine, code=1)
        image.header.set_slope_inter(*slope)
        nib.save(image, folder / name)

    return make


def nifti_truth(suffix: str) -> Callable[[Path], Arrays]:
    def truth(folder: Path) -> Arrays:
        import nibabel as nib

        path = only(folder, suffix)
        if suffix == ".nii.gz" and path.read_bytes()[:2] != b"\x1f\x8b":
            path = path.rename(path.with_suffix(""))
        image = nib.load(path)
        return {"voxels": squeezed(np.asarray(image.dataobj).T), "affine": image.affine}

    return truth


# -- NRRD -------------------------------------------------------------------------------------------

_TO_RAS = {"right": 1, "left": -1, "anterior": 1, "posterior": -1, "superior": 1, "inferior": -1}


def make_nrrd(name: str, compress: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import nrrd

        affine = np.diag([-1, -1, 1, 1]) @ grid().affine
        header = {
            "space": "left-posterior-superior",
            "space directions": affine[:3, :3].T,
            "space origin": affine[:3, 3],
            "kinds": ["domain"] * 3,
            "encoding": "gzip" if compress else "raw",
        }
        nrrd.write(str(folder / name), ct().array, header, index_order="C")
        data = (folder / name).read_bytes()  # without its comments, which hold the time of day
        (folder / name).write_bytes(re.sub(rb"(?m)^#.*\n", b"", data[:600]) + data[600:])

    return make


def nrrd_truth(suffix: str) -> Callable[[Path], Arrays]:
    def truth(folder: Path) -> Arrays:
        import nrrd

        array, header = nrrd.read(str(only(folder, suffix)), index_order="C")
        signs = [_TO_RAS[word] for word in header["space"].split("-")]
        affine = np.eye(4)
        affine[:3, :3] = np.diag(signs) @ header["space directions"].T
        affine[:3, 3] = signs * header["space origin"]
        return {"voxels": array, "affine": affine}

    return truth


# -- MetaImage --------------------------------------------------------------------------------------


def make_meta(name: str, compress: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(ct().array)
        affine = np.diag([-1, -1, 1, 1]) @ grid().affine
        image.SetSpacing(grid().spacing)
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / grid().spacing).ravel().tolist())
        sitk.WriteImage(image, str(folder / name), useCompression=compress)

    return make


_MET = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
}
_MET |= {"MET_FLOAT": "f4", "MET_DOUBLE": "f8", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"}


def meta_truth(suffix: str) -> Callable[[Path], Arrays]:
    """The fields of the header as the MetaImage documentation gives them; there is no second library."""

    def truth(folder: Path) -> Arrays:
        import zlib

        path = only(folder, suffix)
        fields, rest = {}, path.read_bytes()
        while "ElementDataFile" not in fields:
            line, rest = rest.split(b"\n", 1)
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        name = fields["ElementDataFile"]
        data = rest if name == "LOCAL" else (path.parent / name).read_bytes()
        if fields.get("CompressedData") == "True":
            data = zlib.decompressobj(47).decompress(data)
        big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")) == "True"
        shape = [int(n) for n in fields["DimSize"].split()][::-1]
        dtype = np.dtype(_MET[fields["ElementType"]]).newbyteorder(">" if big else "<")
        count = int(np.prod(shape))
        skip = int(fields.get("HeaderSize", 0))
        skip = len(data) - count * dtype.itemsize if skip == -1 else skip
        voxels = np.frombuffer(data, dtype, count, skip).reshape(shape)

        def numbers(default: str, *keys: str) -> NDArray:
            text = next((fields[k] for k in keys if k in fields), default)
            return np.array([float(n) for n in text.split()])

        affine = np.eye(4)
        turn = numbers("1 0 0 0 1 0 0 0 1", "TransformMatrix", "Rotation", "Orientation").reshape(3, 3)
        affine[:3, :3] = turn.T * numbers("1 1 1", "ElementSpacing", "ElementSize")
        affine[:3, 3] = numbers("0 0 0", "Offset", "Position", "Origin")
        return {"voxels": squeezed(voxels), "affine": np.diag([-1, -1, 1, 1]) @ affine}

    return truth


def text_header(name: str, data: bytes) -> int:
    end = data.find(b"\n\n") if data[:4] == b"NRRD" else data.find(b"ElementDataFile")
    return 0 if name.endswith((".raw", ".zraw", ".raw.gz")) else (end + 30 if end > 0 else len(data))


# -- archives ---------------------------------------------------------------------------------------


def make_zip(folder: Path) -> None:
    path = write_volume(folder / "ct.nii.gz", ct())
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(path, "p1/ct.nii.gz")
    path.unlink()


def make_tar(folder: Path) -> None:
    import tarfile

    path = write_volume(folder / "ct.nii", ct())
    with tarfile.open(folder / "study.tar.gz", "w:gz") as file:
        file.add(path, "p1/ct.nii")
    path.unlink()


def read_archive(folder: Path) -> tuple[Arrays, list[str]]:
    from deepatlas.intake.extraction import Limits
    from deepatlas.intake.walk import scratch_folder, walk

    refused: list = []
    with scratch_folder(folder.parent / "scratch") as scratch:
        found = list(walk(folder, scratch, refused, limits=Limits(reserve=0)))
        if not found:
            raise DataError(refused[0].reason)
        notes: list[str] = [r.reason for r in refused]
        return arrays_of(read_volume(found[0].path, notes=notes)), notes


# -- prepared stores --------------------------------------------------------------------------------


def make_store(folder: Path) -> None:
    from deepatlas.data.prepare import prepare_cohort

    rng = np.random.default_rng(0)
    for exam in ("e1", "e2"):
        hu = rng.normal(0, 300, (20, 22, 24)).astype(np.int16)
        small = Grid.from_spacing(hu.shape, (3, 3, 4))
        write_volume(folder / "data" / exam / "ct.nii.gz", Volume(hu, small))
        write_volume(folder / "data" / exam / "seg.nii.gz", Volume((hu > 0).astype(np.uint8), small))
    (folder / "data" / "labels.json").write_text('{"part": 1}')
    prepare_cohort(folder / "data", folder / "cohort.h5", progress=False, workers=1).close()
    import shutil

    shutil.rmtree(folder / "data")


def read_store(folder: Path) -> tuple[Arrays, list[str]]:
    from deepatlas.data.store import Store

    with Store(folder / "cohort.h5") as store:
        arrays: Arrays = {"ids": np.array(store.ids), "labels": np.array(sorted(store.labels.items()))}
        for i in range(len(store)):
            for name in ("hu", "mask", "labels_64", "labels_128"):
                arrays[f"{name}{i}"] = np.asarray(getattr(store, name)[i])
            for name in ("grid", "fine_grid", "native_grid"):
                arrays[f"{name}{i}"] = getattr(store, name)(i).affine
        return arrays, []


FORMATS: dict[str, Format] = {
    "nii": Format(make_nifti("ct.nii"), read_image(".nii"), nifti_truth(".nii")),
    "nii-scaled": Format(
        make_nifti("ct.nii", np.int16, (0.5, -10.0), ">"), read_image(".nii"), nifti_truth(".nii")
    ),
    "nii-float": Format(make_nifti("ct.nii", np.float32), read_image(".nii"), nifti_truth(".nii")),
    "nii.gz": Format(
        lambda folder: write_volume(folder / "ct.nii.gz", ct()) and None,
        read_image(".nii.gz"),
        nifti_truth(".nii.gz"),
        gzipped=True,
    ),
    "nrrd": Format(make_nrrd("ct.nrrd", False), read_image(".nrrd"), nrrd_truth(".nrrd"), text_header),
    "nrrd-gzip": Format(make_nrrd("ct.nrrd", True), read_image(".nrrd"), nrrd_truth(".nrrd"), text_header),
    "nhdr": Format(
        make_nrrd("ct.nhdr", True), read_image(".nhdr"), nrrd_truth(".nhdr"), text_header, detached=".nhdr"
    ),
    "mha": Format(make_meta("ct.mha", False), read_image(".mha"), meta_truth(".mha"), text_header),
    "mha-zlib": Format(make_meta("ct.mha", True), read_image(".mha"), meta_truth(".mha"), text_header),
    "mhd": Format(
        make_meta("ct.mhd", False), read_image(".mhd"), meta_truth(".mhd"), text_header, detached=".mhd"
    ),
    "zip": Format(make_zip, read_archive, header=lambda name, data: len(data)),
    "tar.gz": Format(make_tar, read_archive),
    "store": Format(make_store, read_store, header=lambda name, data: min(len(data), 12000)),
}


# -- damage -----------------------------------------------------------------------------------------


def damage(fmt: Format, files: dict[str, bytes], rng: np.random.Generator) -> tuple[dict[str, bytes], str]:
    """The files with one of them damaged, and what was done: ``"ct.nii: 3 bytes flipped …"``."""
    name = sorted(files)[rng.integers(len(files))]
    data, inside = files[name], fmt.gzipped and rng.random() < 0.5
    if inside:
        data = gzip.decompress(data)
    data, what = _damaged(data, fmt.header(name, data), rng)
    if inside:
        data = gzip.compress(data, mtime=0)
    return {**files, name: data}, f"{name}{' (inside)' if inside else ''}: {what}"


def _damaged(data: bytes, header: int, rng: np.random.Generator) -> tuple[bytes, str]:
    out = bytearray(data)
    kind = rng.choice(
        ["cut", "end", "flip", "set", "digit", "any", "zeros", "drop", "insert"],
        p=[0.1, 0.05, 0.3, 0.15, 0.15, 0.1, 0.05, 0.05, 0.05],
    )
    header = header or len(data)
    at = int(rng.integers(min(header, len(data))))
    anywhere = int(rng.integers(len(data)))
    length = int(rng.integers(1, 64))
    if kind == "cut":
        return data[:anywhere], f"truncated to {anywhere} of {len(data)} bytes"
    if kind == "end":
        return data[: -int(rng.integers(1, 9))], "truncated by a few bytes"
    if kind == "flip":
        bit = int(rng.integers(8))
        out[at] ^= 1 << bit
        return bytes(out), f"bit {bit} of byte {at} flipped"
    if kind == "set":
        value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        out[at] = value
        return bytes(out), f"byte {at} set to {value}"
    if kind == "digit":
        digits = [i for i in range(min(header, len(data))) if 48 <= data[i] < 58]
        if digits:
            at = digits[rng.integers(len(digits))]
            out[at] = 48 + int(rng.integers(10))
            return bytes(out), f"digit {at} changed to {chr(out[at])}"
    if kind == "zeros":
        out[anywhere : anywhere + length] = bytes(len(out[anywhere : anywhere + length]))
        return bytes(out), f"{length} bytes from {anywhere} zeroed"
    if kind == "drop":
        return bytes(out[:at] + out[at + length :]), f"{length} bytes from {at} removed"
    if kind == "insert":
        return bytes(out[:at] + bytes(rng.integers(0, 256, length, dtype=np.uint8)) + out[at:]), (
            f"{length} bytes put in at {at}"
        )
    places = rng.integers(len(data), size=int(rng.integers(1, 9)))
    for place in places:
        out[place] ^= int(rng.integers(1, 256))
    return bytes(out), f"bytes {sorted(map(int, places))} flipped"


# -- judgement --------------------------------------------------------------------------------------


def difference(a: Arrays, b: Arrays) -> str:
    """The first name under which two results differ, or the empty string."""
    if a.keys() != b.keys():
        return "names"
    for name, x in a.items():
        y = b[name]
        if x.shape != y.shape:
            return f"{name} of shape {x.shape}, {y.shape}"
        if name == "affine":
            same = _apart(a["voxels"].shape, x, y) <= 0.05
        elif x.dtype.kind in "OSU":
            same = np.array_equal(x, y)
        else:
            with np.errstate(all="ignore"):
                same = np.allclose(x.astype(float), y.astype(float), rtol=1e-4, atol=1e-3, equal_nan=True)
        if not same:
            return name
    return ""


def _apart(shape: tuple[int, ...], a: NDArray, b: NDArray) -> float:
    """The largest distance of a corner's positions under two affines, in voxels."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[::-1]) - 1)
    away = corners @ (a - b)[:3, :3].T + (a - b)[:3, 3]
    return float(np.abs(away).max() / np.linalg.norm(a[:3, :3], axis=0).min())


def judge(
    fmt: Format, folder: Path, what: str, original: Arrays, usual: list[str], product_done: Callable[[], None]
) -> tuple[str, str]:
    """``(outcome, complaint)``: outcome "error", "same", "warned" or "other"; complaint empty if all is well."""
    try:
        arrays, notes = fmt.read(folder)
    except DataError as error:
        text = str(error)
        bad = not text or "\n" in text or "Traceback" in text or len(text) > 1000
        return "error", f"no good message: {text!r}" if bad else ""
    except Exception as error:  # noqa: BLE001
        return "exception", f"{type(error).__name__}: {error}"
    finally:
        product_done()
    changed = difference(arrays, original)
    if not changed:
        return "same", ""
    warned = len(notes) > len(usual)
    name = what.split(":")[0]
    if "truncated" in what and not (warned and name.endswith(fmt.detached)):
        return "other", f"a truncated file was read: {changed}"
    if warned:
        return "warned", ""
    if fmt.truth is None:
        return "other", f"a changed result in silence: {changed}"
    try:
        truth = fmt.truth(folder)
    except Exception as error:  # noqa: BLE001
        return (
            "other",
            f"in silence ({changed}), and the independent reader says {type(error).__name__}: {error}",
        )
    wrong = difference(arrays, truth)
    return "other", f"in silence other than the independent reader: {wrong}" if wrong else ""
