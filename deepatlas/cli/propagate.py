"""``deepatlas propagate``: carry masks, points and boxes of one exam, or of several, straight onto other exams."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from deepatlas.cli.common import (
    FRACTION,
    Commands,
    add_command,
    add_model,
    add_shape_only,
    add_strict,
    keep_names_of_masks,
    list_skipped,
    list_unknown,
    load_model,
    model_files,
    note_unknown,
    print_result,
    progress_lines,
    refuse_skipped,
)
from deepatlas.cli.known import (
    FORMATS,
    add_cache,
    add_marks,
    add_masks,
    check_format,
    image_of,
    knower,
    marks_of_each,
    note_unnamed,
    one_each,
    say_notes,
)
from deepatlas.errors import DataError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands,
        "propagate",
        run,
        "carry masks, points and boxes of one exam, or of several, onto other exams",
    )
    add_model(c)
    c.add_argument(
        "--from",
        required=True,
        nargs="+",
        dest="sources",
        metavar="A",
        help="exams in which something was drawn; what several of them have is averaged (eq. 14)",
    )
    add_masks(c, "--from")
    add_marks(c)
    c.add_argument(
        "--to", required=True, nargs="+", metavar="B", help="exams; each as the EXAM of `deepatlas segment`"
    )
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for <exam>.nii.gz with labels.json, and <exam>.<format> with points, lines and boxes",
    )
    c.add_argument(
        "--suffix",
        default=".nii.gz",
        choices=(".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd"),
        help="format of the masks (default: .nii.gz); .seg.nrrd is a segmentation of 3D Slicer with whole masks",
    )
    c.add_argument("--format", choices=FORMATS, default="mrk.json", help="of points, lines and boxes")
    c.add_argument(
        "--each",
        action="store_true",
        help="also write <exam>/<structure>.nii.gz, the whole mask of every structure, whatever overlaps it",
    )
    c.add_argument(
        "--threshold",
        type=FRACTION,
        metavar="V",
        help="mask value in (0, 1] that counts (default: what preserves the volume of each structure)",
    )
    add_shape_only(c)
    add_cache(c)
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.cohort import named_exams, read_labels
    from deepatlas.exams.mask_files import mask_paths, write_masks
    from deepatlas.exams.outputs import check_out_folder, files_of_exams, refuse_overwriting
    from deepatlas.files import write_text
    from deepatlas.io.export.labels import write_labels
    from deepatlas.localize.found import carry_template
    from deepatlas.localize.found_files import write_each
    from deepatlas.localize.template.examples import Example, template_of

    if not (args.masks or args.points or args.boxes):
        raise DataError(
            "propagate: nothing to carry; give --masks, --points or --boxes of the exams of --from"
        )
    check_out_folder(args.out)
    labels = read_labels(args.labels) if args.labels else None
    sources = [exam for source in args.sources for exam in named_exams([source]).values()]
    if len(sources) != len(args.sources):
        raise DataError(f"propagate: --from names {len(sources)} exams; give the folders of single exams")
    names = [exam.id for exam in sources]
    # A mask of its own is an image, whatever holds them all.
    image = ".nrrd" if args.suffix == ".seg.nrrd" else args.suffix
    masks_of = one_each(args.masks, names, "--masks", "--from")
    marks_of = marks_of_each(args, names, "--from")
    skipped: dict[str, str] = {}
    targets = named_exams(args.to, skipped)
    refuse_skipped(args, skipped)
    marks = bool(args.points or args.boxes)
    outputs = [args.out / f"{name}{args.suffix}" for name in targets] if args.masks else []
    outputs += [args.out / "labels.json"] if args.masks else []
    outputs += [args.out / f"{name}.{args.format}" for name in targets] if marks else []
    tables = [args.labels] if args.labels else []
    masks = [f for m in args.masks for f in (m.iterdir() if m.is_dir() else [m])]
    inputs = files_of_exams([*sources, *targets.values()])
    inputs += [*masks, *args.points, *args.boxes, *tables, *model_files(args)]
    refuse_overwriting(outputs, inputs)
    model = load_model(args)
    know, say = knower(args, model, keep_image=not args.shape_only), progress_lines(args)
    # By the path, as exams of several folders may have one name.
    by_path = {str(exam.ct): exam for exam in sources}
    examples = [Example(exam.ct, masks_of[row], marks_of[row], exam.id) for row, exam in enumerate(sources)]
    template = template_of(
        model, examples, labels, know=lambda e: know(by_path[str(e.exam)]), strict=args.strict, progress=say,
        appearance=not args.shape_only,
    )  # fmt: skip
    list_unknown(model, template.meta["fit"])
    note_unnamed(template.names)
    if args.each and template.names:
        each = [mask_paths(args.out / name, template.names, image).values() for name in targets]
        refuse_overwriting([path for paths in each for path in paths], inputs)
    held = template.marks
    check_format(args.format, len(held.points), len(held.lines), len(held.boxes))
    table = json.dumps(template.labels, indent=1) + "\n"
    if template.names:
        keep_names_of_masks(args.out / "labels.json", table)
    done, failed, fits, counts = {}, {}, {}, {}
    for count, (name, exam) in enumerate(targets.items(), 1):
        try:
            found = carry_template(know(exam), template, args.threshold, partial(image_of, model, exam))
            note_unknown(args, name, found.fit)
        except DataError as error:
            if args.strict:
                raise
            failed[name] = str(error)
            continue
        written = []
        if found.labels is not None:
            if not done:
                # Before the first mask, so that none is there without the names of its structures.
                write_text(args.out / "labels.json", table)
            written.append(args.out / f"{name}{args.suffix}")
            lost = write_labels(written[-1], found.labels, template.labels)
            say_notes([f"{name}: {note}" for note in lost])
            if args.each:
                write_masks(args.out / name, found.labels, template.labels, image)
        if found.count:
            files, notes = write_each(args.out, {name: found}, f".{args.format}")
            written += files
            say_notes(notes)
        done[name], fits[name] = [str(path) for path in written], found.fit
        counts[name] = {"asked": found.count, "found": found.found}
        if say:
            say(f"propagate {count}/{len(targets)} {name}")
    list_skipped(skipped | failed)
    data = {
        "propagated": done,
        "labels": template.labels,
        "marks": counts,
        "exams": {name: fit.to_dict() for name, fit in fits.items()},
        "failed": failed,
        "skipped": skipped,
    }
    print_result(args, data, f"{args.out}: carried onto {len(done)} of {len(targets)} exams")
    return 1 if failed else 0
