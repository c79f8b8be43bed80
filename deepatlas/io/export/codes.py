"""Standard codes of structures, for DICOM: SNOMED CT where the name is known, and a private code where it is not.

The codes are those of pydicom's dictionary, by its keywords. A side is never part of a code: left and right become a
modifier, so that no entry can exchange them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from deepatlas.names.meet import compact, structure_and_side
from deepatlas.space.labels import is_margin

PRIVATE = "99DEEPATLAS"
# The keywords of structures that are called otherwise in TG-263 (names/synonyms.json).
_KEYWORDS = {
    "A_Carotid": "CarotidArtery",
    "A_Aorta": "Aorta",
    "Bone_Mandible": "Mandible",
    "Bowel_Small": "SmallIntestine",
    "BrachialPlex": "BrachialPlexus",
    "Brainstem": "BrainStem",
    "Cavity_Oral": "OralCavity",
    "Eye": "Eyeball",
    "Femur_Head": "FemoralHead",
    "Glnd_Adrenal": "AdrenalGland",
    "Glnd_Lacrimal": "LacrimalGland",
    "Glnd_Submand": "SubmandibularGland",
    "Glnd_Thyroid": "Thyroid",
    "Joint_TM": "TemporomandibularJoint",
    "Kidneys": "Kidney",
    "Lens": "CrystallineLens",
    "Lips": "Lip",
    "Lobe_Temporal": "TemporalLobe",
    "Lungs": "Lung",
    "OpticNrv": "OpticNerve",
    "Parotid": "ParotidGland",
    "SeminalVes": "SeminalVesicle",
    "SpinalCanal": "SpinalCanalStructure",
    "V_Venacava_I": "InferiorVenaCava",
    "V_Venacava_S": "SuperiorVenaCava",
    **{f"VB_{level}": f"{level}Vertebra" for level in (
        *(f"C{n}" for n in range(1, 8)), *(f"T{n}" for n in range(1, 13)), *(f"L{n}" for n in range(1, 6)),
    )},
}  # fmt: skip
# The context groups of DICOM with types of anatomical segments: heart, brain, abdomen, thorax, vessels, pelvis, common
# tissues, and regions. The keywords of their codes count as names.
_GROUPS = ("cid7152", "cid7153", "cid7154", "cid7155", "cid7156", "cid7160", "cid7166", "cid4031")
_SIDES = {"L": codes.SCT.Left, "R": codes.SCT.Right}


@dataclass(frozen=True)
class Coded:
    """The codes of a structure: what kind of thing it is, which, and its side if it has one."""

    category: Code
    type: Code
    side: Code | None = None


def coded(name: str) -> Coded:
    """The codes of a structure that is called ``name``, in any of the vocabularies that the package knows.

    A name that means nothing known gets a private code, whose meaning is the name, and the category of a place.
    """
    if compact(name).startswith("gtv"):
        return Coded(codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm)
    structure, side = structure_and_side(name)
    code = None if is_margin(name) else _known(structure)
    if code is None:
        return Coded(codes.SCT.SpatialAndRelationalConcept, private(name))
    return Coded(codes.SCT.AnatomicalStructure, code, _SIDES.get(side))


def private(name: str) -> Code:
    """A code of our own, the same for the same name."""
    short = name if len(name) <= 16 and name.isascii() else hashlib.sha256(name.encode()).hexdigest()[:16]
    return Code(short.replace("\\", "/"), PRIVATE, name[:64].replace("\\", "/"))


def sequence_item(code: Code) -> Dataset:
    """A code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning,
    )
    return item


def _known(structure: str) -> Code | None:
    if keyword := _KEYWORDS.get(structure):
        found: Code = getattr(codes.SCT, keyword)
        return found
    return _anatomy().get(compact(structure))


@cache
def _anatomy() -> dict[str, Code]:
    found: dict[str, Code] = {}
    for group in _GROUPS:
        for keyword, code in getattr(codes, group).concepts.items():
            if code.scheme_designator == "SCT":
                found.setdefault(compact(keyword), code)
    return found
