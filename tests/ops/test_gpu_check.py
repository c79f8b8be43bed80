"""What will run first on a machine with a GPU: its whole flow, on the CPU."""

import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.sh"


@pytest.mark.slow(25)
def test_the_dry_flow_writes_a_report_of_every_part(native, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    run = subprocess.run(
        ["bash", SCRIPT, "--dry", tmp_path / "results"], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    report = json.loads(next((tmp_path / "results").glob("*-dry-check.json")).read_text())
    assert {name: part["exit"] for name, part in report["parts"].items()} == {
        "parity": 0, "sanitizer": 0, "speed": 0, "training": 0
    }  # fmt: skip
    parity = report["parts"]["parity"]
    assert parity["tests"] > 0 and parity["failures"] == parity["errors"] == parity["skipped"] == 0
    assert report["rows"] and report["build"]["backend"] == "native"
    assert 0 <= report["parts"]["training"]["result"]["dice"] <= 1


def test_a_part_that_does_not_exist_is_refused():
    run = subprocess.run(["bash", SCRIPT, "--parts", "parity,sped"], capture_output=True, text=True)
    assert run.returncode == 2 and "--parts" in run.stderr


@pytest.mark.slow(2)
def test_without_a_gpu_it_says_so(native, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = subprocess.run(["bash", SCRIPT, tmp_path], capture_output=True, text=True)
    assert run.returncode == 1 and "no CUDA" in run.stderr and not list(tmp_path.iterdir())
