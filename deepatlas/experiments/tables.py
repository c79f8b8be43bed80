"""Tables of the figures of several runs."""

from __future__ import annotations

import statistics

# For each figure of a result: heading of its column, factor, and number of decimals.
COLUMNS = {
    "coordinate_error_mm": ("error, mm", 1, 2),
    "coordinate_error_p95_mm": ("95 %, mm", 1, 1),
    "dice": ("Dice", 1, 3),
    "dice_worst_exam": ("worst exam", 1, 3),
    "hd95_mm": ("HD95, mm", 1, 1),
    "folds": ("folds, %", 100, 2),
    "overlap": ("overlap, %", 100, 0),
}


def table(results: dict, default: str) -> str:
    """A Markdown table with a row for each run.

    If the default ran with several seeds, the first row is their mean, with the range from the smallest to the largest.
    """
    columns = {key: form for key, form in COLUMNS.items() if any(key in r for r in results.values())}
    rows = [["setting", *(heading for heading, *_ in columns.values())]]
    rows.append(["---"] * len(rows[0]))
    seeds = [r for r in results.values() if not r["changes"]]
    if len(seeds) > 1:
        cells = []
        for key, (_, factor, decimals) in columns.items():
            values = [factor * r[key] for r in seeds]
            middle, spread = statistics.fmean(values), max(values) - min(values)
            cells.append(f"{middle:.{decimals}f} (spread {spread:.{decimals}f})")
        rows.append([f"{default}, {len(seeds)} seeds", *cells])
    for name, result in results.items():
        cells = [f"{factor * result[key]:.{n}f}" for key, (_, factor, n) in columns.items()]
        rows.append([f"`{name}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summary_line(name: str, results: dict) -> str:
    """The figures of one run in one line."""
    shown = [
        f"{heading} {factor * results[name][key]:.{decimals}f}"
        for key, (heading, factor, decimals) in COLUMNS.items()
        if key in results[name]
    ]
    return f"{name}: {'; '.join(shown)}; {results[name]['cpu_seconds']:.0f} s of CPU"
