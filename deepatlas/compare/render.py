"""Tables as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deepatlas.compare.tables import Cell, Line, Table
from deepatlas.evaluate.tables import text_table

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # A row of a table that begins with a bracket would be the argument of the line break before it, and one that
    # begins with an asterisk its star.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "–": "--",
    "…": r"\ldots{}",
}
# Lines of a table on a page.
_LINES = 60
_DOCUMENT = r"""% Tables of deepatlas compare. The file compiles (pdflatex, lualatex, xelatex). To use a table in a
% document of yours, copy it, and load the packages booktabs and graphicx.
\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[a4paper,margin=15mm]{geometry}
\begin{document}
"""


def markdown(tables: Sequence[Table], title: str, lines: Sequence[str] = ()) -> str:
    """The tables as a Markdown document. ``lines`` stand below its title."""
    parts = [f"# {_plain(title)}", *(f"- {_plain(line)}" for line in lines)]
    text = "\n".join([parts[0], "", *parts[1:]])
    for table in tables:
        width = len(table.header)
        cells = [
            [_bold(c, line.heading) for c in line.cells] + [""] * (width - len(line.cells))
            for line in table.lines
        ]
        body = text_table([_plain(h) for h in table.header], cells, markdown=True)
        text += f"\n\n## {_plain(table.title)}\n\n{body}"
        if table.notes:
            text += "\n\n" + " ".join(_plain(note) for note in table.notes)
    return text + "\n"


def latex(tables: Sequence[Table], title: str) -> str:
    """The tables as a LaTeX document that compiles, with every name escaped."""
    return (
        _DOCUMENT
        + f"\\section*{{{escape(title)}}}\n"
        + "\n".join(_latex(t) for t in tables)
        + "\\end{document}\n"
    )


def escape(text: str) -> str:
    """Text for LaTeX.

    Letters beyond Latin, for which pdflatex has no font, are written by their number, as ``U+4E2D``.
    """
    return "".join(
        _LATEX.get(c) or (c if _has_font(c) else f"U+{ord(c):04X}") for c in " ".join(text.split())
    )


def _has_font(c: str) -> bool:
    """Whether LaTeX with T1 fonts sets a character: printable ASCII, and the letters of Latin-1."""
    return " " <= c <= "~" or ("À" <= c <= "ÿ" and c not in "×÷")


def _latex(table: Table) -> str:
    """A table as floats of one page each."""
    parts = [table.lines[k : k + _LINES] for k in range(0, len(table.lines), _LINES)] or [()]
    return "".join(_float(table, lines, k) for k, lines in enumerate(parts))


def _float(table: Table, lines: Sequence[Line], part: int) -> str:
    width = len(table.header)
    rows = [" & ".join(_cell(Cell(h), False) for h in table.header) + r" \\"]
    for number, line in enumerate(lines):
        if line.heading or number == 0:
            rows.append(r"\midrule")
        if line.heading:
            rows.append(rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{escape(line.cells[0].text)}}}}} \\")
        else:
            cells = [_cell(c, c.best or (line.total and k == 0)) for k, c in enumerate(line.cells)]
            rows.append(" & ".join(cells) + r" \\")
    body = "\n".join(rows)
    title = f"{table.title} (continued)" if part else table.title
    label = "" if part else f"\\label{{tab:{table.name.replace('_', '-')}}}"
    notes = "".join(f"\n\n{{\\footnotesize {escape(note)}\\par}}" for note in table.notes)
    # A wide table shrinks to the page instead of running out of it.
    return (
        f"\\begin{{table}}[p]\n\\centering\n\\caption{{{escape(title)}}}{label}\n\\footnotesize\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{l{'r' * (width - 1)}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}}}"
        f"{notes}\n\\end{{table}}\n\\clearpage\n"
    )


def _cell(cell: Cell, bold: bool) -> str:
    # The minus of a number is longer than a hyphen.
    text = re.sub(r"(?<![\w.])-(?=\d)", "$-$", escape(cell.text))
    return rf"\textbf{{{text}}}" if bold and text else text


def _bold(cell: Cell, heading: bool) -> str:
    text = _plain(cell.text)
    return f"**{text}**" if text and (cell.best or heading) else text


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup. Bars are escaped where the table is set."""
    for mark in "\\`*_[]<>#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
