"""What a structure may be called in a dataset."""

from __future__ import annotations

import json
import random

import pytest

from deepatlas.errors import DataError
from deepatlas.intake.privacy.names import clean_name, identifier_tokens, why_private
from deepatlas.intake.structures.name_map import NameMap, label_table
from deepatlas.names.meet import compact


@pytest.fixture
def lungs(tmp_path) -> NameMap:
    path = tmp_path / "names.json"
    path.write_text(
        json.dumps(
            {
                "lung_left": ["Lung L", "linke Lunge", r"regex:^lung.*l(eft)?$"],
                "lung_right": ["Lung R", r"regex:^lung.*r(ight)?$"],
                "heart": "Herz",
                "ösophagus": ["食道"],
            }
        ),
        encoding="utf-8",
    )
    return NameMap.read(path)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("Lung L", "lung_left"),
        ("LUNG-l", "lung_left"),
        ("lung.l.", "lung_left"),
        ("Lung_Left", "lung_left"),
        ("Lung (upper) left", "lung_left"),
        ("LINKE   LUNGE", "lung_left"),
        ("Lung-Right", "lung_right"),
        ("Heart", "heart"),
        ("HERZ", "heart"),
        ("Ösophagus", "ösophagus"),
        ("ÖSOPHAGUS", "ösophagus"),
        ("o\u0308sophagus", "ösophagus"),
        ("食 道", "ösophagus"),
        ("whole lung", None),
        ("heart wall", None),
        ("", None),
        ("---", None),
    ],
)
def test_aliases_and_patterns_without_case_and_punctuation(lungs, source, wanted):
    name, reason = lungs.match(source)
    assert name == wanted
    assert bool(reason) == (wanted is None)


def test_an_alias_goes_before_patterns_and_two_patterns_decide_nothing():
    names = NameMap({"a": ("regex:lung",), "b": ("regex:left",), "c": ("Left lung",)})
    assert names.match("left LUNG") == ("c", "")
    name, reason = names.match("left lungs")
    assert name is None and "'a' and 'b'" in reason
    assert names.wanted == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "not a JSON object"),
        ('{"a": 1}', "not a list of names"),
        ('{"a": {"b": "c"}}', "not a list of names"),
        ('{"a": [1]}', "not a string"),
        ('{"a": ["x"], "a": ["y"]}', "listed twice"),
        ('{"a": ["X-y"], "b": ["x Y"]}', "alias of 'a' and of 'b'"),
        ('{"a": ["b"], "b": []}', "alias of 'a' and of 'b'"),
        ('{"a": ["regex:("]}', "no regular expression"),
        ('{"a": ["regex:x*"]}', "matches every name"),
        ('{"a": ["--"]}', "no letter or digit"),
        ('{" ": []}', "letter or digit"),
    ],
)
def test_a_wrong_map_is_one_line_that_names_file_and_cure(tmp_path, text, message):
    path = tmp_path / "names.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="names.json") as error:
        NameMap.read(path)
    assert message in str(error.value)


def test_a_missing_map_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        NameMap.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("Lung L", "lung_l"),
        (" Spinal-Cord ", "spinal_cord"),
        ("Ösophagus", "ösophagus"),
        ("GTV-1", "gtv_1"),
        ("肝", "肝"),
    ],
)
def test_clean_names(name, clean):
    assert clean_name(name) == clean
    assert compact(name) == compact(clean)


@pytest.mark.parametrize(
    "name",
    ["Lung L", "GTV-1", "Ösophagus", "PTV_7000_5600", "parotid_left", "肝臓", "C7", "x" * 64],
)
def test_names_that_may_go_in(name):
    assert why_private(name, identifier_tokens(["Doe^Jonathan", "MRN4711", "LUNG1-003"])) == ""


@pytest.mark.parametrize(
    "name",
    [
        "", "123", "  ", "x" * 65, "liver@clinic", "Lung (L)", "a/b", "a.b", "liver\nDoe", "liver 4711230",
        "cord 2018-02-09", "9_2_2018 heart", "call 555 123 4567", "id 123-45-6789", "Jonathan liver", "DOE",
        "doe_heart", "mrn4711", "MRN 4711", "jonathansheart", "LUNG1-003 heart", "Dr Mueller ctv",
    ],
)  # fmt: skip
def test_names_that_may_not(name):
    assert why_private(name, identifier_tokens(["Doe^Jonathan", "MRN4711", "LUNG1-003", "Mueller^Petra^^Dr"]))


def test_anatomy_in_a_patient_id_hides_no_structure():
    found = identifier_tokens(["Pancreas-CT-0001", "Prostate^Patient", "A^B", "7"])
    assert not why_private("pancreas", found) and not why_private("Prostate", found)
    assert why_private("pancreas-ct-0001", found)


def test_ids_do_not_depend_on_the_order_and_keep_what_was_given():
    names = ["spleen", "liver", "PTV 1", "ptv_2", "aorta", "gtv"]
    want = {"PTV 1": 1, "gtv": 2, "ptv_2": 3, "aorta": 4, "liver": 5, "spleen": 6}
    for seed in range(5):
        random.Random(seed).shuffle(names)
        assert label_table(names) == want
    given = {"spleen": 9, "heart": 3}
    assert list(label_table(["aorta", "spleen"], given).items()) == [
        ("spleen", 9),
        ("heart", 3),
        ("aorta", 10),
    ]
    assert given == {"spleen": 9, "heart": 3}
    with pytest.raises(DataError, match="65535"):
        label_table(["x", "y"], {"z": 65534})
