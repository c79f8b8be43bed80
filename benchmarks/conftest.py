"""``pytest benchmarks/`` runs every benchmark once, tiny; ``pytest benchmarks/ --benchmark`` measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import figure
import pytest
import targets
import timing
import torch

import deepatlas_ops as ops

RESULTS = Path(__file__).with_name("results")


def pytest_addoption(parser):
    parser.addoption(
        "--benchmark", action="store_true", help="measure instead of a tiny run of each benchmark"
    )
    parser.addoption("--results", type=Path, default=RESULTS, help="folder for the JSON (benchmarks/results)")
    parser.addoption("--threads", type=int, default=None, help="CPU threads of PyTorch (default: its own)")


def pytest_collect_file(file_path, parent):
    named = parent.session.isinitpath(file_path)  # such a file pytest collects by itself
    if file_path.suffix == ".py" and file_path.name.startswith("bench_") and not named:
        return pytest.Module.from_parent(parent, path=file_path)


class Recorder:
    """Runs the candidates of one benchmark and keeps the rows of the report."""

    def __init__(self, measuring: bool):
        self.measuring = measuring
        self.rows: list[timing.Row] = []

    def __call__(
        self,
        name: str,
        candidates: dict[str, Callable[[], object]],
        bytes_moved: int,
        device: torch.device,
        tolerance: float = 1e-3,
    ) -> None:
        """``candidates``: the native op first, then what it is measured against; in a tiny run all must agree."""
        if self.measuring:
            row = timing.measure(name, candidates, bytes_moved, device)
            self.rows.append(row)
            print("\n" + row.line())
            return
        results = [timing.tensors(run()) for run in candidates.values()]
        for peer, other in zip(list(candidates)[1:], results[1:], strict=True):
            for a, b in zip(results[0], other, strict=True):
                torch.testing.assert_close(
                    a, b, rtol=tolerance, atol=tolerance, msg=lambda m, p=peer: f"{name}, {p}: {m}"
                )


_recorder: Recorder | None = None


@pytest.fixture(scope="session")
def record(request):
    global _recorder
    if request.config.getoption("--threads"):
        torch.set_num_threads(request.config.getoption("--threads"))
    _recorder = Recorder(request.config.getoption("--benchmark"))
    return _recorder


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        with ops.use_backend("native"):
            ops.resize(torch.zeros(1, 1, 2, 2, 2), (2, 2, 2))
    except RuntimeError as error:
        pytest.skip(str(error))
    if request.param == "cuda" and not ops.build_info()["cuda"]:
        pytest.skip(f"no CUDA kernels: {ops.build_info()['cuda_reason']}")
    return torch.device(request.param)


def pytest_terminal_summary(terminalreporter, config):
    if _recorder is None or not _recorder.rows:
        return
    report = timing.report(_recorder.rows, ops.build_info())
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(timing.table(report))
    for line in targets.lines(report):
        terminalreporter.write_line(line)
    path = timing.save(report, config.getoption("--results"))
    terminalreporter.write_line(f"written to {path} and {figure.draw(report, path.with_suffix('.png'))}")
