"""``deepatlas register``: two exams, each on the grid of the other, with the transforms between them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deepatlas.cli.common import (
    Commands,
    add_command,
    add_model,
    add_strict,
    load_model,
    model_files,
    note_unknown,
    print_result,
)
from deepatlas.errors import DataError

if TYPE_CHECKING:
    from deepatlas.exams.cohort import ExamFiles


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "register", run, "align two exams, each on the grid of the other")
    add_model(c)
    c.add_argument(
        "--fixed",
        required=True,
        type=Path,
        metavar="A",
        help="exam whose grid the other is moved onto; as the EXAM of `deepatlas segment`",
    )
    c.add_argument("--moving", required=True, type=Path, metavar="B", help="exam that is moved")
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for on_fixed/ and on_moving/, each with moved.nii.gz, overlap.nii.gz, transform.h5 (ITK) and "
        "jacobian.nii.gz, and for register.json",
    )
    kind = c.add_mutually_exclusive_group()
    kind.add_argument(
        "--linear", action="store_const", const="linear", dest="kind", help="an affine map alone"
    )
    kind.add_argument(
        "--rigid", action="store_const", const="rigid", dest="kind", help="a rotation and a translation alone"
    )
    c.set_defaults(kind="deformable")
    c.add_argument(
        "--displacements",
        action="store_true",
        help="also write displacements.nii.gz, a NIfTI of intent 1007 with LPS vectors in mm",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from deepatlas.exams.outputs import check_out_folder, files_of_exams, refuse_overwriting
    from deepatlas.exams.read import read_volume
    from deepatlas.files import staged, write_text
    from deepatlas.localize.register import register
    from deepatlas.localize.register_files import registration_paths, write_registration

    check_out_folder(args.out)
    exams = one_exam(args.fixed, "--fixed"), one_exam(args.moving, "--moving")
    outputs = [*registration_paths(args.out, args.displacements), args.out / "register.json"]
    refuse_overwriting(outputs, files_of_exams(exams) + model_files(args))
    model = load_model(args)
    fixed, moving = (read_volume(exam.ct, kind=exam.kind) for exam in exams)
    found = register(model, fixed, moving, args.kind)
    note_unknown(args, str(args.fixed), found.fixed_fit)
    note_unknown(args, str(args.moving), found.moving_fit)
    with staged(args.out) as stage:
        written = write_registration(stage, found, args.displacements)
        files = {name: str(args.out / Path(path).relative_to(stage)) for name, path in written.items()}
        about = {
            "fixed_exam": str(args.fixed),
            "moving_exam": str(args.moving),
            **found.to_dict(),
            "files": files,
        }
        write_text(stage / "register.json", json.dumps(about, indent=1, allow_nan=False) + "\n")
    # An earlier run of another kind may have left files that this one does not write.
    for path in registration_paths(args.out, True):
        if str(path) not in files.values():
            path.unlink(missing_ok=True)
    there = found.on_fixed
    text = f"{args.out}: {there.share:.0%} of the body of {exams[0].id} found in {exams[1].id}"
    print_result(args, about, f"{text}, {there.folds:.1%} of it folded" if there.folded else text)
    return 0


def one_exam(path: Path, option: str) -> ExamFiles:
    """The one exam that an argument names. Raises :class:`~deepatlas.errors.DataError` if it holds several."""
    from deepatlas.exams.cohort import named_exams

    found = list(named_exams([path]).values())
    if len(found) != 1:
        raise DataError(f"{path}: holds {len(found)} exams; give {option} one exam")
    return found[0]
