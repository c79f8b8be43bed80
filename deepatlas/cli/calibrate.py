"""``deepatlas calibrate``: learn from labelled exams how far the masks of a template can be believed."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import (
    Commands,
    add_command,
    add_data,
    add_model,
    add_strict,
    list_skipped,
    load_model,
    load_template,
    model_files,
    print_result,
    progress_lines,
)
from deepatlas.errors import DataError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands,
        "calibrate",
        run,
        "learn from labelled exams how far the masks of a template can be believed",
    )
    add_model(c)
    c.add_argument("--template", required=True, type=Path, metavar="T", help="the template to calibrate")
    add_data(c)
    c.add_argument(
        "--exams", nargs="+", metavar="ID", help="use only these exams (default: all labelled exams)"
    )
    c.add_argument("--out", required=True, type=Path, metavar="T2", help="template file to write (.h5)")
    c.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="folder for calibration.html, .png and .json, which say how well it holds",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.evaluate.calibrate.report import FILES, write_calibration
    from deepatlas.evaluate.calibrate.run import calibrate, summary_lines
    from deepatlas.exams.outputs import check_out_file, check_out_folder, files_of_data, refuse_overwriting
    from deepatlas.localize.template.file import Template

    check_out_file(args.out, (".h5", ".hdf5"))
    outputs = [args.out]
    if args.report:
        check_out_folder(args.report, "--report")
        outputs += [args.report / name for name in FILES]
    refuse_overwriting(outputs, files_of_data(args.data, args.split) + model_files(args))
    args.structures, args.any_model = None, False
    model = load_model(args)
    template = load_template(args, model)
    if not isinstance(template, Template):
        raise DataError(
            f"{args.model}: was trained on labels; trust needs a model of coordinates and its template"
        )
    found = calibrate(
        model,
        template,
        args.data,
        args.exams,
        split=args.split,
        strict=args.strict,
        progress=progress_lines(args),
    )
    found.template.save(args.out)
    list_skipped(found.skipped)
    page = write_calibration(args.report, found) if args.report else None
    shown = {key: value for key, value in found.figures.items() if key != "values"}
    data = {"template": str(args.out), "report": None if page is None else str(page), **shown}
    print_result(args, data | {"skipped": found.skipped}, "\n".join([str(args.out), *summary_lines(found)]))
    return 0
