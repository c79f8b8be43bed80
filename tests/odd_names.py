"""Commands on exams with odd names, with the model whose coordinates are known; run as a script by test_odd_names."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from affine_model import GRIDS, LABELS, AffineModel, exam
from prepare_here import in_this_process

from deepatlas.api import Model
from deepatlas.cli.main import main
from deepatlas.io.codec import write_volume


def command(*argv: object) -> None:
    assert main([str(a) for a in argv]) == 0, argv


def run_all(root: Path, name: str) -> None:
    """Every command that reads exams, on two exams in a data directory with this name."""
    # load() is what reads --model.
    Model.load = classmethod(lambda *_, **__: AffineModel())  # type: ignore[assignment]
    data = root / name
    for one in ("a", "b"):
        ct, seg = exam(GRIDS["coarse"])
        write_volume(data / f"{name}{one}" / "ct.nii.gz", ct)
        write_volume(data / f"{name}{one}" / "seg.nii.gz", seg)
    (data / "labels.json").write_text(json.dumps(LABELS))
    (root / "p.csv").write_text("name,x,y,z\nheart,1,2,3\n")
    template, model = root / f"{name}.h5", ("--model", "m")
    command("template", *model, "--data", data, "--out", template, "--size", 32)
    use = (*model, "--template", template)
    single = root / f"{name}.nrrd"
    write_volume(single, exam(GRIDS["coarse"])[0])
    command("segment", *use, data, single, "--out", root / f"seg-{name}", "--suffix", ".nrrd")
    command("evaluate", *use, "--data", data, "--out", root / f"eval-{name}")
    out = root / f"{name}.csv"
    command("locate", *model, "--from", single, "--to", data, "--points", root / "p.csv", "--out", out)
    try:
        name.encode()
    except UnicodeEncodeError:
        # A dataset cannot have such a name, and its source can.
        assert main(["prepare", str(data), str(root / f"set-{name}"), "--workers", "1"]) == 1
        name = "plain"
    command("prepare", data, root / f"set-{name}", "--workers", 1)
    command("prepare", data, root / f"kept-{name}", "--workers", 1, "--keep-ids")
    command("prepare", root / f"kept-{name}", "--check")
    command("segment", *use, root / f"set-{name}", "--out", root / "again")


if __name__ == "__main__":
    # One process for all names, as PyTorch and matplotlib are imported once. With ``here``, prepare does its work in
    # it too.
    where, root, *names = sys.argv[1:]
    with in_this_process() if where == "here" else nullcontext():
        for number, name in enumerate(names):
            print(f"names of {name}", file=sys.stderr)
            folder = Path(root) / str(number)
            folder.mkdir()
            run_all(folder, os.fsdecode(bytes.fromhex(name)))
