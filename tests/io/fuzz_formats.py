"""The kinds of files that the fuzz test damages, one entry of ``FORMATS`` each (see fuzz_damage)."""

from __future__ import annotations

import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_damage import Arrays, Format
from fuzz_dicom import DICOM
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.exams.read import read_volume
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


def grid(shape=(9, 11, 10)) -> Grid:
    """A rotated, anisotropic and flipped grid."""
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
        # Remove the comments, which contain the time.
        data = (folder / name).read_bytes()
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
    """An independent reader that follows the MetaImage documentation, because there is no second library."""

    def truth(folder: Path) -> Arrays:
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
    path = write_volume(folder / "ct.nii", ct())
    with tarfile.open(folder / "study.tar.gz", "w:gz") as file:
        file.add(path, "p1/ct.nii")
    path.unlink()


def read_archive(folder: Path) -> tuple[Arrays, list[str]]:
    from deepatlas.intake.find.archives import extract
    from deepatlas.intake.find.extraction import Limits
    from deepatlas.intake.find.walk import scratch_folder, walk

    refused: list = []
    with scratch_folder(folder.parent / "scratch") as scratch:
        (archive,) = walk(folder, scratch, refused)
        found = extract(archive, scratch / "archive", refused, Limits(reserve=0))
        if not found:
            raise DataError(refused[0].reason)
        notes: list[str] = [r.reason for r in refused]
        return arrays_of(read_volume(found[0].path, notes=notes)), notes


# -- prepared stores --------------------------------------------------------------------------------


def make_store(folder: Path) -> None:
    from deepatlas.exams.build_store import prepare_cohort

    rng = np.random.default_rng(0)
    for exam in ("e1", "e2"):
        hu = rng.integers(-1000, 300, (20, 22, 24)).astype(np.int16)
        small = Grid.from_spacing(hu.shape, (3, 3, 4))
        write_volume(folder / "data" / exam / "ct.nii.gz", Volume(hu, small))
        write_volume(folder / "data" / exam / "seg.nii.gz", Volume((hu > 0).astype(np.uint8), small))
    (folder / "data" / "labels.json").write_text('{"part": 1}')
    prepare_cohort(folder / "data", folder / "cohort.h5", progress=False, workers=1).close()
    shutil.rmtree(folder / "data")


def read_store(folder: Path) -> tuple[Arrays, list[str]]:
    from deepatlas.store.store import Store

    with Store(folder / "cohort.h5") as store:
        arrays: Arrays = {"ids": np.array(store.ids), "labels": np.array(sorted(store.labels.items()))}
        for i in range(len(store)):
            for name in ("hu", "mask", "labels_64", "labels_128"):
                arrays[f"{name}{i}"] = np.asarray(getattr(store, name)[i])
            for name in ("grid", "fine_grid", "native_grid"):
                arrays[f"{name}{i}"] = getattr(store, name)(i).affine
        return arrays, []


def make_exam(folder: Path) -> None:
    from deepatlas.exams.exam_file import write_exam

    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 300, (20, 22, 24)).astype(np.int16)
    labels = Volume((hu > 0).astype(np.uint8), grid(hu.shape))
    write_exam(folder / "e1.h5", Volume(hu, grid(hu.shape)), labels, {"part": 1}, {"kvp": 120.0}, [])


def read_exam(folder: Path) -> tuple[Arrays, list[str]]:
    from deepatlas.exams.exam_file import ExamFile

    with ExamFile(folder / "e1.h5") as exam:
        arrays = arrays_of(exam.volume()) | {"labels": exam.labels().array}
        words = [exam.id, sorted(exam.names.items()), exam.present, sorted(exam.facts.items()), exam.row_crop]
        return arrays | {"words": np.array([str(word) for word in words])}, list(exam.warnings)


def make_dataset(folder: Path) -> None:
    from deepatlas.exams.exam_file import write_exam
    from deepatlas.intake.dataset.folder import exam_path, finish_dataset
    from deepatlas.intake.dataset.manifest import Manifest

    rng = np.random.default_rng(0)
    with Manifest(folder / "manifest.sqlite") as manifest:
        for exam in ("e1", "e2"):
            hu = Volume(rng.integers(-1000, 300, (20, 22, 24)).astype(np.int16), grid((20, 22, 24)))
            path = exam_path(folder, exam)
            path.parent.mkdir(parents=True, exist_ok=True)
            manifest.add_exam(write_exam(path, hu, None, {}, {}, []))
    finish_dataset(folder, [folder / "manifest.sqlite"])


def read_dataset(folder: Path) -> tuple[Arrays, list[str]]:
    """Check the dataset as ``prepare --check`` does, then read its exams."""
    from deepatlas.intake.dataset.check import check_dataset
    from deepatlas.intake.dataset.folder import Dataset

    if damages := check_dataset(folder, workers=1):
        raise DataError(damages[0].reason)
    arrays: Arrays = {}
    for exam in Dataset(folder):
        arrays[exam.id] = exam.volume().array
        exam.close()
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
        make_nrrd("ct.nhdr", True), read_image(".nhdr"), nrrd_truth(".nhdr"), text_header, may_warn=".nhdr"
    ),
    "mha": Format(make_meta("ct.mha", False), read_image(".mha"), meta_truth(".mha"), text_header),
    "mha-zlib": Format(make_meta("ct.mha", True), read_image(".mha"), meta_truth(".mha"), text_header),
    "mhd": Format(
        make_meta("ct.mhd", False), read_image(".mhd"), meta_truth(".mhd"), text_header, may_warn=".mhd"
    ),
    "zip": Format(make_zip, read_archive, header=lambda name, data: len(data)),
    "tar.gz": Format(make_tar, read_archive),
    "store": Format(make_store, read_store, header=lambda name, data: min(len(data), 12000)),
    "exam": Format(make_exam, read_exam, header=lambda name, data: min(len(data), 6000)),
    "dataset": Format(make_dataset, read_dataset, header=lambda name, data: min(len(data), 6000)),
} | DICOM
