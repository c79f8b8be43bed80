"""Tables of metrics for the screen and for text files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepatlas.evaluate.statistics import Statistics, Summary


def number(value: float | None, digits: int) -> str:
    """A number with a fixed count of decimals, or ``-`` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def summary_cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of the table of structures; the two overall means are its last rows."""
    header = ["structure", "n", "Dice mean", "median", "std", "HD95 mm mean", "median", "std"]
    header += ["surface Dice", "ASD mm", "missed"]

    def of(values: Statistics, digits: int) -> list[str]:
        return [number(v, digits) for v in (values.mean, values.median, values.std)]

    cells = [
        [
            name,
            str(s.dice.n),
            *of(s.dice, 3),
            *of(s.hd95_mm, 2),
            number(s.surface_dice.mean, 3),
            number(s.asd_mm.mean, 2),
            str(s.missed),
        ]  # fmt: skip
        for name, s in summary.structures.items()
    ]
    o = summary.overall
    of_structures = (o.dice_mean_of_structures, o.hd95_mm_mean_of_structures)
    of_structures += (o.surface_dice_mean_of_structures, o.asd_mm_mean_of_structures)
    of_rows = (
        o.dice_mean_of_rows,
        o.hd95_mm_mean_of_rows,
        o.surface_dice_mean_of_rows,
        o.asd_mm_mean_of_rows,
    )
    for label, n, (dice, hd95, surface, asd) in (
        ("mean over structures", o.structures, of_structures),
        ("mean over rows", o.rows, of_rows),
    ):
        cells.append(
            [
                label, str(n), number(dice, 3), "", "", number(hd95, 2), "", "", number(surface, 3),
                number(asd, 2), str(o.missed),
            ]
        )  # fmt: skip
    return header, cells


def text_table(header: Sequence[str], cells: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """An aligned table in plain text or Markdown. The first column is aligned to the left, the others to the right."""
    rows = [list(header), *[list(r) for r in cells]]
    if markdown:
        # A bar inside a name would open a new column.
        rows = [[c.replace("|", "\\|") for c in r] for r in rows]
    widths = [max(3, *(len(r[i]) for r in rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        aligned = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(aligned)} |" if markdown else "  ".join(aligned).rstrip()

    if markdown:
        rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    else:
        rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(rows[0]), rule, *[line(r) for r in rows[1:]]])


def summary_table(data: Mapping[str, Any], markdown: bool = False) -> str:
    """The table of the content of a ``summary.json``, followed by what is to be known about it.

    That is the convention of its distances where it has one, what the data call a structure where that is not the name
    in the template, and which of the exams the template was made from.
    """
    lines = [text_table(*summary_cells(Summary.from_dict(data)), markdown=markdown)]
    if convention := data.get("conventions", {}).get("hd95"):
        lines.append(f"HD95: {convention}")
    if synonyms := data.get("synonyms"):
        lines.append(synonyms_line(synonyms))
    if seen := data.get("in_template"):
        lines.append(in_template_line(seen))
    # Markdown needs an empty line after a table.
    return ("\n\n" if markdown else "\n").join(lines)


def in_template_line(exams: Sequence[str]) -> str:
    """That exams were scored from which the template was made, as one line."""
    return f"the template was made from {', '.join(exams)}, whose scores are too good"


def synonyms_line(synonyms: Mapping[str, str]) -> str:
    """What the data call structures of the template: ``{name in the template: name in the data}`` as one line."""
    return (
        f"named otherwise in the data: {', '.join(f'{ours} ({theirs})' for ours, theirs in synonyms.items())}"
    )
