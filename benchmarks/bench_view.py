"""``deepatlas view``: how long the page takes to open, and a click to move all views.

pytest benchmarks/bench_view.py                       # one phantom, two clicks
pytest benchmarks/bench_view.py --benchmark -s        # four head-and-neck exams where real exams are at hand

Times are those of a headless Chromium on the same machine, which draws without a GPU.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from headless import browser
from real_exams import ROOT

from deepatlas.exams.phantoms import write_phantoms
from deepatlas.phantom.patients import PhantomCohort

PANELS = "import('/state.js').then(({state}) => state.panels"


def exams(folder: Path, count: int) -> list[str]:
    """Real exams where they are at hand, and otherwise phantoms."""
    found = sorted((ROOT / "openkbp" / "validation").glob("pt_*"))[:count] if count > 1 else []
    if len(found) == count > 1:
        return [str(path) for path in found]
    write_phantoms(PhantomCohort(seed=0), folder, range(count), progress=False)
    return [str(path) for path in sorted(folder.iterdir()) if path.is_dir()]


@pytest.mark.slow(9)
@pytest.mark.parametrize("size", [(1280, 720), (820, 1180)], ids=["1280x720", "820x1180"])
def test_opening_and_clicks(request, tmp_path, size):
    """From the start of the command to the page, to all pictures, and from a click to all views."""
    measuring = request.config.getoption("--benchmark")
    if not measuring and size != (1280, 720):
        pytest.skip("one size is enough without --benchmark")
    given = exams(tmp_path, 4 if measuring else 1)
    with browser() as chromium:
        page = chromium.page(*size)
        began = time.perf_counter()
        command = [sys.executable, "-m", "deepatlas", "view", "headneck", *given, "--no-browser", "--quiet"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
        try:
            assert server.stdout
            address = server.stdout.readline().strip()
            bound = time.perf_counter()
            page.go(address)
            # The atlas and the names of the exams.
            page.wait("document.querySelectorAll('#exams li').length > 1")
            listed = time.perf_counter()
            page.wait(f"{PANELS}.length > 1 && state.panels.every(p => p.image))")
            pictured = time.perf_counter()
            page.wait(f"{PANELS}.every(p => p.labels || p.known === false))", 600)
            done = time.perf_counter()
            box = page.run(
                "(() => { const r = document.querySelectorAll('.panel')[1].querySelector('canvas')"
                ".getBoundingClientRect(); return [r.x, r.y, r.width, r.height] })()"
            )
            rng = np.random.default_rng(0)
            for _ in range(60 if measuring else 2):
                x, y = rng.uniform(0.3, 0.7, 2)
                page.click(box[0] + box[2] * x, box[1] + box[3] * y)
                page.run("new Promise(r => setTimeout(r, 60))")
            times = page.run("performance.getEntriesByName('deepatlas-move').map(e => e.duration)")
        finally:
            server.terminate()
            server.wait()
    assert len(times) == (60 if measuring else 2)
    if measuring:
        spread = np.percentile(times, [25, 75])
        print(
            f"\n{len(given)} exams at {size[0]} x {size[1]}: address after {bound - began:.2f} s, list of exams "
            f"{listed - bound:.2f} s later, pictures {pictured - bound:.2f} s, structures {done - bound:.2f} s; "
            f"a click moves all views in {statistics.median(times):.0f} ms (quartiles {spread[0]:.0f} to "
            f"{spread[1]:.0f}, longest {max(times):.0f})"
        )
