"""Structures of all sources on one CT: label images, names, overlaps, and a real RTSTRUCT."""

from __future__ import annotations

import tarfile
import time
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from drawn_objects import ct_headers, on_slice, random_grid, rtstruct, saved, series_of, turned
from make_dicom import tilted, write_ct
from matplotlib.path import Path as Polygon
from real_exams import real

from deepatlas.intake.structures.name_map import NameMap, label_table
from deepatlas.intake.structures.read import read_structures, structure_names
from deepatlas.io.codec import write_volume
from deepatlas.io.dicom.choose import choose_series
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.read import read_series
from deepatlas.io.dicom.scan import scan_dicom
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

LABELS = {"Liver": 1, "left lung": 2, "Ösophagus": 300}


def found(path: Path) -> Found:
    return Found(path, path.name)


def painted(rng, grid) -> Volume:
    ids = np.array([0, *LABELS.values()], dtype=np.uint16)
    return Volume(ids[rng.integers(0, 4, grid.shape)], grid)


def square(grid, z, low=4.5, high=9.5):
    return on_slice(grid, np.array([[low, low], [high, low], [high, high], [low, high]]), z)


# -- label images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("seed", range(3))
def test_label_images_in_any_voxel_order(tmp_path, suffix, seed):
    rng = np.random.default_rng(seed)
    image = painted(rng, random_grid(rng, (6, 9, 11)))
    write_volume(tmp_path / f"seg{suffix}", image)
    ct = turned(image, rng)
    result = read_structures([found(tmp_path / f"seg{suffix}")], ct, LABELS, source_labels=LABELS)
    np.testing.assert_array_equal(result.labels.array, ct.array)
    assert result.labels.array.dtype == np.uint16 and result.present == list(LABELS) and not result.warnings


def test_a_nifti_that_nibabel_wrote_lies_where_nibabel_says(tmp_path):
    rng = np.random.default_rng(5)
    grid = random_grid(rng, (6, 9, 11))
    array = rng.integers(0, 3, (11, 9, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, grid.affine), tmp_path / "seg.nii.gz")
    ct = turned(Volume(np.zeros(grid.shape), grid), rng)
    table = {"Liver": 1, "left lung": 2}
    result = read_structures([found(tmp_path / "seg.nii.gz")], ct, table, source_labels=table)
    for x, y, z in rng.integers(0, (11, 9, 6), (50, 3)):
        world = nibabel.affines.apply_affine(grid.affine, (x, y, z))
        i, j, k = np.rint(ct.grid.world_to_voxel(world)).astype(int)
        assert result.labels.array[k, j, i] == array[x, y, z]


def test_a_part_of_the_ct_is_put_in_its_place(tmp_path):
    rng = np.random.default_rng(6)
    whole = painted(rng, random_grid(rng, (8, 9, 11)))
    write_volume(tmp_path / "seg.nrrd", whole.cropped((2, 3, 1), (5, 6, 7)))
    result = read_structures([found(tmp_path / "seg.nrrd")], whole, LABELS, source_labels=LABELS)
    want = np.zeros_like(whole.array)
    want[2:7, 3:9, 1:8] = whole.array[2:7, 3:9, 1:8]
    np.testing.assert_array_equal(result.labels.array, want)


def test_another_geometry_an_unknown_id_and_damage_refuse_the_file_without_its_path(tmp_path):
    grid = Grid.from_spacing((6, 9, 11), (1, 1, 2))
    ct = Volume(np.zeros(grid.shape), grid)
    array = np.ones(grid.shape, np.uint8)
    write_volume(
        tmp_path / "a_seg.nrrd", Volume(array, Grid.from_spacing(grid.shape, (1, 1, 2), (0.5, 0, 0)))
    )
    write_volume(tmp_path / "b_seg.nrrd", Volume(array * 7, grid))
    (tmp_path / "c_seg.nrrd").write_bytes((tmp_path / "b_seg.nrrd").read_bytes()[:-9])
    (tmp_path / "d.dcm").write_bytes(b"no DICOM at all" * 40)
    sitk.WriteImage(sitk.Image(5, 5, 5, sitk.sitkUInt8), str(tmp_path / "e_seg.mhd"), useCompression=True)
    (tmp_path / "e_seg.zraw").rename(tmp_path / "Doe.zraw")
    (tmp_path / "e_seg.mhd").write_text(
        (tmp_path / "e_seg.mhd").read_text().replace("e_seg.zraw", "Jane Doe.zraw")
    )
    sitk.WriteImage(sitk.Image(5, 5, 5, sitk.sitkUInt8), str(tmp_path / "f_seg.mhd"), useCompression=True)
    (tmp_path / "f_seg.zraw").write_bytes(b"no zlib stream at all")
    files = [
        found(tmp_path / name)
        for name in ("a_seg.nrrd", "b_seg.nrrd", "c_seg.nrrd", "d.dcm", "gone.dcm", "e_seg.mhd", "f_seg.mhd")
    ]
    result = read_structures(files, ct, LABELS, source_labels=LABELS)
    assert [refusal.name for refusal in result.refused] == [file.name for file in files]
    reasons = [refusal.reason for refusal in result.refused]
    for reason, word in zip(
        reasons,
        ("corners up to 0.5 mm apart", "(7)", "truncated", "neither", "cannot read", "missing", "damaged"),
        strict=True,
    ):
        assert word in reason and str(tmp_path) not in reason and "\n" not in reason
        assert "Doe" not in reason and "f_seg" not in reason
    assert not result.present and not result.labels.array.any()


def test_masks_named_by_their_files(tmp_path):
    grid = Grid.from_spacing((6, 9, 11), (1, 1, 2))
    ct = Volume(np.zeros(grid.shape), grid)
    for at, name in enumerate(("liver", "Left Lung", "rib", "case12_seg")):
        mask = np.zeros(grid.shape, np.uint8)
        mask[at] = 1 if at else 255
        write_volume(tmp_path / f"{name}.nii.gz", Volume(mask, grid))
    files = [found(path) for path in sorted(tmp_path.glob("*.nii.gz"))]
    assert structure_names(files) == ["left_lung", "liver", "rib"]
    for table in (None, {"liver": 3, "left lung": 1}):  # a table beside them does not number single masks
        result = read_structures(files, ct, {"liver": 4, "left_lung": 5}, source_labels=table)
        assert result.present == ["liver", "left_lung"]
        assert (result.labels.array[0] == 4).all() and (result.labels.array[1] == 5).all()
        assert not result.labels.array[2:].any()
    result = read_structures(files, ct, {"liver": 4, "left_lung": 5})
    assert result.ignored == {"rib": "not in the label table"}
    assert [r.name for r in result.refused] == ["case12_seg.nii.gz"] and "labels.json" in result.refused[
        0
    ].reason


def test_segments_of_3d_slicer_are_named_in_the_header(tmp_path):
    image = sitk.GetImageFromArray(np.arange(125, dtype=np.uint8).reshape(5, 5, 5) % 3)
    for key, value in {
        "0_Name": "Liver",
        "0_LabelValue": "2",
        "1_Name": "Left Lung",
        "1_LabelValue": "1",
    }.items():
        image.SetMetaData(f"Segment{key}", value)
    sitk.WriteImage(image, str(tmp_path / "Segmentation.seg.nrrd"))
    file = found(tmp_path / "Segmentation.seg.nrrd")
    grid = Grid(shape=(5, 5, 5), affine=np.diag([-1.0, -1, 1, 1]))
    assert structure_names([file]) == ["left_lung", "liver"]
    result = read_structures([file], Volume(np.zeros(grid.shape), grid), {"liver": 1, "left_lung": 2})
    want = np.array([0, 2, 1])[sitk.GetArrayFromImage(image)]
    np.testing.assert_array_equal(result.labels.array, want)


# -- names and overlaps ---------------------------------------------------------------------------


def test_names_of_a_source_are_cleaned_mapped_or_withheld(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    names = ["Lung L", "heart", "Jonathan's liver", "Doe node", "GTV (2018)", "食道", "Cord 20180209"]
    file = saved(rtstruct(slices, {name: [square(grid, 2)] for name in names}), tmp_path / "rt.dcm")
    series = series_of(slices)
    assert structure_names([file], series=series) == ["heart", "lung_l", "食道"]
    ct = Volume(np.zeros(grid.shape), grid)
    result = read_structures([file], ct, {"heart": 1}, series=series)
    assert result.present == ["heart"]
    assert set(result.ignored) == {"Lung L", "食道", *(f"structure {n}" for n in (3, 4, 5, 7))}
    assert result.ignored["Lung L"] == "not in the label table"
    text = repr(result.ignored) + repr(result.warnings)
    assert "Jonathan" not in text and "Doe" not in text and "2018" not in text
    # What a person wrote into a map goes in, whatever the source says.
    mapped = NameMap({"liver": ("Jonathan's liver",), "cord": ("regex:^cord",)})
    assert structure_names([file], names=mapped, series=series) == ["cord", "liver"]
    result = read_structures([file], ct, {"liver": 1, "cord": 2}, names=mapped, series=series)
    assert result.present == ["liver", "cord"] and result.ignored["heart"] == "not in the name map"
    # Both were drawn around the same voxels.
    assert (result.labels.mask(1) == result.labels.mask(2)).all() and result.labels.mask(1).sum() == 25


def test_one_name_twice_is_taken_once_without_a_map_and_joined_by_one(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    structures = {"lung l": [], "Lung_L": [square(grid, 2)], "LUNG L": [square(grid, 3)]}
    file = saved(rtstruct(slices, structures), tmp_path / "rt.dcm")
    ct = Volume(np.zeros(grid.shape), grid)
    result = read_structures([file], ct, {"lung_l": 1})
    assert np.flatnonzero(result.labels.array.any(axis=(1, 2))).tolist() == [2]
    assert "more than one structure" in result.warnings[0] and "already taken" in result.ignored["LUNG L"]
    result = read_structures([file], ct, {"lung": 1}, names=NameMap({"lung": ("lung l",)}))
    assert np.flatnonzero(result.labels.array.any(axis=(1, 2))).tolist() == [2, 3]
    assert "2 structures joined" in "".join(result.warnings)


def test_of_equal_structures_the_later_wins_and_the_body_lies_under_all(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    structures = {
        "body": [square(grid, 2, 0.5, 18.5)],
        "a": [square(grid, 2, 2.5, 8.5)],
        "b": [square(grid, 2, 5.5, 11.5)],
    }
    file = saved(rtstruct(slices, structures, body="EXTERNAL"), tmp_path / "rt.dcm")
    ct = Volume(np.zeros(grid.shape), grid)
    result = read_structures([file], ct, {"a": 1, "b": 2, "body": 3})
    assert [int((result.labels.array == i).sum()) for i in (1, 2, 3)] == [36 - 9, 36, 18 * 18 - 63]
    assert [int(result.labels.mask(i).sum()) for i in (1, 2, 3)] == [36, 36, 18 * 18] and not result.warnings
    result = read_structures([file], ct, {"b": 2, "a": 1, "body": 3})
    assert [int((result.labels.array == i).sum()) for i in (1, 2, 3)] == [36, 36 - 9, 18 * 18 - 63]
    assert result.present == ["b", "a", "body"]


NESTED = {"lung": (2.5, 17.5), "lobe": (5.5, 14.5), "gtv": (8.5, 11.5)}  # sides of squares in one another


@pytest.mark.parametrize("order", [("gtv", "lung", "lobe"), ("lobe", "gtv", "lung"), ("lung", "lobe", "gtv")])
@pytest.mark.parametrize("source", ["contours", "masks"])
def test_the_smaller_structure_lies_on_top_and_a_name_map_decides_otherwise(tmp_path, source, order):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    drawn = {name: [square(grid, 2, *sides)] for name, sides in NESTED.items()}
    files = [saved(rtstruct(slices, drawn), tmp_path / "rt.dcm")]
    ct = Volume(np.zeros(grid.shape), grid)
    if source == "masks":
        for name, contours in drawn.items():
            alone = saved(rtstruct(slices, {name: contours}), tmp_path / "one.dcm")
            mask = read_structures([alone], ct, {name: 1}).labels
            write_volume(tmp_path / f"{name}.nii.gz", mask)
        files = [found(tmp_path / f"{name}.nii.gz") for name in NESTED]
    labels = {name: i for i, name in enumerate(order, 1)}
    result = read_structures(files, ct, labels)
    counts = {name: int((result.labels.array == value).sum()) for name, value in labels.items()}
    assert counts == {"lung": 225 - 81, "lobe": 81 - 9, "gtv": 9} and not result.ignored
    assert result.present == list(order) and not result.warnings
    whole = {name: int(result.labels.mask(value).sum()) for name, value in labels.items()}
    assert whole == {"lung": 225, "lobe": 81, "gtv": 9}
    result = read_structures(files, ct, labels, names=NameMap({name: () for name in order}))
    last = result.labels.array == labels[order[-1]]
    assert last.sum() == (NESTED[order[-1]][1] - NESTED[order[-1]][0]) ** 2
    assert whole == {name: int(result.labels.mask(value).sum()) for name, value in labels.items()}


@pytest.mark.parametrize("order", [("ptv", "gtv", "lung"), ("lung", "gtv", "ptv")])
def test_a_planning_volume_leaves_its_voxels_to_anatomy_but_a_tumour_keeps_them(tmp_path, order):
    grid = Grid.from_spacing((6, 20, 20))
    sides = {"lung": (2.5, 12.5), "PTV": (5.5, 14.5), "gtv": (8.5, 11.5)}
    drawn = {name: [square(grid, 2, *ends)] for name, ends in sides.items()}
    file = saved(rtstruct(ct_headers(grid), drawn), tmp_path / "rt.dcm")
    labels = {name: i for i, name in enumerate(order, 1)}
    result = read_structures([file], Volume(np.zeros(grid.shape), grid), labels)
    counts = {name: int((result.labels.array == value).sum()) for name, value in labels.items()}
    assert counts == {"lung": 100 - 9, "ptv": 81 - 49, "gtv": 9}
    whole = {name: int(result.labels.mask(value).sum()) for name, value in labels.items()}
    assert whole == {"lung": 100, "ptv": 81, "gtv": 9}


def test_a_structure_that_smaller_ones_cover_is_there_as_a_whole(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    halves = {"b": [square(grid, 2, 4.5, 9.5)], "c": [square(grid, 3, 4.5, 9.5)]}
    file = saved(rtstruct(ct_headers(grid), {"a": halves["b"] + halves["c"], **halves}), tmp_path / "rt.dcm")
    result = read_structures([file], Volume(np.zeros(grid.shape), grid), {"b": 1, "c": 2, "a": 3})
    assert result.present == ["b", "c", "a"] and not result.ignored
    assert not (result.labels.array == 3).any() and result.labels.mask(3).sum() == 50


@pytest.mark.slow(1)
def test_forty_masks_of_a_whole_ct_wait_as_bits(tmp_path):
    """Each reaches from corner to corner, so that boxes around them would save nothing."""
    grid = Grid.from_spacing((64, 128, 128))
    for number in range(40):
        mask = np.zeros(grid.shape, np.uint8)
        mask[0, 0, number] = mask[-1, -1, number:] = 1
        write_volume(tmp_path / f"rib {number}.nii.gz", Volume(mask, grid))
    files = [found(path) for path in sorted(tmp_path.glob("*.nii.gz"))]
    ct = Volume(np.zeros(grid.shape, np.int16), grid)
    table = label_table(structure_names(files))
    tracemalloc.start()
    try:
        result = read_structures(files, ct, table)
        peak = tracemalloc.get_traced_memory()[1] / ct.array.size
    finally:
        tracemalloc.stop()
    assert len(result.present) == 40 and (result.labels.array == table["rib_39"]).sum() == 90
    print(f"{peak:.1f} bytes a voxel")
    assert peak < 25  # bytes a voxel of the CT; two masks each as bytes would be 80


def test_several_files_add_up(tmp_path):
    grid = Grid.from_spacing((6, 20, 20))
    slices = ct_headers(grid)
    first = saved(rtstruct(slices, {"a": [square(grid, 2)]}), tmp_path / "rt.dcm")
    mask = np.zeros(grid.shape, np.uint8)
    mask[4] = 1
    write_volume(tmp_path / "b.nii.gz", Volume(mask, grid))
    files = [first, found(tmp_path / "b.nii.gz")]
    result = read_structures(files, Volume(np.zeros(grid.shape), grid), label_table(structure_names(files)))
    assert result.present == ["a", "b"] and result.labels.array.dtype == np.uint8
    assert (result.labels.array[4] == 2).all() and (result.labels.array[2] == 1).sum() == 25


def test_no_file_is_an_empty_label_image():
    grid = Grid.from_spacing((6, 20, 20))
    result = read_structures([], Volume(np.zeros(grid.shape), grid), {})
    assert not result.labels.array.any() and not result.present and not result.refused


@pytest.mark.parametrize(("degrees", "oblique"), [(0, False), (0, True), (18, False), (-12, True)])
def test_contours_hold_what_the_dicom_ct_shows_there(tmp_path, degrees, oblique):
    """The way of an exam: a series read by this package, its slices flipped, oblique or tilted, and its RTSTRUCT."""
    rng = np.random.default_rng(9)
    grid = random_grid(rng, (9, 40, 44), turn=oblique)
    z, y, x = np.indices(grid.shape)
    centre, radius = (20.3, 17.6), 9 - np.abs(np.arange(9) - 4)  # x, y; a spindle along z
    hu = np.where((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius[z] ** 2, 300, -800)
    files = write_ct(tmp_path, hu, grid.affine, tilt=degrees)
    scan = scan_dicom(found(path) for path in files)
    series = choose_series(scan.series).taken or scan.series[0]
    ct = read_series(series).volume
    affine = np.diag([-1.0, -1, 1, 1]) @ (tilted(grid.affine, degrees) if degrees else grid.affine)
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    contours = []
    for index in range(9):
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[index] + centre
        points = np.column_stack([ring, np.full(80, index), np.ones(80)])
        contours.append((points @ affine.T)[:, :3])
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    drawn = saved(rtstruct(headers, {"spindle": contours}), tmp_path / "rt.dcm")
    result = read_structures([drawn], ct, {"spindle": 1}, series=series)
    shown, mask = ct.array > -250, result.labels.array == 1
    assert not result.warnings and not result.refused
    assert 2 * (shown & mask).sum() / (shown.sum() + mask.sum()) > (0.97 if degrees else 0.995)


# -- real -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lung1(tmp_path_factory) -> Path:
    archive = real("lung1/LUNG1-003_dicom.tar.xz")
    folder = tmp_path_factory.mktemp("lung1")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


def in_millimetres(contours: list[np.ndarray], image: sitk.Image) -> np.ndarray:
    """Even-odd over contours (LPS mm, axial) by matplotlib, on the pixel centres of an axial SimpleITK image."""
    x0, y0, z0 = image.GetOrigin()
    dx, dy, dz = image.GetSpacing()
    width, height, depth = image.GetSize()
    x, y = np.meshgrid(x0 + dx * np.arange(width), y0 + dy * np.arange(height))
    filled = np.zeros((depth, height, width), dtype=bool)
    for points in contours:
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        columns = slice(*np.searchsorted(x[0], [low[0] - 1, high[0] + 1]))
        rows = slice(*np.searchsorted(y[:, 0], [low[1] - 1, high[1] + 1]))
        centres = np.stack([x[rows, columns].ravel(), y[rows, columns].ravel()], axis=1)
        inside = Polygon(np.vstack([points, points[:1]])[:, :2], closed=True).contains_points(centres)
        filled[round((points[0, 2] - z0) / dz), rows, columns] ^= inside.reshape(y[rows, columns].shape)
    return filled


@pytest.mark.slow(5)
def test_lungs_of_a_real_rtstruct_against_an_independent_rasterisation(lung1):
    reader = sitk.ImageSeriesReader()
    by_series = [
        reader.GetGDCMSeriesFileNames(str(lung1), uid) for uid in reader.GetGDCMSeriesIDs(str(lung1))
    ]
    files = max(by_series, key=len)
    reader.SetFileNames(files)
    image = reader.Execute()
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    scan = scan_dicom(found(path) for path in sorted(lung1.iterdir()))
    series = choose_series(scan.series).taken
    ct = read_series(series).volume
    affine = np.diag([-1.0, -1, 1, 1]) @ np.diag([*image.GetSpacing(), 1.0])
    affine[:3, 3] = np.array(image.GetOrigin()) * [-1, -1, 1]
    assert ct.grid.matches(Grid(image.GetSize()[::-1], affine), tolerance=1e-3)
    drawn = next(one.found for one in scan.labels if one.modality == "RTSTRUCT")
    names = NameMap({"lung_left": ("Lung L",), "lung_right": ("Lung R",)})
    started = time.process_time()
    result = read_structures([drawn], ct, {"lung_left": 1, "lung_right": 2}, names=names, series=series)
    seconds = time.process_time() - started
    assert result.present == ["lung_left", "lung_right"] and not result.refused
    ds = pydicom.dcmread(drawn.path)
    numbers = {item.ROIName: item.ROINumber for item in ds.StructureSetROISequence}
    contours = {item.ReferencedROINumber: item.ContourSequence for item in ds.ROIContourSequence}
    for name, value in (("Lung L", 1), ("Lung R", 2)):
        points = [np.array(c.ContourData, dtype=float).reshape(-1, 3) for c in contours[numbers[name]]]
        want, got = in_millimetres(points, image), result.labels.array == value
        dice = 2 * int((want & got).sum()) / int(want.sum() + got.sum())
        print(
            f"{name}: {int(got.sum())} voxels, {int((want ^ got).sum())} differ, Dice {dice:.6f}, {seconds:.2f} s"
        )
        assert got.sum() > 200_000 and dice >= 0.999
    # Lungs are where the CT holds air inside: the masks are not mirrored or shifted.
    assert np.median(ct.array[result.labels.array > 0]) < -600


@pytest.mark.slow(3)
def test_tumours_of_a_real_rtstruct_keep_their_voxels(lung1):
    scan = scan_dicom(found(path) for path in sorted(lung1.iterdir()))
    series = choose_series(scan.series).taken
    ct = read_series(series).volume
    drawn = [one.found for one in scan.labels if one.modality == "RTSTRUCT"]
    table = label_table(structure_names(drawn, series=series))
    result = read_structures(drawn, ct, table, series=series)
    kept = np.bincount(result.labels.array.ravel())
    for name, share in {
        "gtv_1": 1,
        "gtv_2": 1,
        "gtv_3": 1,
        "lung_l": 0.99,
        "lung_r": 0.999,
    }.items():
        alone = read_structures(drawn, ct, {name: 1}, series=series).labels.array
        assert kept[table[name]] >= share * np.count_nonzero(alone), name
