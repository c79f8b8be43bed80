"""``deepatlas report``: one self-contained HTML page of a run, of exams, or of a comparison."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.cli.common import (
    USE_OF_MODEL,
    USE_OF_TEMPLATE,
    Commands,
    add_command,
    add_strict,
    add_template,
    add_trust,
    add_use_of_model,
    list_skipped,
    load_model,
    load_template,
    model_files,
    note_no_trust,
    note_unknown,
    print_result,
    progress_lines,
    refuse_options,
    refuse_skipped,
)

if TYPE_CHECKING:
    from deepatlas.localize.trust.estimate import Trust


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "report", run, "write one HTML page of a run, of exams, or of a comparison")
    c.add_argument(
        "what",
        nargs="+",
        metavar="RUN_OR_EXAM",
        help="a run folder; with --model, exams, each as the EXAM of `deepatlas segment`; or several runs or "
        "evaluations, [NAME=]PATH, which are compared",
    )
    c.add_argument("--out", required=True, type=Path, metavar="FILE", help="HTML file to write")
    c.add_argument(
        "--model", metavar="M", help="run folder, model file, or name of a shipped model, for exams"
    )
    add_template(c)
    add_use_of_model(c)
    c.add_argument(
        "--convention",
        choices=("radiological", "neurological"),
        default="radiological",
        help="the patient's right on the left of the pictures (default), or on the right",
    )
    add_trust(c)
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_file

    check_out_file(args.out, (".html", ".htm"))
    if args.model:
        return _exams(args)
    of_exams = {"--template": None, **USE_OF_TEMPLATE, **USE_OF_MODEL}
    of_exams |= {"--convention": "radiological", "--trust": False, "--strict": False}
    refuse_options(args, of_exams, "is for exams; give --model M as well")
    if len(args.what) == 1:
        from deepatlas.report.run import report_run

        facts = report_run(Path(args.what[0]), args.out)
        print_result(args, {"out": str(args.out), **facts}, str(args.out))
        return 0
    from deepatlas.compare.evaluations import compare_evaluations
    from deepatlas.files import write_text

    with tempfile.TemporaryDirectory() as folder:
        facts = compare_evaluations(args.what, folder)
        write_text(args.out, Path(folder, "comparison.html").read_text(encoding="utf-8"))
    data = {"out": str(args.out), "experiments": list(facts["experiments"]), "exams": facts["exams"]}
    print_result(args, data, str(args.out))
    return 0


def _exams(args: argparse.Namespace) -> int:
    from deepatlas.exams.cohort import named_exams
    from deepatlas.exams.outputs import files_of_exams, refuse_overwriting
    from deepatlas.report.exams import report_exams

    skipped: dict[str, str] = {}
    exams = named_exams(args.what, skipped)
    refuse_skipped(args, skipped)
    refuse_overwriting([args.out], files_of_exams(exams.values()) + model_files(args))
    model = load_model(args)
    template = load_template(args, model)
    done = report_exams(
        model, template, exams, args.out, convention=args.convention, threshold=args.threshold, trust=args.trust,
        strict=args.strict, progress=progress_lines(args),
    )  # fmt: skip
    told = set[str]()
    for name, fit in done.fits.items():
        note_unknown(args, name, fit)
        note_no_trust(name, done.trust.get(name, {}), told)
    list_skipped(skipped | done.failed)
    data = {
        "out": str(args.out),
        "exams": {name: fit.to_dict() | _trust_of(done.trust.get(name)) for name, fit in done.fits.items()},
        "failed": done.failed,
        "skipped": skipped,
    }
    print_result(args, data, f"{args.out}: {len(done.fits)} of {len(exams)} exams")
    return 1 if done.failed else 0


def _trust_of(trust: Mapping[str, Trust] | None) -> dict[str, Any]:
    """The entry ``"structures"`` of an exam, as that of ``deepatlas segment``; nothing where it was not asked for."""
    return {} if trust is None else {"structures": {name: one.to_dict() for name, one in trust.items()}}
