"""``deepatlas template``: solve for masks in coordinate space from labelled exams (eq. 14)."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import (
    SIDE,
    Commands,
    add_command,
    add_data,
    add_model,
    add_strict,
    add_structures,
    list_skipped,
    list_unknown,
    load_model,
    model_files,
    print_result,
    progress_lines,
)


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "solve for masks in coordinate space from labelled exams (eq. 14)"
    c = add_command(commands, "template", run, text)
    add_model(c)
    add_data(c)
    c.add_argument(
        "--exams", nargs="+", metavar="ID", help="use only these exams (default: all labelled exams)"
    )
    add_structures(c, "include only these structures (default: all)")
    c.add_argument(
        "--size",
        type=SIDE,
        metavar="N",
        help="voxels along each axis (default: 128, or the size of the atlas if larger)",
    )
    c.add_argument("--out", required=True, type=Path, metavar="T", help="template file to write (.h5)")
    c.add_argument(
        "--trust",
        action="store_true",
        help="also calibrate, on the labelled exams of --data, how far its masks can be believed; the same as "
        "`deepatlas calibrate` afterwards",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_file, files_of_data, refuse_overwriting
    from deepatlas.localize.template.build import build_template

    check_out_file(args.out, (".h5", ".hdf5"))
    refuse_overwriting([args.out], files_of_data(args.data, args.split) + model_files(args))
    model = load_model(args)
    template = build_template(
        model, args.data, args.exams, args.structures, size=args.size, strict=args.strict,
        split=args.split, progress=progress_lines(args),
    )  # fmt: skip
    lines = []
    if args.trust:
        from deepatlas.evaluate.calibrate.run import calibrate, summary_lines

        # All labelled exams tell how good masks are, also those that the template was not made from.
        found = calibrate(
            model, template, args.data, split=args.split, strict=args.strict, progress=progress_lines(args)
        )
        template, lines = found.template, summary_lines(found)
    template.save(args.out)
    list_skipped(template.meta["skipped"])
    list_unknown(model, template.meta["fit"])
    data = {"template": str(args.out), "labels": template.labels} | template.meta
    names, exams = len(template.names), len(template.meta["exams"])
    print_result(args, data, "\n".join([f"{args.out}: {names} structures from {exams} exam(s)", *lines]))
    return 0
