"""``deepatlas locate``: find points of one exam in other exams."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.cli.common import (
    Commands,
    add_command,
    add_model,
    add_strict,
    add_trust,
    list_skipped,
    load_model,
    load_template,
    model_files,
    note_unknown,
    print_result,
    progress_lines,
    refuse_skipped,
)
from deepatlas.errors import PROGRAM, DataError

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.localize.points import Located
    from deepatlas.localize.template.file import Template


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "locate", run, "find points of one exam in other exams")
    add_model(c)
    c.add_argument(
        "--from", required=True, type=Path, dest="source", metavar="A", help="exam that the points are in"
    )
    c.add_argument(
        "--to",
        required=True,
        nargs="+",
        metavar="B",
        help="exams to find them in; each as the EXAM of `deepatlas segment`",
    )
    c.add_argument(
        "--points",
        required=True,
        type=Path,
        metavar="P",
        help="CSV file with the columns name,x,y,z in RAS mm",
    )
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="OUT",
        help="CSV file to write: target,name,x,y,z,inversion_mm,found,reason,fit,known",
    )
    add_trust(c)
    c.add_argument("--template", type=Path, metavar="T", help="the template with the calibration for --trust")
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.cohort import named_exams
    from deepatlas.exams.outputs import check_out_file, files_of_exams, refuse_overwriting
    from deepatlas.exams.read import read_volume
    from deepatlas.localize.points import locate
    from deepatlas.localize.points_csv import read_points, write_located
    from deepatlas.localize.trust.estimate import exam_trust

    check_out_file(args.out, (".csv", ".txt"))
    names, points = read_points(args.points)
    skipped: dict[str, str] = {}
    targets = named_exams(args.to, skipped)
    refuse_skipped(args, skipped)
    sources = list(named_exams([args.source]).values())
    if len(sources) != 1:
        raise DataError(
            f"{args.source}: holds {len(sources)} exams; give --from the one exam that the points are in"
        )
    read = files_of_exams([*sources, *targets.values()]) + [args.points, *model_files(args)]
    refuse_overwriting([args.out], read)
    model, source = load_model(args), read_volume(sources[0].ct, kind=sources[0].kind)
    trusted = _trusted(args, model)
    # Outside the loop, since a fault of the source is not one of the targets.
    origin = model.map_exam(source)
    origin_trust = None if trusted is None else exam_trust(model, origin, trusted)
    say, located, failed = progress_lines(args), {}, {}
    for count, (name, exam) in enumerate(targets.items(), 1):
        try:
            result = locate(
                model, points, source, read_volume(exam.ct, kind=exam.kind), origin=origin, trusted=trusted,
                origin_trust=origin_trust,
            )  # fmt: skip
            note_unknown(args, name, result.fit)
        except DataError as error:
            if args.strict:
                raise
            failed[name] = str(error)
            continue
        located[name] = result
        if say:
            found = int(result.found.sum())
            say(f"locate {count}/{len(targets)} {name}: {found} of {len(names)} found")
    if located:
        write_located(args.out, names, located)
    list_skipped(skipped | failed)
    counts = {name: int(result.found.sum()) for name, result in located.items()}
    data = {
        "out": str(args.out) if located else None,
        "points": len(names),
        "found": counts,
        "exams": {name: result.fit.to_dict() | _errors(names, result) for name, result in located.items()},
        "failed": failed,
        "skipped": skipped,
    }
    print_result(args, data, f"{args.out}: {sum(counts.values())} of {len(names) * len(counts)} points found")
    return 1 if failed else 0


def _trusted(args: argparse.Namespace, model: Model) -> Template | None:
    """The template whose calibration tells the errors; None where they were not asked for."""
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.trust.estimate import NOT_CALIBRATED

    if not args.trust:
        if args.template:
            raise DataError(f"--template {args.template}: goes with --trust; give both")
        return None
    if not args.template:
        raise DataError("locate: --trust needs --template T, the template with the calibration")
    args.structures, args.any_model = None, False
    template = load_template(args, model)
    assert isinstance(template, Template)
    if not template.meta.get("trust"):
        print(f"{PROGRAM}: warning: {args.template}: no errors in mm: {NOT_CALIBRATED}", file=sys.stderr)
    return template


def _errors(names: Sequence[str], result: Located) -> dict[str, Any]:
    """The entry ``"points"`` of an exam: the expected error in mm of each point, and its bound."""
    if result.error_mm is None or result.bound_mm is None:
        return {}
    pairs = zip(names, result.error_mm, result.bound_mm, strict=True)
    return {
        "points": [
            {"name": name, "trust": _rounded(error), "bound": _rounded(bound)} for name, error, bound in pairs
        ]
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 2) if math.isfinite(value) else None
