"""``deepatlas index``: what every exam of a cohort shows, in one file that ``deepatlas query`` asks."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepatlas.cli.common import (
    POSITIVE,
    Commands,
    add_command,
    add_engines,
    add_model,
    add_strict,
    add_template,
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
        commands, "index", run, "describe every exam of a cohort in one file, for `deepatlas query`"
    )
    c.add_argument(
        "data", nargs="+", type=Path, metavar="DIR",
        help="data directory or dataset; with --merge, the indexes of the shards",
    )  # fmt: skip
    # Indexes of shards know their model.
    add_model(c, required=False)
    add_template(c)
    c.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the index (default: index.sqlite in DIR); one that is there is updated",
    )
    c.add_argument(
        "--trust", action="store_true", help="also the trust of every structure, at the cost of more passes"
    )
    c.add_argument("--jobs", type=POSITIVE, metavar="N", help="number of processes (default: one per core)")
    add_engines(c, "describe", "join the indexes of all shards, given as DIR, into --out")
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.outputs import check_out_file, files_of_data, refuse_overwriting
    from deepatlas.index.build import IndexOptions, build_index, merge_indexes
    from deepatlas.index.flip import shows_sides
    from deepatlas.index.work import Tools, template_digest
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.trust.estimate import NOT_CALIBRATED
    from deepatlas.sqlite import INDEX, INDEX_FILES

    if args.out is None and (args.shard or args.merge or len(args.data) > 1):
        raise DataError("index: give --out FILE, since several folders or shards have no index of their own")
    out = args.out or args.data[0] / INDEX
    check_out_file(out, (".sqlite", ".db"))
    if args.merge:
        refuse_overwriting([out], args.data)
        model = load_model(args).fingerprint if args.model else None
        count = merge_indexes(out, args.data, model, progress_lines(args))
        print_result(args, {"index": str(out), "exams": count}, f"{out}: {count} exams")
        return 0
    if not args.model:
        raise DataError("index: give --model M, which finds the structures; only --merge needs none")
    read = [path for path in files_of_data(args.data) if path.name not in INDEX_FILES]
    refuse_overwriting([out], read + model_files(args))
    model = load_model(args)
    template = load_template(args, model)
    if not isinstance(template, Template):
        raise DataError(
            f"{args.model}: was trained on labels; an index needs coordinates, so a model of `train`"
        )
    if args.average != 1 or args.threshold is not None or args.depth is not None:
        raise DataError("index: --average, --threshold and --depth are not used; leave them out")
    if args.trust and not template.meta.get("trust"):
        raise DataError(f"{args.template}: {NOT_CALIBRATED}, or leave --trust out")
    names = (*template.names, *(box.name for box in template.marks.boxes))
    tools = Tools(
        _place(args.model), _place(args.template), names, template_digest(template), args.device, model.refine,
        args.trust, shows_sides(model),
    )  # fmt: skip
    options = IndexOptions(args.trust, args.strict, args.jobs, args.shard, args.engine, args.address)
    result = build_index(out, args.data, model, template, tools, options, progress_lines(args))
    list_skipped(result.skipped | result.refused)
    data = {
        "index": str(out),
        "exams": result.exams,
        "added": result.added,
        "changed": result.changed,
        "removed": result.removed,
        "failed": result.refused,
        "skipped": result.skipped,
    }
    text = f"{out}: {result.exams} exams ({result.added} new, {result.changed} changed, {result.removed} removed)"
    print_result(args, data, text)
    return 1 if result.refused else 0


def _place(name: str | Path) -> str:
    """Where a model or template is, also for processes that work in another folder; the name of a shipped one."""
    return str(Path(name).absolute()) if Path(name).exists() else str(name)
