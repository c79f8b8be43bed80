"""The tables by which data sets name their ids, and what is wrong with others."""

from __future__ import annotations

import json

import pytest
from small_exams import one_line

from deepatlas.errors import DataError
from deepatlas.intake.structures.tables import is_table, no_ct, read_table


def read(tmp_path, content, name="dataset.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_table(path, name)


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "left kidney", "2": "aorta"},
        {"background": 0, "left kidney": 1, "aorta": 2},
        {"background": "0", "left kidney": "1", "aorta": "2"},
        {"background": 0, "left kidney": [1], "aorta": [2]},
        {"0": {"0": "background", "1": "left kidney", "2": "aorta"}},
    ],
)
def test_names_both_ways_round(tmp_path, labels):
    table = read(tmp_path, {"labels": labels, "modality": {"0": "CT"}})
    assert table.labels == {"left kidney": 1, "aorta": 2} and table.channels == ("CT",)


def test_a_byte_order_mark_and_names_with_other_characters(tmp_path):
    table = read(tmp_path, "\ufeff" + json.dumps({"labels": {"1": "prostate/uterus", "2": "fémur (left)"}}))
    assert table.labels == {"prostate_uterus": 1, "fémur _left": 2}


def test_a_file_of_another_program_is_no_table(tmp_path):
    for content in ({"name": "x"}, ["a"], {"labels": ["a"]}):
        assert read(tmp_path, content).labels == {}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not JSON"),
        ({"labels": {"whole tumor": [1, 2], "core": [2]}}, "regions of several ids"),
        ({"labels": {"1": "liver", "2": "liver"}}, "twice"),
        ({"labels": {"liver": 1, "spleen": 1}}, "twice"),
        ({"labels": {"liver": "first"}}, "no id"),
        ({"labels": {"liver": 65536}}, "no id"),
        ({"labels": {"liver": True}}, "no id"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, content, why):
    with pytest.raises(DataError, match=why) as error:
        read(tmp_path, content)
    assert "labels.json" in one_line(error.value)


def test_tables_of_bids(tmp_path):
    text = "name\tindex\nBackground\t0\nLiver\t3\n"
    assert read(tmp_path, text, "sub-01_dseg.tsv").labels == {"Liver": 3}
    with pytest.raises(DataError, match="no columns index and name"):
        read(tmp_path, "a\tb\n1\t2\n", "dseg.tsv")


def test_names_of_tables():
    assert all(
        map(is_table, ["labels.json", "dataset.json", "AbdomenCTCT_dataset.json", "dseg.tsv", "a_dseg.tsv"])
    )
    assert not any(map(is_table, ["plans.json", "participants.tsv", "labels.json.bak"]))


def test_channels_that_are_no_ct():
    assert all(map(no_ct, ["MRI", "T2w", "PET", "noNorm PT", "FLAIR"]))
    assert not any(map(no_ct, ["CT", "rescale_to_0_1", "", "zscore"]))
