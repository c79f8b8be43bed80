"""``deepatlas compare``: hold evaluations of several experiments against each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import POSITIVE, SEED, Commands, add_command, print_result


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "compare", run, "compare evaluations: paired tests and the paper's tables")
    c.add_argument(
        "evaluations",
        nargs="+",
        metavar="[NAME=]RUN_OR_EVAL",
        help="folder that `deepatlas evaluate` wrote, or run that holds one; paths of one NAME are one experiment on "
        "several test cohorts",
    )
    c.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the tables, figures and the report"
    )
    c.add_argument(
        "--names", nargs="+", metavar="NAME", help="display names, in the order of the evaluations"
    )
    c.add_argument("--baseline", metavar="NAME", help="experiment to compare with (default: the first)")
    c.add_argument(
        "--common",
        action="store_true",
        help="compare over the exams and structures that all have, and list the others (default: refuse)",
    )
    c.add_argument(
        "--sort", action="store_true", help="order by mean Dice, the best first (default: as given)"
    )
    c.add_argument(
        "--show", nargs="+", default=[], metavar="STRUCTURE", help="structures of the summary table"
    )
    c.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of the bootstrap (default: 0)")
    c.add_argument(
        "--resamples", type=POSITIVE, default=5000, metavar="N", help="draws of the bootstrap (default: 5000)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.compare.evaluations import compare_evaluations

    facts = compare_evaluations(
        args.evaluations, args.out, names=args.names, baseline=args.baseline, common=args.common, sort=args.sort,
        show=args.show, seed=args.seed, resamples=args.resamples,
    )  # fmt: skip
    print_result(args, facts, _text(facts, args.out))
    return 0


def _text(facts: dict, out: Path) -> str:
    """The table for the screen: the means over structures, and what is missing."""
    from deepatlas.evaluate.tables import number, text_table

    measures = facts["measures"]
    header = ["experiment", *(found["title"] for found in measures.values()), "missed"]
    rows = []
    for name, about in facts["experiments"].items():
        means = [found["experiments"][name]["mean_of_structures"] for found in measures.values()]
        rows.append([name, *(number(m, 3) for m in means), str(len(about["missed"]))])
    lines = [
        text_table(header, rows),
        f"means over structures; {facts['exams']} exams, {facts['pairs']} pairs",
    ]
    left = {n: len(about["left_out"]) for n, about in facts["experiments"].items() if about["left_out"]}
    if left:
        lines.append("left out: " + ", ".join(f"{count} pairs of {name}" for name, count in left.items()))
    return "\n".join([*lines, str(out / "comparison.html")])
