"""The tables of a comparison in the paper's layouts, and as Markdown and LaTeX."""

from __future__ import annotations

import re
from math import inf

import pytest
from made_evaluations import row, write_evaluation

from deepatlas.compare.align import align
from deepatlas.compare.comparison import compare
from deepatlas.compare.experiments import read_experiments
from deepatlas.compare.paired import Bootstrap
from deepatlas.compare.render import escape, latex, markdown
from deepatlas.compare.tables import all_tables

ODD = r"50%_of #1 & {x}\y ~^$|[*]<>" + '"'


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Dice .5 and .6 of the liver and .4 and .2 of an oddly named structure, in three exams with some spread."""
    root = tmp_path_factory.mktemp("tables")
    given = []
    for name, liver, other in (("one", 0.5, 0.4), (ODD, 0.6, 0.2)):
        rows = []
        for i, spread in enumerate((-0.01, 0.0, 0.01)):
            rows.append(row(f"e{i}", "liver", liver + spread, 4 - 5 * liver))
            gone = name != "one" and i == 0
            rows.append(row(f"e{i}", ODD, 0.0 if gone else other - 2 * spread, inf if gone else 10 * other))
        given.append((name, write_evaluation(root / str(len(given)), rows)))
    return compare(align(read_experiments(given)), bootstrap=Bootstrap(50))


def cells(comparison, name):
    (table,) = (t for t in all_tables(comparison, ["liver"]) if t.name == name)
    return {line.cells[0].text: [c.text for c in line.cells[1:]] for line in table.lines}, table


def test_a_structure_table_has_means_averages_and_the_best_in_bold(comparison):
    text, table = cells(comparison, "structures-dice")
    assert table.header == ["", "one", ODD]
    # (0 + .2 + .18) / 3
    assert text["liver"] == ["0.500", "0.600"] and text[ODD] == ["0.400", "0.127"]
    assert text["average"] == ["0.450", "0.363"]
    assert [[c.best for c in line.cells] for line in table.lines[:2]] == [
        [False, False, True],
        [False, True, False],
    ]
    text, table = cells(comparison, "structures-hd95_mm")
    assert text["liver"] == ["1.500", "1.000"] and text[ODD] == ["4.000", "2.000"]
    # Of six pairs the second experiment has five.
    assert text["mean of the pairs that all have"] == ["2.500", "1.400"]


def test_a_pairwise_table_is_column_minus_line_and_antisymmetric(comparison):
    _, table = cells(comparison, "pairwise")
    lines = [[c.text for c in line.cells] for line in table.lines]
    assert lines[0] == ["Dice"] and lines[3] == ["HD95 (mm)"]
    assert lines[1][:2] == ["one", "–"] and lines[2][2] == "–"
    up, down = lines[1][2], lines[2][1]
    # (3 * .1 + (-.42 - .2 - .2)) / 6 with the spread of the missed pair.
    assert up.startswith("-0.087 (p = ") and down.startswith("+0.087 (p = ")
    assert up[6:] == down[6:]


def test_the_table_of_chosen_structures_has_a_part_for_each_measure(comparison):
    _, table = cells(comparison, "summary")
    assert [line.cells[0].text for line in table.lines] == [
        text
        for measure in ("Dice", "HD95 (mm)", "Surface Dice", "ASD (mm)")
        for text in (measure, "liver", "average")
    ]


def test_missing_predictions_are_counted_by_structure(comparison):
    text, _ = cells(comparison, "missing")
    assert text == {ODD: ["3", "0", "1"], "all": ["6", "0", "1"]}


def test_markdown_tables_keep_their_columns_whatever_the_names(comparison):
    text = markdown(all_tables(comparison), "Title")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(blocks) == len(all_tables(comparison))
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in block.splitlines()}
        assert len(counts) == 1
    assert "<" not in text.replace("\\<", "")


def test_latex_escapes_every_special_character():
    assert escape("a_b & 5% #1 $x$ {y} ~^\\") == (
        r"a\_b \& 5\% \#1 \$x\$ \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escape("Größe 肝 α\n[x]") == "Größe U+809D U+03B1 {[}x{]}"


def test_latex_tables_are_balanced_and_have_as_many_cells_as_columns(comparison):
    text = latex(all_tables(comparison), "Title & more")
    plain = re.sub(r"\\[\\{}&%#$_]", lambda m: "\n" if m[0] == r"\\" else "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    open_ones = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    for columns, body in re.findall(r"\\begin\{tabular\}\{(l?r*)\}\n(.*?)\\end\{tabular\}", text, re.S):
        lines = [ln for ln in body.splitlines() if ln.endswith(r"\\") and "multicolumn" not in ln]
        assert lines
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    # No character that TeX reads as a command is left in the text.
    body = re.sub(r"(?m)^%.*$", "", plain)
    body = body[body.index("\\begin{document}") :].replace("$-$", "")
    assert not re.search(r"[$#^~]", body) and "%" not in body.replace("{%\n", "")
    assert r"\textbf{0.600}" in text and "$-$0.087" in text


def test_a_long_table_goes_on_over_several_pages(comparison):
    (table,) = (t for t in all_tables(comparison) if t.name == "structures-dice")
    long = type(table)(**(vars(table) | {"lines": list(table.lines) * 50}))
    text = latex([long], "x")
    assert text.count("(continued)") == 2 and text.count(r"\label{") == 1
    assert text.count("0.600") == 50
