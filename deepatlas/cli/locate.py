"""``deepatlas locate``: find points, lines and boxes of one exam, or of a template, in other exams."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.cli.common import (
    Commands,
    add_command,
    add_model,
    add_strict,
    add_structures,
    list_skipped,
    load_model,
    load_template,
    model_files,
    note_unknown,
    print_result,
    progress_lines,
    refuse_skipped,
)
from deepatlas.cli.known import FORMATS, add_cache, add_marks, check_format, knower, read_marks, say_notes
from deepatlas.errors import PROGRAM, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepatlas.api import Model
    from deepatlas.exams.cohort import ExamFiles
    from deepatlas.localize.found import Found
    from deepatlas.localize.trust.estimate import ExamTrust
    from deepatlas.space.markup import Markups

# The files that hold one exam alone.
_SINGLE = (".mrk.json", ".fcsv")


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "locate", run, "find points, lines and boxes of one exam in other exams")
    add_model(c)
    c.add_argument("--from", type=Path, dest="source", metavar="A", help="exam that the points are in")
    c.add_argument(
        "--to",
        required=True,
        nargs="+",
        metavar="B",
        help="exams to find them in; each as the EXAM of `deepatlas segment`",
    )
    add_marks(c)
    c.add_argument(
        "--template",
        type=Path,
        metavar="T",
        help="file whose points, lines and boxes are found, in place of --from",
    )
    add_structures(
        c, "only these points, lines and boxes of the template; put other arguments before this option"
    )
    c.add_argument(
        "--any-model", action="store_true", help="accept a template that was made for another model"
    )
    c.add_argument(
        "--out",
        required=True,
        metavar="OUT",
        help="file to write: .csv (target,name,x,y,z,inversion_mm,found,reason,fit,known; more columns for lines and "
        "boxes) or .json for all targets, .mrk.json or .fcsv for one; or a folder (one that is there, a name that "
        "ends with /, or any with --format), which gets <target>.<format> for each",
    )
    c.add_argument("--format", choices=FORMATS, help="of the files in a folder --out (default: mrk.json)")
    add_cache(c)
    c.add_argument(
        "--trust",
        type=Path,
        metavar="T",
        help="also say which error of each point is to be expected, with a 90 %% bound, from the calibration of this "
        "template (`deepatlas calibrate`) and a few more passes of the network",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.cohort import named_exams
    from deepatlas.exams.outputs import check_out_file, check_out_folder, files_of_exams, refuse_overwriting
    from deepatlas.io.export.markups import markup_suffix
    from deepatlas.localize.found import find, from_exam, from_template
    from deepatlas.localize.found_files import write_each, write_found
    from deepatlas.localize.trust.points import with_errors

    marked = bool(args.points or args.boxes)
    if bool(args.template) == bool(args.source or marked) or (args.source is not None) != marked:
        raise DataError(
            "locate: give either --from A with --points or --boxes, or --template T, which holds what is to be found"
        )
    marks = read_marks(args.points, args.boxes) if marked else None
    skipped: dict[str, str] = {}
    targets = named_exams(args.to, skipped)
    refuse_skipped(args, skipped)
    out, form = Path(args.out), args.format or "mrk.json"
    single = markup_suffix(out) in _SINGLE
    folder = out.is_dir() or args.out.endswith(("/", os.sep)) or args.format is not None
    if folder:
        check_out_folder(out)
        outputs = [out / f"{name}.{form}" for name in targets]
    else:
        if not single:
            check_out_file(out, (".csv", ".txt", ".json"))
            if not out.suffix:
                raise DataError(
                    f"{out}: has no suffix that tells the format; give {out}.csv or {out}.json, or {out}/ for a folder "
                    "with a file for each target"
                )
        elif len(targets) > 1:
            raise DataError(
                f"{out}: holds one exam, and there are {len(targets)} targets; give a folder with --format, or .csv or "
                ".json"
            )
        outputs = [out]
    sources = list(named_exams([args.source]).values()) if args.source else []
    if args.source and len(sources) != 1:
        raise DataError(
            f"{args.source}: holds {len(sources)} exams; give --from the one exam that the points are in"
        )
    read = files_of_exams([*sources, *targets.values()]) + [*args.points, *args.boxes, *model_files(args)]
    refuse_overwriting(outputs, read)
    model = load_model(args)
    believe = _believer(args, model) if args.trust else None
    know = knower(args, model)
    # Outside the loop, since a fault of the source is not one of the targets.
    if marks is not None:
        sought = from_exam(know(sources[0]), marks)
    else:
        sought = from_template(load_template(args, model))
        if not (sought.names or sought.lines or sought.boxes):
            raise DataError(
                f"{args.template}: holds no point, line or box, but masks; find those with `deepatlas segment`"
            )
    if folder or single:
        suffix = form if folder else markup_suffix(out)
        check_format(suffix, len(sought.names), len(sought.lines), len(sought.boxes))
    origin = believe(sources[0]) if believe and sources else None
    given = None if marks is None else _positions(marks)
    say, found, failed = progress_lines(args), {}, {}
    untold: dict[str, str] = {}
    if believe is not None and not sought.names:
        print(
            f"{PROGRAM}: warning: --trust: is about points; lines and boxes have no expected error",
            file=sys.stderr,
        )
    for count, (name, exam) in enumerate(targets.items(), 1):
        try:
            result = find(know(exam), sought)
            if believe is not None:
                there = believe(exam)
                points = with_errors(result.points, there, origin, given)
                result = replace(result, points=points)
                untold[name] = _why_untold(result, there, origin)
            note_unknown(args, name, result.fit)
        except DataError as error:
            if args.strict:
                raise
            failed[name] = str(error)
            continue
        found[name] = result
        if say:
            say(f"locate {count}/{len(targets)} {name}: {result.found} of {result.count} found")
    if found and folder:
        say_notes(write_each(out, found, f".{form}")[1])
    elif found and single:
        from deepatlas.io.export.markups import write_markups

        say_notes(write_markups(out, next(iter(found.values())).markups()))
    elif found:
        write_found(out, found)
    list_skipped(skipped | failed)
    asked = len(sought.names) + len(sought.lines) + len(sought.boxes)
    counts = {name: result.found for name, result in found.items()}
    data = {
        "out": str(out) if found else None,
        "points": len(sought.names),
        "lines": len(sought.lines),
        "boxes": len(sought.boxes),
        "found": counts,
        "exams": {
            name: result.fit.to_dict() | _trust(result, untold.get(name, ""))
            for name, result in found.items()
        },
        "failed": failed,
        "skipped": skipped,
    }
    what = "points" if asked == len(sought.names) else "points, lines and boxes"
    text = f"{out}: {sum(counts.values())} of {asked * len(counts)} {what} found"
    print_result(args, data, text if found else f"{out}: not written, since no target could be used")
    return 1 if failed else 0


def _believer(args: argparse.Namespace, model: Model) -> Callable[[ExamFiles], ExamTrust]:
    """A function that tells the trust of an exam, from the calibration of ``--trust``."""
    from deepatlas.exams.read import read_volume
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.trust.estimate import exam_trust

    template = Template.load(args.trust)
    template.check_model(model.fingerprint, str(args.trust))
    if args.refine is None:
        # As a command does whose template is used for masks.
        model.refine = template.meta.get("refine", 0)

    def believe(exam: ExamFiles) -> ExamTrust:
        return exam_trust(model, model.map_exam(read_volume(exam.ct, kind=exam.kind)), template)

    return believe


def _positions(marks: Markups) -> NDArray[np.float64]:
    """The points of an exam ``[N, 3]``; nan where one has no position."""
    import numpy as np

    absent = np.full(3, np.nan)
    rows = [absent if p.position is None else p.position for p in marks.points]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _why_untold(result: Found, there: ExamTrust, origin: ExamTrust | None) -> str:
    """Why points that were found have no expected error, which a line says too; empty where all have one."""
    assert result.points.error_mm is not None
    if not (result.points.found & ~(result.points.error_mm >= 0)).any():
        return ""
    side = origin if origin is not None and origin.evidence is None else there
    print(f"{PROGRAM}: warning: {result.exam}: no errors in mm: {side.reason}", file=sys.stderr)
    return side.reason


def _trust(result: Found, untold: str) -> dict[str, Any]:
    """The entry ``"points"`` of an exam: the expected error in mm of each point and its bound, or why there is none."""
    points = []
    for name, told, reason in zip(result.names, result.trust(), result.points.reason, strict=False):
        why = {"reason": reason or untold} if told["trust"] is None else {}
        points.append({"name": name, **told, **why})
    return {"points": points} if points else {}
