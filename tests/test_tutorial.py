"""The commands of docs/tutorial.md, one after the other, with a training of a few steps."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from fast_settings import FAST

from deepatlas.cli.main import main
from deepatlas.view.server import Server

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
# What each command leaves behind, by its first words.
LEFT = {
    "python -m deepatlas.train": ["runs/first/model.pt"],
    "deepatlas phantom": ["patients/phantom_0003/ct.nii.gz", "patients/labels.json"],
    "deepatlas segment --model headneck": ["masks-headneck/phantom_0000.nii.gz"],
    "deepatlas template": ["template.h5"],
    "deepatlas segment --model runs/first": ["masks/phantom_0001.nii.gz", "masks/phantom_0001.png"],
    "deepatlas evaluate": ["scored/report.html"],
    "deepatlas locate": ["found.csv"],
    "deepatlas crop": ["crops/crops.csv"],
    "deepatlas register": ["aligned/register.json"],
    "deepatlas index": ["patients/index.sqlite"],
    "deepatlas query": [],
    "deepatlas view": [],
    "deepatlas report runs/first": ["run.html"],
    "deepatlas report patients": ["exam.html"],
}

# Templates of all structures would take most of the time. The page asks for the liver and a lung.
FEW = ["--structures", "liver", "lung_left", "brain"]
# Two levels, each with its picture.
FASTER = ["network.channels=[8,16]", "train.steps=[2,2]", "train.head_steps=0", "refine.steps=0"]


def commands() -> list[str]:
    """The lines of the page's shell blocks without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [line for block in blocks for line in block.splitlines() if line and line[0] != "#"]


def test_the_page_holds_every_command_that_it_promises():
    lines = commands()
    assert lines[0] == "pip install -e ."
    for start in LEFT:
        assert sum(line.startswith(start) for line in lines) == 1, start
    rest = [line for line in lines if not line.startswith((*LEFT, "pip install", "printf"))]
    assert rest == []


@pytest.mark.slow(15)
def test_every_command_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The page is opened, and ended as by Ctrl-C.
    served = []

    def interrupted(server, **_):
        served.append(server.session.failure())
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    for line in commands()[1:]:
        if line.startswith("printf"):
            subprocess.run(["/bin/sh", "-c", line], check=True)
            continue
        words = shlex.split(line)
        if words[0] == "python":
            words = ["deepatlas", "train", *words[3:], *FEW, "--quiet", *FAST, *FASTER]
        if words[1] == "phantom":
            # As the phantoms of the training.
            words += ["--spacing", "8"]
        if words[1] == "template":
            words += FEW
        code, errors = main(words[1:]), capsys.readouterr().err
        if code and words[1] == "register":
            # A model of a few steps puts two bodies at different coordinates, and the command refuses them.
            assert "no anatomy in common" in errors
            continue
        assert code == 0, (line, errors)
        if words[1] == "locate":
            # Whether a model of a few steps finds the point is no matter, but it must be a point of the patient.
            text = Path("found.csv").read_text(encoding="utf-8")
            assert (
                "my point" in text and "outside the source" not in text and "in the source exam" not in text
            )
        if "--model headneck" in line:
            assert "does not know such an exam" in errors
        (left,) = [files for start, files in LEFT.items() if line.startswith(start)]
        for file in left:
            assert Path(file).is_file(), (line, sorted(map(str, Path().rglob("*")))[:40])
    assert served == [None]
