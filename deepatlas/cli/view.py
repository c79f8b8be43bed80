"""``deepatlas view``: one page on this machine that shows the atlas and exams side by side, linked by anatomy."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deepatlas.cli.common import (
    USE_OF_TEMPLATE,
    Commands,
    add_command,
    add_template,
    add_use_of_model,
    counted,
    list_skipped,
    load_model,
    load_template,
    number,
    print_result,
    refuse_options,
)
from deepatlas.errors import PROGRAM, DeepAtlasError
from deepatlas.signals import ended_as_by_ctrl_c

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.view.server import Server
    from deepatlas.view.session import Loaded

_PORT = number(int, lambda v: 0 <= v < 65536, "a port from 1 to 65535, or 0 for a free one")
# Seconds that the address waits for the model.
_PATIENCE = 15.0


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands, "view", run, "show the atlas and exams side by side in the browser, linked by anatomy"
    )
    c.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model file, or name of a shipped model")
    c.add_argument(
        "exams", nargs="*", metavar="EXAM", help="exams to show; each as the EXAM of `deepatlas segment`"
    )
    c.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="data directory or dataset whose exams can be chosen; may be given several times",
    )
    add_template(c)
    add_use_of_model(c)
    c.add_argument(
        "--marks",
        type=Path,
        metavar="FILE",
        help="JSON file that keeps the points, boxes and masks of the page, also after the server has ended",
    )
    c.add_argument(
        "--port", type=_PORT, default=0, metavar="N", help="port of 127.0.0.1 (default: a free one)"
    )
    c.add_argument("--no-browser", action="store_true", help="only print the address of the page")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with ended_as_by_ctrl_c():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from deepatlas.view.server import serve

    server = open_server(args)
    # A model or a template that cannot be used is said before an address that would show nothing. A model that takes
    # longer is loaded while the page lists the exams.
    with suppress(TimeoutError):
        if failure := server.session.failure(_PATIENCE):
            server.server_close()
            raise failure
    list_skipped(server.session.gallery.skipped, most=5, rest="which the page lists")
    data = {"address": server.address, "port": server.gate.port, "exams": len(server.session.gallery)}
    print_result(args, data, server.address)
    if not args.quiet:
        print(f"{PROGRAM}: this page is for this machine and its user alone; Ctrl-C ends it", file=sys.stderr)
    if not args.no_browser:
        # A browser of the terminal would keep the server waiting.
        threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
    try:
        failure = serve(server)
    except KeyboardInterrupt as stop:
        lines = [str(stop)] if str(stop) else []
        if count := len(server.session.marks.all()):
            path = args.marks
            if not path:
                path = Path(tempfile.gettempdir(), f"deepatlas-marks-{secrets.token_hex(4)}.json")
                server.session.marks.save(path)
            are, them = ("is", "it") if count == 1 else ("are", "them")
            lines.append(f"{counted(count, 'mark')} of the page {are} in {path}; --marks {path} opens {them}")
        if lines:
            # Nobody reads this in a terminal that was closed, to which nothing can be written either.
            with suppress(OSError):
                print(f"\n{PROGRAM}: {'; '.join(lines)}", file=sys.stderr, flush=True)
        return 0
    if failure is not None:
        raise failure
    return 0


def open_server(args: argparse.Namespace) -> Server:
    """The server of the page, bound but not yet answering; its model is being loaded."""
    from deepatlas.view.gallery import Gallery
    from deepatlas.view.server import Server
    from deepatlas.view.session import Session

    def load() -> Loaded:
        model = load_model(args)
        if model.structures:
            raise DeepAtlasError(
                f"{args.model}: was trained on labels (deepatlas finetune) and has no coordinates, by which the page "
                "links exams; give a model of deepatlas train"
            )
        args.template = args.template or _own_template(args.model, model)
        if not args.template:
            refuse_options(
                args, USE_OF_TEMPLATE, "is for the structures of a template; give --template T as well"
            )
        return model, load_template(args, model) if args.template else None  # type: ignore[return-value]

    gallery = Gallery([*args.exams, *args.data])
    opened = [exam.id for exam in gallery][: len(args.exams)] if args.exams else []
    session = Session(
        gallery, load, title=args.model, opened=opened, marks=args.marks, threshold=args.threshold
    )
    return Server(session, args.port)


def _own_template(name: str, model: Model) -> Path | None:
    """The template that comes with a model: that of a shipped one, or the one by which a run was scored."""
    from deepatlas.pretrained import TEMPLATE, shipped

    folder = Path(name)
    made = ["template-refined.h5"] if model.refine else []
    for file in (*made, TEMPLATE):
        if (folder / file).is_file():
            return folder / file
    return folder if name in shipped() else None
