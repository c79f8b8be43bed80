"""``deepatlas template-edit``: join templates, rename, choose, add boxes, and write images of the atlas."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import Commands, add_command, add_structures, print_result
from deepatlas.errors import DataError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "join templates, rename or choose what they hold, add boxes, and write images of the atlas"
    c = add_command(commands, "template-edit", run, text)
    c.add_argument(
        "templates",
        nargs="+",
        metavar="T",
        help="template files (or names of shipped models); several are joined. `deepatlas info T` lists one",
    )
    c.add_argument(
        "--rename",
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help="new names of structures, points, lines and boxes; put other arguments before this option. FILE:OLD=NEW "
        "renames in one of the templates before they are joined",
    )
    add_structures(c, "keep only these structures, points, lines and boxes, by their new names")
    c.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="NAME=A,B+MM",
        help="a box around structures, with a margin in mm, or in %% of its edges (+10%%); may be given several times",
    )
    c.add_argument("--out", type=Path, metavar="T", help="template file to write (.h5)")
    c.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="write masks/<structure>.nii.gz and boxes/<box>.nii.gz on the grid of the atlas (atlas.nii.gz of a run)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_file, check_out_folder, refuse_overwriting
    from deepatlas.localize.template.edit import Around, export, merge_templates, renamed, with_boxes
    from deepatlas.localize.template.file import Template
    from deepatlas.pretrained import TEMPLATE, resolve

    if not (args.out or args.export):
        raise DataError(
            "template-edit: nothing to do; give --out T for a template, or --export DIR for images"
        )
    files = [resolve(name, TEMPLATE) for name in args.templates]
    if args.out:
        check_out_file(args.out, (".h5", ".hdf5"))
        refuse_overwriting([args.out], files)
    if args.export:
        check_out_folder(args.export, "--export")
    boxes = [Around.parse(text) for text in args.box]
    everywhere, own = _renames(args.rename, args.templates)
    parts = []
    for name, file in zip(args.templates, files, strict=True):
        part = Template.load(file)
        parts.append(renamed(part, own[name], name) if own[name] else part)
    template = merge_templates(parts, args.templates)
    whole = ", ".join(args.templates)
    template = renamed(template, everywhere, whole) if everywhere else template
    template = with_boxes(template, boxes) if boxes else template
    template = template.select(args.structures, whole) if args.structures else template
    if args.out:
        template.save(args.out)
    written = export(template, args.export) if args.export else []
    marks = template.marks
    data = {
        "template": str(args.out) if args.out else None,
        "labels": template.labels,
        "points": [point.name for point in marks.points],
        "lines": [line.name for line in marks.lines],
        "boxes": [box.name for box in marks.boxes],
        "exported": [str(path) for path in written],
    }
    done = [f"{args.out}: {template!r}"] if args.out else []
    done += [f"{args.export}: {len(written)} images"] if args.export else []
    print_result(args, data, "\n".join(done))
    return 0


def _renames(given: list[str], templates: list[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """``OLD=NEW`` for all, and for each template those that begin with its name."""
    everywhere: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {name: {} for name in templates}
    for text in given:
        old, _, new = text.partition("=")
        old, new = old.strip(), new.strip()
        if not old or not new:
            raise DataError(f"--rename {text}: expected OLD=NEW, such as Parotid_L=parotid-left")
        where = next((name for name in templates if old.startswith(f"{name}:")), None)
        if where is None:
            everywhere[old] = new
        else:
            own[where][old[len(where) + 1 :]] = new
    return everywhere, own
