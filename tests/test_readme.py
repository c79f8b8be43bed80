"""The Python examples of the READMEs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def examples():
    for name in ("README.md", "deepatlas_ops/README.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)
        for number, block in enumerate(blocks, 1):
            if "import deepatlas\n" not in block:  # those need a trained model, and are tested in test_cli
                yield pytest.param(block, id=f"{name}-{number}")


@pytest.mark.parametrize("block", list(examples()))
def test_an_example_runs(block, capsys):
    torch.manual_seed(0)
    exec(compile(block, "README example", "exec"), {})
    if correlation := re.search(r"correlation ([\d.]+)", capsys.readouterr().out):
        assert float(correlation[1]) > 0.9
