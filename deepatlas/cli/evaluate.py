"""``deepatlas evaluate``: score segmentation on labelled exams."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import (
    DISTANCE,
    PARTS,
    Commands,
    add_command,
    add_data,
    add_model,
    add_strict,
    add_template,
    list_skipped,
    list_unknown,
    load_model,
    load_template,
    model_files,
    print_result,
    progress_lines,
)


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "evaluate", run, "score segmentation on labelled exams")
    add_model(c)
    add_template(c)
    add_data(c)
    c.add_argument(
        "--exams",
        nargs="+",
        metavar="ID",
        help="evaluate only these exams (default: all labelled exams, or those of the test part of a split)",
    )
    c.add_argument("--part", choices=PARTS, help="evaluate this part of the split")
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for metrics.csv, summary.json, report.html and figures",
    )
    c.add_argument(
        "--hd95",
        default="mean",
        choices=("mean", "max", "pooled"),
        help="convention of HD95 (default: mean, which is eq. 16)",
    )
    c.add_argument(
        "--tolerance",
        default=3.0,
        type=DISTANCE,
        metavar="MM",
        help="distance in mm up to which surface Dice counts a piece of a surface as met (default: 3)",
    )
    c.add_argument(
        "--convention",
        default="radiological",
        choices=("radiological", "neurological"),
        help="how pictures are turned (default: radiological)",
    )
    c.add_argument("--no-pictures", action="store_true", help="draw no pictures")
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.evaluate.cohort import evaluate_cohort
    from deepatlas.evaluate.tables import summary_table
    from deepatlas.exams.outputs import check_out_folder, files_of_data, refuse_overwriting

    check_out_folder(args.out)
    outputs = [args.out / name for name in ("metrics.csv", "summary.json", "report.html")]
    outputs += (args.out / "figures").glob("*")
    refuse_overwriting(outputs, files_of_data(args.data, args.split) + model_files(args))
    model = load_model(args)
    summary = evaluate_cohort(
        model, load_template(args, model), args.data, args.out, args.exams, args.strict, hd95=args.hd95,
        tolerance=args.tolerance, threshold=args.threshold, convention=args.convention, pictures=not args.no_pictures,
        split=args.split, part=args.part, progress=progress_lines(args),
    )  # fmt: skip
    list_skipped(summary["skipped"])
    list_unknown(model, summary["fit"])
    print_result(args, summary, f"{summary_table(summary)}\n{args.out / 'report.html'}")
    return 0
