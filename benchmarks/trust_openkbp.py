"""Calibrate the trust of a template on OpenKBP ``train``, and see how it holds on ``validation``, which it never saw.

    python benchmarks/trust_openkbp.py DATA/openkbp --model headneck --template headneck --out trust/

writes the calibrated template, the report of the calibration, and ``validation.json``: how well predicted and true Dice
agree on the exams of ``train_si180``, next to a constant for every structure and to each group of signs alone. It takes
some four CPU seconds for each labelled exam.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from deepatlas.api import load
from deepatlas.evaluate.calibrate.collect import Collected, collect, tabulate
from deepatlas.evaluate.calibrate.regression import CrossFit, Table, calibrate_table
from deepatlas.evaluate.calibrate.report import write_calibration
from deepatlas.evaluate.calibrate.run import calibrate, figures
from deepatlas.exams.joined import find_cohort
from deepatlas.exams.selection import Selection
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.calibration import Calibration
from deepatlas.localize.trust.evidence import VIEWS
from deepatlas.localize.trust.signs import SIGNS

GROUPS = {
    "views": ("agreement", "spread", "spread_body"),
    "refinement": ("refined", "shift", "shift_body"),
    "match": ("match", "match_rim"),
    "map": ("stretch", "stretch_sd", "folds"),
    "volume and view": ("volume", "in_view"),
    "HU": ("hu", "hu_sd", "contrast"),
    "fit": ("fit",),
}


def predicted(calibration: Calibration, table: Table) -> CrossFit:
    """What a calibration says of the rows of a table."""
    said = [calibration.dice(table.names[s], x) for s, x in zip(table.structure, table.signs, strict=True)]
    value, bound = np.array(said).T
    return CrossFit(value, bound)


def only(table: Table, signs: tuple[str, ...]) -> Table:
    """The table with these signs alone; the others say nothing."""
    silent = [i for i, name in enumerate(SIGNS) if name not in signs]
    values = table.signs.copy()
    values[:, silent] = 0.0
    return replace(table, signs=values)


def without(table: Table, signs: tuple[str, ...]) -> Table:
    """The table without these signs."""
    return only(table, tuple(name for name in SIGNS if name not in signs))


def constant(train: Table, table: Table) -> CrossFit:
    """The median of each structure in the training rows, for every row."""
    value = np.array([np.median(train.dice[train.structure == row]) for row in table.structure])
    return CrossFit(value, value)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="headneck")
    parser.add_argument("--template", default="headneck")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    template = Template.load(args.template)
    model = load(args.model, refine=template.meta.get("refine", 0))
    done = calibrate(model, template, args.data / "train", progress=print)
    done.template.save(args.out / "template.h5")
    write_calibration(args.out, done)
    chosen = json.loads((args.data / "lists.json").read_text())["train_si180"]["validation"]
    selection = Selection(find_cohort(args.data / "validation"))
    labels = selection.cohort.labels
    drawn = {n: labels[n] for n in template.names}
    exams: list[Collected] = collect(model, selection, template, VIEWS, 1, drawn, print)
    table = tabulate(model, template, exams, drawn, print)
    rows = {name: row for row, name in enumerate(done.table.names)}
    table = replace(
        table, structure=np.array([rows[table.names[s]] for s in table.structure]), names=done.table.names
    )
    calibration = Calibration.from_dict(done.template.meta["trust"])
    result = {}
    for name, kept in {
        "all": None,
        "train_si180": {i for i, e in enumerate(exams) if e.id in chosen},
    }.items():
        part = table if kept is None else table.part(np.isin(table.exam, sorted(kept)))
        result[name] = {
            "constant": figures(part, constant(done.table, part)),
            "trust": figures(part, predicted(calibration, part)),
        }
        for group, signs in GROUPS.items():
            for word, change in (("only", only), ("without", without)):
                found, _ = calibrate_table(change(done.table, signs), VIEWS)
                result[name][f"{word} {group}"] = figures(part, predicted(found, change(part, signs)))
    for name, cases in result.items():
        print(name)
        for case, f in cases.items():
            print(
                f"  {case:24} within {_text(f['spearman_within'])} pooled {_text(f['spearman_pooled'])} "
                f"error {f['error']:.3f} coverage {f['coverage']:.2f} "
                f"poor {f['poor']:.3f} -> {f['poor_without_worst_fifth']:.3f}"
            )
    (args.out / "validation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
