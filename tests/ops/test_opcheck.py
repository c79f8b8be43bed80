"""torch.library.opcheck of every registered op, with its kernels and with its PyTorch body."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import opcheck_calls
import pytest
import torch


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_kernels(native, dtype):
    names = opcheck_calls.check(dtype)
    assert names == opcheck_calls.all_ops()
    assert all(map(opcheck_calls.has_kernel, names))


@pytest.mark.slow
def test_bodies():
    script = Path(opcheck_calls.__file__)
    environment = {**os.environ, "DEEPATLAS_OPS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{len(opcheck_calls.all_ops())} bodies\n"
