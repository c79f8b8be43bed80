"""Commands on an exam with an odd name, with the model whose coordinates are known; for test_odd_names."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from affine_model import GRIDS, LABELS, AffineModel, exam
from prepare_here import in_this_process

from deepatlas.api import Model
from deepatlas.cli import main as cli
from deepatlas.io.codec import write_volume


def command(*argv: object) -> None:
    assert cli.main([str(a) for a in argv]) == 0, argv


def run_all(root: Path, name: str, processes: bool) -> None:
    """Every command that reads exams, on an exam in a data directory with this name.

    With ``processes``, the first dataset is made in another process.
    """
    # load() is what reads --model.
    Model.load = classmethod(lambda *_, **__: AffineModel())  # type: ignore[assignment]
    data = root / name
    ct, seg = exam(GRIDS["coarse"])
    write_volume(data / f"{name}a" / "ct.nii.gz", ct)
    write_volume(data / f"{name}a" / "seg.nii.gz", seg)
    (data / "labels.json").write_text(json.dumps(LABELS))
    (root / "p.csv").write_text("name,x,y,z\nheart,1,2,3\n")
    template, model = root / f"{name}.h5", ("--model", "m")
    command("template", *model, "--data", data, "--out", template, "--size", 32)
    use = (*model, "--template", template)
    single = root / f"{name}.nrrd"
    write_volume(single, ct)
    command("segment", *use, data, single, "--out", root / f"seg-{name}", "--suffix", ".nrrd")
    command("evaluate", *use, "--data", data, "--out", root / f"eval-{name}")
    out = root / f"{name}.csv"
    command("locate", *model, "--from", single, "--to", data, "--points", root / "p.csv", "--out", out)
    try:
        name.encode()
    except UnicodeEncodeError:
        # A dataset cannot have such a name, and its source can.
        assert cli.main(["prepare", str(data), str(root / f"set-{name}"), "--workers", "1"]) == 1
        name = "plain"
    with ExitStack() as stack:
        if not processes:
            stack.enter_context(in_this_process())
        command("prepare", data, root / f"set-{name}", "--workers", 1)
    with in_this_process():
        command("prepare", data, root / f"kept-{name}", "--workers", 1, "--keep-ids")
    command("prepare", root / f"kept-{name}", "--check")
    command("segment", *use, root / f"set-{name}", "--out", root / "again")


def main(arguments: Sequence[str]) -> int:
    """All commands, after ``processes`` or ``here``, a folder, and the names in hexadecimal digits."""
    where, root, *names = arguments
    if where == "here":
        # PYTHONIOENCODING of the environment came too late for a process that was forked.
        sys.stdout.reconfigure(encoding="ascii")
        sys.stderr.reconfigure(encoding="ascii")
    for number, name in enumerate(names):
        print(f"names of {name}", file=sys.stderr)
        folder = Path(root) / str(number)
        folder.mkdir()
        run_all(folder, os.fsdecode(bytes.fromhex(name)), where == "processes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
