"""``deepatlas cache``: list and clear the prepared exams that training keeps."""

from __future__ import annotations

import argparse
import sys

from deepatlas.cli.common import Commands, add_command, print_result
from deepatlas.errors import PROGRAM, DeepAtlasError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "cache", run, "list and clear the prepared exams that training keeps")
    c.add_argument("--clear", action="store_true", help="remove the entries that no run uses")
    c.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="with --clear, only these: names from the list, or data directories (default: all)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.train.cache import cache_folder, clear, entries

    if args.names and not args.clear:
        raise DeepAtlasError(
            f"cache: {args.names[0]} is given without --clear; say what is to be done with it"
        )
    removed, kept = clear(args.names) if args.clear else ([], {})
    for reason in kept.values():
        print(f"{PROGRAM}: not removed: {reason}", file=sys.stderr)
    found = entries()
    data = {"folder": str(cache_folder()), "entries": [e.as_dict() for e in found]}
    if args.clear:
        data |= {"removed": [e.as_dict() for e in removed], "kept": kept}
    shown = removed if args.clear else found
    lines = [
        f"{e.path}  {_size(e.bytes)}  {_age(e.days)}  "
        + (f"of {e.data}" if e.kind == "store" else f"unfinished{f', of {e.data}' if e.data else ''}")
        for e in shown
    ]
    what = "removed" if args.clear else "kept"
    total = f"{cache_folder()}: {len(shown)} entries {what}, {_size(sum(e.bytes for e in shown))}"
    print_result(args, data, "\n".join([*lines, total]))
    return 1 if kept else 0


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _age(days: float) -> str:
    if days >= 1:
        return f"{days:.0f} days old"
    return f"{days * 24:.0f} hours old" if days * 24 >= 1 else "new"
