"""``deepatlas template``: define masks, points and boxes in coordinate space from exams that have them (eq. 14)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepatlas.cli.common import (
    SIDE,
    Commands,
    add_command,
    add_data,
    add_model,
    add_shape_only,
    add_strict,
    add_structures,
    counted,
    list_skipped,
    list_unknown,
    load_model,
    model_files,
    print_result,
    progress_lines,
)
from deepatlas.cli.known import add_cache, add_marks, add_masks, knower, marks_of_each, note_unnamed, one_each
from deepatlas.errors import PROGRAM, DataError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "define masks, points and boxes in coordinate space from exams that have them (eq. 14)"
    c = add_command(commands, "template", run, text)
    add_model(c)
    add_data(c, required=False)
    c.add_argument(
        "--exams",
        nargs="+",
        metavar="ID",
        help="use only these exams of --data (default: all labelled exams)",
    )
    c.add_argument(
        "--image",
        nargs="+",
        metavar="CT",
        default=[],
        help="exams with --masks, --points or --boxes of their own",
    )
    add_masks(c, "--image")
    add_marks(c)
    c.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="NAME=A,B+MM",
        help="a box around structures in the directions of the atlas, with a margin in mm, or in %% of its edges "
        "(+10%%); may be given several times",
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
    add_shape_only(c)
    add_cache(c)
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_file, files_of_data, files_of_exams, refuse_overwriting
    from deepatlas.localize.template.build import build_template
    from deepatlas.localize.template.edit import Around

    check_out_file(args.out, (".h5", ".hdf5"))
    _check_sources(args)
    boxes = [Around.parse(text) for text in args.box]
    if args.data:
        refuse_overwriting([args.out], files_of_data(args.data, args.split) + model_files(args))
        if args.trust:
            from deepatlas.evaluate.calibrate.run import enough_exams

            # Before any work, which would be in vain.
            enough_exams(args.data, split=args.split, strict=args.strict)
        model = load_model(args)
        template = build_template(
            model, args.data, args.exams, args.structures, size=args.size, strict=args.strict,
            split=args.split, progress=progress_lines(args), boxes=boxes, appearance=not args.shape_only,
            know=knower(args, model, keep_image=not args.shape_only),
        )  # fmt: skip
    else:
        from deepatlas.exams.cohort import named_exams, read_labels
        from deepatlas.localize.template.examples import Example, template_of

        exams = [exam for path in args.image for exam in named_exams([path]).values()]
        if len(exams) != len(args.image):
            raise DataError(
                f"template: --image names {len(exams)} exams; give single exams, or --data for a directory"
            )
        names = [exam.id for exam in exams]
        masks = one_each(args.masks, names, "--masks", "--image")
        marks = marks_of_each(args, names, "--image")
        files = [f for m in args.masks for f in (m.iterdir() if m.is_dir() else [m])]
        files += [*args.points, *args.boxes, *([args.labels] if args.labels else []), *model_files(args)]
        refuse_overwriting([args.out], files_of_exams(exams) + files)
        labels = read_labels(args.labels) if args.labels else None
        model = load_model(args)
        examples = [Example(exam.ct, masks[i], marks[i], exam.id) for i, exam in enumerate(exams)]
        know = knower(args, model, keep_image=not args.shape_only)
        by_path = {str(exam.ct): exam for exam in exams}
        template = template_of(
            model,
            examples,
            labels,
            know=lambda example: know(by_path[str(example.exam)]),
            boxes=boxes,
            appearance=not args.shape_only,
            size=args.size,
            strict=args.strict,
            progress=progress_lines(args),
        )
        note_unnamed(template.names)
        if args.structures:
            template = template.select(args.structures)
    untold = ""
    if args.trust:
        from deepatlas.evaluate.calibrate.run import TooFewError, calibrate

        # All labelled exams tell how good masks are, also those that the template was not made from.
        try:
            template = calibrate(
                model,
                template,
                args.data,
                split=args.split,
                strict=args.strict,
                progress=progress_lines(args),
            ).template
        except TooFewError as error:
            untold = f"{error}; the template is written without trust"
            print(f"{PROGRAM}: error: {untold}", file=sys.stderr)
    template.save(args.out)
    list_skipped(template.meta["skipped"])
    list_unknown(model, template.meta["fit"])
    marks_ = template.marks
    data = {
        "template": str(args.out),
        "labels": template.labels,
        "points": [point.name for point in marks_.points],
        "lines": [line.name for line in marks_.lines],
        "boxes": [box.name for box in marks_.boxes],
    } | template.meta
    if untold:
        data["error"] = untold
    counts = {
        "structure": len(template.names),
        "point": len(marks_.points),
        "line": len(marks_.lines),
        "box": len(marks_.boxes),
    }
    held = [counted(n, word) for word, n in counts.items() if n]
    print_result(
        args, data, f"{args.out}: {', '.join(held)} from {counted(len(template.meta['exams']), 'exam')}"
    )
    return 1 if untold else 0


def _check_sources(args: argparse.Namespace) -> None:
    """Raise :class:`~deepatlas.errors.DataError` unless the exams come from one place, and something was drawn."""
    if bool(args.data) == bool(args.image):
        raise DataError("template: give either --data DIR, or --image CT with --masks, --points or --boxes")
    if args.trust and not args.data:
        raise DataError(
            "template: --trust needs labelled exams; give --data DIR, or use `deepatlas calibrate`"
        )
    own = {"--masks": args.masks, "--points": args.points, "--boxes": args.boxes, "--labels": args.labels}
    if args.data:
        if given := [option for option, value in own.items() if value]:
            raise DataError(
                f"template: {given[0]} goes with --image; the exams of --data have their own masks"
            )
        return
    if args.exams or args.split:
        raise DataError("template: --exams and --split choose exams of --data; leave them out with --image")
    if not (args.masks or args.points or args.boxes):
        raise DataError("template: nothing was drawn in --image; give --masks, --points or --boxes of it")
