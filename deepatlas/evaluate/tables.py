"""Rows of metrics, their summary, and tables of them for the screen and for text files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Row:
    """One structure in one exam; the columns of ``metrics.csv`` in their order."""

    exam: str
    structure: str
    dice: float
    hd95_mm: float
    predicted_ml: float
    reference_ml: float

    @classmethod
    def columns(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    def csv(self) -> list[str]:
        return [v if isinstance(v, str) else f"{v:.6g}" for v in asdict(self).values()]


def statistics(values: Iterable[float]) -> dict[str, float | int | None]:
    """Mean, median, standard deviation (n - 1) and count of the finite values; None where undefined."""
    v = np.array([x for x in values if math.isfinite(x)], dtype=np.float64)
    if not len(v):
        return {"mean": None, "median": None, "std": None, "n": 0}
    std = float(v.std(ddof=1)) if len(v) > 1 else None
    return {"mean": float(v.mean()), "median": float(np.median(v)), "std": std, "n": len(v)}


def summarise(rows: Sequence[Row], structures: Sequence[str] | None = None) -> dict:
    """Per-structure and overall statistics of ``rows``.

    ``overall`` holds two means that differ when structures are drawn in different numbers of exams:
    ``*_mean_of_structures`` (every structure counts once) and ``*_mean_of_rows`` (every exam-structure pair
    does). A missed structure (empty prediction) counts as Dice 0, and in ``missed`` instead of in the
    distances.
    """
    names = list(structures) if structures is not None else list(dict.fromkeys(r.structure for r in rows))
    table = {}
    for name in names:
        own = [r for r in rows if r.structure == name]
        table[name] = {
            "dice": statistics(r.dice for r in own),
            "hd95_mm": statistics(r.hd95_mm for r in own),
            "missed": sum(math.isinf(r.hd95_mm) for r in own),
        }

    def over_structures(key: str) -> float | None:
        means = [t[key]["mean"] for t in table.values() if t[key]["mean"] is not None]
        return float(np.mean(means)) if means else None

    overall = {
        "dice_mean_of_structures": over_structures("dice"),
        "dice_mean_of_rows": statistics(r.dice for r in rows)["mean"],
        "hd95_mm_mean_of_structures": over_structures("hd95_mm"),
        "hd95_mm_mean_of_rows": statistics(r.hd95_mm for r in rows)["mean"],
        "structures": sum(t["dice"]["n"] > 0 for t in table.values()),
        "rows": len(rows),
        "exams": len({r.exam for r in rows}),
        "missed": sum(t["missed"] for t in table.values()),
    }
    return {"structures": table, "overall": overall}


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def summary_cells(summary: dict) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the per-structure table, with the two overall means as its last rows."""
    header = ["structure", "n", "Dice mean", "median", "std", "HD95 mm mean", "median", "std", "missed"]
    cells = []
    for name, t in summary["structures"].items():
        d, h = t["dice"], t["hd95_mm"]
        cells.append(
            [name, str(d["n"])]
            + [number(d[k], 3) for k in ("mean", "median", "std")]
            + [number(h[k], 2) for k in ("mean", "median", "std")]
            + [str(t["missed"])]
        )
    o = summary["overall"]
    for label, key, n in (
        ("mean over structures", "of_structures", o["structures"]),
        ("mean over rows", "of_rows", o["rows"]),
    ):
        dice, hd95 = number(o[f"dice_mean_{key}"], 3), number(o[f"hd95_mm_mean_{key}"], 2)
        cells.append([label, str(n), dice, "", "", hd95, "", "", str(o["missed"])])
    return header, cells


def text_table(header: Sequence[str], cells: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Aligned plain-text (or Markdown) table; the first column is left-aligned, numbers are right-aligned."""
    rows = [list(header), *[list(r) for r in cells]]
    if markdown:  # a bar inside a name would open a new column
        rows = [[c.replace("|", "\\|") for c in r] for r in rows]
    widths = [max(3, *(len(r[i]) for r in rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cols = [
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cols)} |" if markdown else "  ".join(cols).rstrip()

    if markdown:
        rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    else:
        rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(rows[0]), rule, *[line(r) for r in rows[1:]]])


def summary_table(summary: dict, markdown: bool = False) -> str:
    """The table of a summary of :func:`summarise`, with the conventions in use below it."""
    text = text_table(*summary_cells(summary), markdown=markdown)
    note = summary.get("conventions", {}).get("hd95")
    return f"{text}\n{chr(10) if markdown else ''}HD95: {note}" if note else text
