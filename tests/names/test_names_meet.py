"""When two names mean one structure: the usual vocabularies meet, and left and right never do."""

from __future__ import annotations

import json
import re
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepatlas.errors import DataError, did_you_mean
from deepatlas.localize.template.file import Template
from deepatlas.names.meet import chosen, meeting, structure_and_side, synonyms

# Rows of one structure each: TG-263, TotalSegmentator, OpenKBP, and other challenges.
SAME = [
    ("SpinalCord", "spinal_cord", "Cord", "Spinal-Cord", "spinal cord", "SPINALCORD"),
    ("Brainstem", "brainstem", "BrainStem", "brain_stem", "Brain stem"),
    ("Parotid_L", "parotid_gland_left", "LeftParotid", "Parotid-Lt", "PAROTIDL", "left parotid", "Glnd_Parotid_L"),
    ("Parotid_R", "parotid_gland_right", "RightParotid", "Parotid-Rt", "rtparotid"),
    ("Bone_Mandible", "mandible", "Mandible", "MANDIBULA"),
    ("Esophagus", "esophagus", "oesophagus", "Oesophagus"),
    ("Larynx", "larynx", "LARYNX"),
    ("Eye_L", "eye_left", "Eyeball_L", "leye", "left_eye"),
    ("Lens_R", "eye_lens_right", "Lens-Rt"),
    ("OpticNrv_L", "optic_nerve_left", "Optic-Nerve-Lt", "OpticNerve_L", "ON_L"),
    ("Glnd_Submand_L", "submandibular_gland_left", "Submandibular-Lt", "SMG_L"),
    ("Lung_L", "lung_left", "LungL", "Left Lung"),
    ("Kidney_R", "kidney_right", "right kidney"),
    ("Femur_Head_L", "femoral head left", "FemoralHead_L"),
    ("Glnd_Adrenal_R", "adrenal_gland_right", "right adrenal gland"),
    ("Liver", "liver"),
    ("Spleen", "spleen"),
    ("Heart", "heart"),
    ("Stomach", "stomach"),
    ("Bladder", "urinary_bladder"),
    ("Gallbladder", "gall bladder", "gallbladder"),
    ("Glnd_Thyroid", "thyroid_gland"),
    ("VB_L1", "vertebrae_L1"),
    ("V_Venacava_I", "inferior_vena_cava", "postcava"),
    # Not in the table, but told by their words.
    ("lung_lower_lobe_left", "LeftLungLowerLobe"),
    ("Scapula_R", "scapula_right"),
]  # fmt: skip


@pytest.mark.parametrize("names", SAME, ids=lambda names: names[0])
def test_the_usual_vocabularies_meet(names):
    for name in names[1:]:
        assert meeting([names[0]], [name], "here") == {names[0]: name}
        assert meeting([name], [names[0]], "here") == {name: names[0]}


def test_no_name_meets_that_of_another_structure():
    means = [{structure_and_side(name) for name in names} for names in SAME]
    assert [len(m) for m in means] == [1] * len(SAME)
    assert len(set.union(*means)) == len(SAME)
    apart = ["Lung_L", "Lungs", "Lung", "lung_upper_lobe_left", "SpinalCanal", "SpinalCord", "Bladder", "Gallbladder",
             "Optic chiasm", "Parotid", "VB_L1", "VB_T1", "rib_left_1", "rib_right_1", "PTV", "PTV_60"]  # fmt: skip
    assert len({structure_and_side(name) for name in apart}) == len(apart)


TABLE = json.loads((resources.files("deepatlas.names") / "synonyms.json").read_text(encoding="utf-8"))
SPELLED = {kind: sorted({n for s, o in TABLE[kind].items() for n in (s, *o)}) for kind in TABLE}
# How a side is written, without a word of the code under test.
LEFT = ["{}_L", "{} left", "{}-Lt", "Left {}", "l_{}", "LT {}", "{}Left", "left{}"]
OTHER = str.maketrans({"L": "R", "l": "r"})


def mirrored(form: str) -> str:
    """The same way of writing, of the other side."""
    return re.sub("left", "right", re.sub("Left", "Right", form)) if "eft" in form else form.translate(OTHER)


@given(
    st.sampled_from(SPELLED["sided"]),
    st.sampled_from(LEFT),
    st.sampled_from([str, str.lower, lambda n: n.replace(" ", "_"), lambda n: n.replace("_", " ")]),
)
def test_every_synonym_keeps_its_side(name, form, spell):
    left, right = (spell(f.format(name)) for f in (form, mirrored(form)))
    assert structure_and_side(left) == (synonyms()[0][structure_key(name)], "L")
    assert structure_and_side(right) == (synonyms()[0][structure_key(name)], "R")
    assert not meeting([left], [right], "here")


def structure_key(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


@pytest.mark.parametrize("name", [*SPELLED["sided"], *SPELLED["single"]])
def test_no_entry_of_the_table_has_a_side(name):
    assert structure_and_side(name)[1] == ""
    assert not re.search(r"(^|[_\W])(l|r|lt|rt|left|right)([_\W]|$)", name, re.I)


@given(st.text(max_size=12))
def test_any_text_is_a_name(text):
    structure, side = structure_and_side(text)
    assert side in ("", "L", "R") and meeting([text], [text], "here") == {text: text}


def test_the_exact_name_wins_then_spelling_then_synonyms():
    known = ["Cord", "spinal_cord", "SpinalCord"]
    assert meeting(["SpinalCord"], known, "here") == {"SpinalCord": "SpinalCord"}
    assert meeting(["SpinalCord"], known[:2], "here") == {"SpinalCord": "spinal_cord"}
    assert meeting(["SpinalCord"], known[:1], "here") == {"SpinalCord": "Cord"}
    # What an exact name has taken is not taken again.
    assert meeting(["Cord", "SpinalCord"], ["Cord"], "here") == {"Cord": "Cord"}


def test_two_structures_that_meet_one_name_are_refused():
    with pytest.raises(DataError, match="here: cannot tell whether Cord or myelon is SpinalCord"):
        meeting(["SpinalCord"], ["Cord", "myelon"], "here")
    with pytest.raises(DataError, match="cannot tell whether Spinal_Cord is Cord or myelon"):
        meeting(["Cord", "myelon"], ["Spinal_Cord"], "here")


def test_chosen_names_are_those_of_the_data_and_unknown_ones_suggest_the_nearest():
    assert chosen(["cord", "LeftParotid", "spinal cord"], ["SpinalCord", "Parotid_L"], "t") == [
        "SpinalCord",
        "Parotid_L",
    ]
    with pytest.raises(DataError, match="^t: no structure 'Mandibel'; did you mean Mandible?"):
        chosen(["Mandibel"], ["SpinalCord", "Mandible"], "t")
    with pytest.raises(DataError, match="no structure 'Parotid_R'"):
        chosen(["Parotid_R"], ["parotid_gland_left"], "t")
    assert did_you_mean("x", []) == "there are none"
    assert did_you_mean("x", "abcdefghij", most=2) == "there are 10: a, b …"


def test_a_template_is_selected_by_any_spelling_and_keeps_its_names():
    template = Template(np.zeros((2, 4, 4, 4)), ("SpinalCord", "Parotid_L"), (2, 4))
    part = template.select(["parotid_gland_left"])
    assert (part.names, part.ids) == (("Parotid_L",), (4,))
