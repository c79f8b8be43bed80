"""The folders of public data sets and of others' tools: which files become exams, and how structures are called.

Every layout is made here in small: a CT, and two structures of known size on its grid. ``prepare`` has to find the CTs,
no more and no less, and in each the voxels of both structures under their own names.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from prepare_here import prepare_here
from small_exams import body

from deepatlas.intake.dataset.folder import Dataset
from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# Structures of the layouts whose files do not say what they are called are named by a table beside them.
TABLE = {"kidney": 1, "liver": 2}


def ct(path: Path, seed: int = 1) -> Path:
    volume, _ = body((8, 24, 24), seed=seed)
    return write_volume(path, Volume(np.rint(volume.array).astype(np.int16), volume.grid))


def drawn(path: Path, seed: int = 1, *, only: int = 0, dtype: type = np.uint8) -> Path:
    """The label image of both structures (1, 2), or the mask of one of them."""
    _, labels = body((8, 24, 24), seed=seed)
    array = (labels.array == only) if only else labels.array
    return write_volume(path, Volume(array.astype(dtype), labels.grid))


def sizes(first: str, second: str, seed: int = 1) -> dict[str, int]:
    """The voxels of both structures, under the names that they are to have."""
    _, labels = body((8, 24, 24), seed=seed)
    return {first: int((labels.array == 1).sum()), second: int((labels.array == 2).sum())}


def table(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def prepared(src: Path, tmp_path: Path) -> tuple[dict[str, dict[str, int]], set[str]]:
    """``{CT: {structure: its voxels}}`` of the dataset made of ``src``, and the files that were refused."""
    prepare_here(src, tmp_path / "dst")
    dataset = Dataset(tmp_path / "dst")
    with open(tmp_path / "dst.private" / "key.csv", encoding="utf-8", newline="") as file:
        keys = {row["id"]: row["key"] for row in csv.DictReader(file)}
    with open(tmp_path / "dst.private" / "refused.csv", encoding="utf-8", newline="") as file:
        refused = {row["name"] for row in csv.DictReader(file)}
    found = {}
    for exam in dataset:
        labels = exam.labels().array if exam.has_labels else np.zeros(1, np.uint8)
        counts = {name: int((labels == value).sum()) for name, value in exam.names.items()}
        found[keys[exam.id]] = {name: count for name, count in counts.items() if count}
    return found, refused


def nnunet_v1(src):
    for case in (1, 2):
        ct(src / "imagesTr" / f"liver_{case:03}_0000.nii.gz", case)
        drawn(src / "labelsTr" / f"liver_{case:03}.nii.gz", case)
    ct(src / "imagesTs" / "liver_003_0000.nii.gz", 3)
    labels = {"0": "background", "1": "left kidney", "2": "aorta"}
    table(src / "dataset.json", {"modality": {"0": "CT"}, "labels": labels, "numTraining": 2})
    return {
        "imagesTr/liver_001_0000.nii.gz": sizes("left kidney", "aorta", 1),
        "imagesTr/liver_002_0000.nii.gz": sizes("left kidney", "aorta", 2),
        "imagesTs/liver_003_0000.nii.gz": {},
    }, set()


def nnunet_v2(src):
    """Names the other way round, and a second channel that is no CT."""
    root = src / "Dataset101_Trunk"
    ct(root / "imagesTr" / "case_1_0000.nii.gz")
    ct(root / "imagesTr" / "case_1_0001.nii.gz", 2)
    drawn(root / "labelsTr" / "case_1.nii.gz")
    labels = {"background": 0, "spleen": 1, "pancreas": 2}
    table(root / "dataset.json", {"channel_names": {"0": "CT", "1": "PET"}, "labels": labels})
    return (
        {"Dataset101_Trunk/imagesTr/case_1_0000.nii.gz": sizes("spleen", "pancreas")},
        {"Dataset101_Trunk/imagesTr/case_1_0001.nii.gz"},
    )


def msd(src):
    """A case that is called like a structure, and a mask of one id: it must not be called after its case."""
    root = src / "Task09_Spleen"
    ct(root / "imagesTr" / "spleen_2.nii.gz")
    drawn(root / "labelsTr" / "spleen_2.nii.gz", only=1)
    table(root / "dataset.json", {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}})
    return {"Task09_Spleen/imagesTr/spleen_2.nii.gz": {"spleen": sizes("spleen", "")["spleen"]}}, set()


def msd_without_its_table(src):
    """Nothing says what 1 is, so that nothing may be invented."""
    ct(src / "imagesTr" / "spleen_2.nii.gz")
    drawn(src / "labelsTr" / "spleen_2.nii.gz", only=1)
    return {"imagesTr/spleen_2.nii.gz": {}}, {"labelsTr/spleen_2.nii.gz"}


def bids(src):
    ct(src / "sub-01" / "ct" / "sub-01_ct.nii.gz")
    ct(src / "sub-02" / "ct" / "sub-02_ct.nii.gz", 2)
    derived = src / "derivatives" / "manual"
    drawn(derived / "sub-01" / "ct" / "sub-01_desc-manual_dseg.nii.gz")
    (derived / "dseg.tsv").write_text(
        "index\tname\tabbreviation\n0\tBackground\tB\n1\tLiver\tL\n2\tHeart\tH\n"
    )
    for only, name in ((1, "Liver"), (2, "Heart")):
        drawn(derived / "sub-02" / "ct" / f"sub-02_label-{name}_mask.nii.gz", 2, only=only)
    return {
        "sub-01/ct/sub-01_ct.nii.gz": sizes("Liver", "Heart"),
        "sub-02/ct/sub-02_ct.nii.gz": sizes("Liver", "Heart", 2),
    }, set()


def lits(src):
    for case in (1, 10):
        ct(src / f"volume-{case}.nii", case)
        drawn(src / f"segmentation-{case}.nii", case)
    table(src / "labels.json", TABLE)
    return {f"volume-{case}.nii": sizes("kidney", "liver", case) for case in (1, 10)}, set()


def kits(src):
    for case in (0, 1):
        ct(src / f"case_0000{case}" / "imaging.nii.gz", case)
        drawn(src / f"case_0000{case}" / "segmentation.nii.gz", case)
    table(src / "labels.json", TABLE)
    return {f"case_0000{case}/imaging.nii.gz": sizes("kidney", "liver", case) for case in (0, 1)}, set()


def han_seg_folders(src):
    ct(src / "case_01" / "img.nrrd")
    drawn(src / "case_01" / "structures" / "BrainStem.nrrd", only=1)
    drawn(src / "case_01" / "structures" / "Mandible.nrrd", only=2)
    return {"case_01/img.nrrd": sizes("brainstem", "mandible")}, set()


def han_seg_files(src):
    """As it is handed out: everything in the folder of the case, which every name begins with."""
    ct(src / "case_01" / "case_01_IMG_CT.nrrd")
    drawn(src / "case_01" / "case_01_OAR_Brainstem.seg.nrrd", only=1)
    drawn(src / "case_01" / "case_01_OAR_SpinalCord.seg.nrrd", only=2)
    return {"case_01/case_01_IMG_CT.nrrd": sizes("oar_brainstem", "oar_spinalcord")}, set()


def verse(src):
    ct(src / "rawdata" / "sub-verse004" / "sub-verse004_ct.nii.gz")
    drawn(src / "derivatives" / "sub-verse004" / "sub-verse004_seg-vert_msk.nii.gz")
    table(src / "derivatives" / "labels.json", {"vertebra_C1": 1, "vertebra_C2": 2})
    return {"rawdata/sub-verse004/sub-verse004_ct.nii.gz": sizes("vertebra_C1", "vertebra_C2")}, set()


def pddca(src):
    for case in ("0522c0001", "0522c0002"):
        ct(src / case / "img.nrrd", int(case[-1]))
        for only, name in ((1, "Parotid_L"), (2, "Chiasm")):
            drawn(src / case / "structures" / f"{name}.nrrd", int(case[-1]), only=only)
    return {
        f"{case}/img.nrrd": sizes("parotid_l", "chiasm", int(case[-1])) for case in ("0522c0001", "0522c0002")
    }, set()


def totalsegmentator(src):
    for only, name in ((1, "adrenal_gland_left"), (2, "aorta"), (3, "urinary_bladder")):
        # The last is a mask of nothing.
        drawn(src / "s0001" / "segmentations" / f"{name}.nii.gz", only=only)
    ct(src / "s0001" / "ct.nii.gz")
    return {"s0001/ct.nii.gz": sizes("adrenal_gland_left", "aorta")}, set()


def amos(src):
    """Cases whose numbers look like nnU-Net's channels."""
    for case in (0, 1):
        ct(src / "imagesTr" / f"amos_000{case}.nii.gz", case)
        drawn(src / "labelsTr" / f"amos_000{case}.nii.gz", case)
    labels = {"0": "background", "1": "spleen", "2": "prostate/uterus"}
    table(src / "dataset.json", {"modality": {"0": "CT"}, "labels": labels})
    return {
        f"imagesTr/amos_000{case}.nii.gz": sizes("spleen", "prostate_uterus", case) for case in (0, 1)
    }, set()


def segthor(src):
    for case in ("Patient_01", "Patient_02"):
        ct(src / "train" / case / f"{case}.nii.gz", int(case[-1]))
        drawn(src / "train" / case / "GT.nii.gz", int(case[-1]), dtype=np.float32)
    table(src / "labels.json", {"esophagus": 1, "heart": 2})
    return {
        f"train/{case}/{case}.nii.gz": sizes("esophagus", "heart", int(case[-1]))
        for case in ("Patient_01", "Patient_02")
    }, set()


def learn2reg(src):
    """Label images with the number of the channel too, masks of the body, and a table with a prefix."""
    name = "AbdomenCTCT_0001_0000.nii.gz"
    ct(src / "imagesTr" / name)
    drawn(src / "labelsTr" / name)
    volume, _ = body((8, 24, 24), seed=1)
    write_volume(src / "masksTr" / name, Volume((volume.array > -500).astype(np.uint8), volume.grid))
    labels = {"0": {"0": "background", "1": "spleen", "2": "right kidney"}}
    table(src / "AbdomenCTCT_dataset.json", {"modality": {"0": "CT"}, "labels": labels})
    return {f"imagesTr/{name}": sizes("spleen", "right kidney")}, {f"masksTr/{name}"}


def deepmind(src):
    root = src / "nrrds" / "test" / "oncologist" / "0522c0331"
    ct(root / "CT_IMAGE.nrrd")
    drawn(root / "segmentations" / "Brainstem.nrrd", only=1)
    drawn(root / "segmentations" / "Cochlea-Lt.nrrd", only=2)
    return {"nrrds/test/oncologist/0522c0331/CT_IMAGE.nrrd": sizes("brainstem", "cochlea_lt")}, set()


def ct_org(src):
    for case in (0, 1):
        ct(src / "OrganSegmentations" / f"volume-{case}.nii.gz", case)
        drawn(src / "OrganSegmentations" / f"labels-{case}.nii.gz", case)
    table(src / "labels.json", TABLE)
    return {f"OrganSegmentations/volume-{c}.nii.gz": sizes("kidney", "liver", c) for c in (0, 1)}, set()


def structseg(src):
    for case in (1, 2):
        ct(src / "HaN_OAR" / str(case) / "data.nii.gz", case)
        drawn(src / "HaN_OAR" / str(case) / "label.nii.gz", case)
    table(src / "labels.json", TABLE)
    return {f"HaN_OAR/{case}/data.nii.gz": sizes("kidney", "liver", case) for case in (1, 2)}, set()


def visceral(src):
    """Masks are named by RadLex ids: 58 is the liver, 170 the pancreas."""
    ct(src / "Volumes" / "10000100_1_CTce_ThAb.nii.gz")
    drawn(src / "Segmentations" / "10000100_1_CTce_ThAb_58_8.nii.gz", only=1)
    drawn(src / "Segmentations" / "10000100_1_CTce_ThAb_170_8.nii.gz", only=2)
    return {"Volumes/10000100_1_CTce_ThAb.nii.gz": sizes("liver", "pancreas")}, set()


def btcv(src):
    ct(src / "img" / "img0001.nii.gz")
    drawn(src / "label" / "label0001.nii.gz")
    table(src / "labels.json", TABLE)
    return {"img/img0001.nii.gz": sizes("kidney", "liver")}, set()


def folders_of_cases(src):
    ct(src / "images" / "anna" / "ct.nii.gz")
    drawn(src / "labels" / "anna" / "seg.nii.gz")
    table(src / "labels.json", TABLE)
    return {"images/anna/ct.nii.gz": sizes("kidney", "liver")}, set()


def named_like_a_ct(src):
    """Labels under the names of CTs, with and without the CT that they were drawn on; and probabilities."""
    ct(src / "a" / "a.nii.gz")
    drawn(src / "a" / "liver.nii.gz", only=1)
    drawn(src / "b" / "ct.nii.gz", 2)
    drawn(src / "c" / "patient.nii.gz", 3, dtype=np.float64)
    _, labels = body((8, 24, 24), seed=1)
    write_volume(src / "a" / "soft.nii.gz", Volume(labels.array.astype(np.float32) / 3, labels.grid))
    expected = {"a/a.nii.gz": {"liver": sizes("liver", "")["liver"]}}
    return expected, {"a/soft.nii.gz", "b/ct.nii.gz", "c/patient.nii.gz"}


def labels_on_another_grid(src):
    """Called like the CT, in a folder farther away, and shifted."""
    ct(src / "scans" / "anna.nii.gz")
    _, labels = body((8, 24, 24), seed=1)
    affine = labels.grid.affine.copy()
    affine[:3, 3] += 1.3
    shifted = Grid(labels.grid.shape, affine)
    write_volume(src / "drawn" / "manual" / "anna.nii.gz", Volume(labels.array, shifted))
    table(src / "labels.json", TABLE)
    return {"scans/anna.nii.gz": {}}, {"drawn/manual/anna.nii.gz"}


def masks_beside_a_table_of_others(src):
    """A table numbers label images; it does not number masks that come in files of their own."""
    ct(src / "a" / "ct.nii.gz")
    drawn(src / "a" / "segmentations" / "heart.nii.gz", only=1)
    drawn(src / "a" / "segmentations" / "aorta.nii.gz", only=2)
    table(src / "dataset.json", {"labels": {"liver": 1, "spleen": 2}})
    return {"a/ct.nii.gz": sizes("heart", "aorta")}, set()


LAYOUTS = [
    *(
        nnunet_v1,
        nnunet_v2,
        msd,
        msd_without_its_table,
        bids,
        lits,
        kits,
        han_seg_folders,
        han_seg_files,
        verse,
    ),
    *(pddca, totalsegmentator, amos, segthor, learn2reg, deepmind, ct_org, structseg, visceral, btcv),
    *(folders_of_cases, named_like_a_ct, labels_on_another_grid, masks_beside_a_table_of_others),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_layout(layout, tmp_path):
    exams, refused = layout(tmp_path / "src")
    assert prepared(tmp_path / "src", tmp_path) == (exams, refused)
