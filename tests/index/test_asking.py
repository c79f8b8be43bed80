"""Questions to a small index: what is told of exams, and what is probably not meant as it is written."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import pytest

from deepatlas.cli.main import main
from deepatlas.index.columns import column
from deepatlas.index.file import About, Entry, IndexFile

NFD = unicodedata.normalize("NFD", "M\u00fcller")
ABOUT = About("model", "template", ("heart", "liver"), 0, True, "m", "t.h5", ("/data",))


def entry(name, fit, heart, ml, trust, **more):
    values = {
        "fit": fit, "known": 1, "labelled": 1, "slices": 40, "quality": trust, column(0, "coverage"): heart,
        column(0, "trust"): trust, column(1, "coverage"): 100, column(1, "ml"): ml, column(1, "hu"): 60,
    }  # fmt: skip
    return Entry(name, f"/data/{name}/ct.nii.gz", "key", values | more)


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "index.sqlite"
    with IndexFile.create(path, ABOUT) as index:
        index.put(
            [
                entry("phantom_1", 0.8123, 100, 1234.5, 90),
                entry("two\nlines", 0.7, 80, 500.2, 70),
                entry(NFD, 0.6, 20, 900.0, 50),
                entry("stranger", 0.9, None, None, None, known=0),
            ]
        )
    return str(path)


def asked(capsys, place, *arguments):
    code = main(["query", place, *arguments])
    out, err = capsys.readouterr()
    return code, out, [line for line in err.splitlines() if "vanished" not in line]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("trust(heart) >= 0.6", "trust(heart) is in percent, and 0.6 is hardly any; did you mean 60?"),
        ("heart > .9", "heart is in percent, and .9 is hardly any; did you mean 90?"),
        ("not (heart > 3 or trust(heart) < 1)", "trust(heart) is in percent"),
        ("fit > 60", "fit goes from 0 to 1, not to 60; did you mean 0.6?"),
        ("fit >= 60 %", "fit goes from 0 to 1"),
        ("quality in (0.5, 90)", "quality is in percent"),
        ("trust(heart) >= 60", ""),
        ("heart >= 1", ""),
        ("heart = 0", ""),
        ("heart >= 0.5 %", ""),
        ("fit > 0.6 and ml(liver) > 0.5", ""),
    ],
)
def test_a_number_of_another_scale_is_one_warning(place, capsys, question, says):
    code, _, warned = asked(capsys, place, question)
    assert code == 0 and len(warned) == bool(says)
    assert not says or says in warned[0]


def test_an_answer_has_what_the_question_names(place, capsys):
    _, out, _ = asked(capsys, place, "heart < 90 and ml(liver) > 500 and slices > 3", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["liver.ml"] for row in rows] == ["500.2", "900"] and rows[0]["slices"] == "40"
    assert "liver.hu" not in rows[0]


def test_columns_are_chosen_and_rounded_once(place, capsys):
    _, out, _ = asked(capsys, place, "heart >= 90", "--columns", "fit, ml(liver), hu, labelled", "--csv")
    assert out.splitlines() == [
        "id,fit,liver.ml,heart.hu,liver.hu,labelled,path",
        "phantom_1,0.8123,1234.5,,60,yes,/data/phantom_1/ct.nii.gz",
    ]
    _, out, _ = asked(capsys, place, "heart >= 90", "--columns", "fit, ml(liver), hu, labelled", "--json")
    (exam,) = json.loads(out)["exams"]
    assert exam["fit"] == 0.8123 and exam["liver.ml"] == 1234.5 and exam["labelled"] is True
    for wrong, says in (
        ("fit,", "got the end"),
        ("fit ml", "expected a comma or the end"),
        ("age", "no 'age'"),
    ):
        code, _, (error,) = asked(capsys, place, "--columns", wrong)
        assert code == 1 and says in error
    code, _, (error,) = asked(capsys, place, "--table2", "--columns", "fit")
    assert code == 1 and "--columns goes with a question" in error


def test_exams_are_found_as_people_write_them(place, capsys):
    composed = unicodedata.normalize("NFC", NFD)
    assert composed != NFD
    for arguments in (["--show", composed], [f"id = {composed}"], [f"exam in (phantom_1, {composed})"]):
        code, out, warned = asked(capsys, place, *arguments)
        assert code == 0 and NFD in out and warned == []
    code, out, (warned,) = asked(capsys, place, "id = PHANTOM_1")
    assert code == 0 and "no exam 'PHANTOM_1'; did you mean phantom_1?" in warned and "phantom_1" not in out
    code, _, (error,) = asked(capsys, place, "--show", "phantom_9")
    assert code == 1 and "did you mean phantom_1?" in error


def test_a_name_of_two_lines_is_one_line_of_the_table(place, capsys):
    _, out, _ = asked(capsys, place)
    assert len(out.splitlines()) == 5 and "two\\nlines" in out
    _, out, _ = asked(capsys, place, "--show", "two\nlines")
    assert out.splitlines()[0] == "id: two\\nlines"


def test_a_ranking_of_labelled_exams_says_so(place, capsys):
    code, _, (said,) = asked(capsys, place, "--rank")
    assert code == 0 and "all exams are labelled" in said


def test_quality_is_of_one_scale(place, capsys):
    _, out, _ = asked(capsys, place, "--json")
    assert [exam["quality"] for exam in json.loads(out)["exams"]] == [90, 70, 50, None]
