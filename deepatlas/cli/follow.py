"""``deepatlas follow``: what changed between two exams of one patient."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import (
    Commands,
    add_command,
    add_model,
    add_strict,
    add_template,
    load_model,
    load_template,
    model_files,
    note_unknown,
    print_result,
)
from deepatlas.cli.register import one_exam
from deepatlas.errors import DataError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "follow", run, "what changed between two exams of one patient")
    add_model(c)
    add_template(c)
    c.add_argument(
        "before", type=Path, metavar="A", help="the earlier exam; as the EXAM of `deepatlas segment`"
    )
    c.add_argument("after", type=Path, metavar="B", help="the later exam")
    c.add_argument(
        "--align",
        choices=("rigid", "linear", "deformable"),
        default="rigid",
        help="how B is moved for the difference image (default: rigid, which leaves what moved and grew visible)",
    )
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for difference.nii.gz (B less A, on the grid of A), changes.json, changes.csv and changes.png",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_folder, files_of_exams, refuse_overwriting
    from deepatlas.exams.read import read_volume
    from deepatlas.files import staged
    from deepatlas.localize.follow import follow
    from deepatlas.localize.follow_files import follow_paths, table_text, write_follow_up
    from deepatlas.localize.template.file import Template

    check_out_folder(args.out)
    exams = one_exam(args.before, "A"), one_exam(args.after, "B")
    refuse_overwriting(follow_paths(args.out), files_of_exams(exams) + model_files(args))
    model = load_model(args)
    template = load_template(args, model)
    if not isinstance(template, Template):
        raise DataError(
            f"{args.model}: was trained on labels and has no coordinates, by which exams are aligned"
        )
    before, after = (read_volume(exam.ct, kind=exam.kind) for exam in exams)
    found = follow(model, template, before, after, args.align, threshold=args.threshold)
    note_unknown(args, str(args.before), found.registration.fixed_fit)
    note_unknown(args, str(args.after), found.registration.moving_fit)
    names = exams[0].id, exams[1].id
    if names[0] == names[1]:
        names = f"{names[0]} (A)", f"{names[1]} (B)"
    with staged(args.out) as stage:
        write_follow_up(stage, found, template, before, names)
    about = {"before": str(args.before), "after": str(args.after), "out": str(args.out), **found.to_dict()}
    moved = sum(change.moved for change in found.changes)
    text = f"{args.out}: {moved} of {len(found.changes)} structures moved by more than the expected error"
    print_result(args, about, f"{table_text(found)}\n{text}")
    return 0
