"""What ``deepatlas segment`` of an image file does without: modules that are slow to start."""

from __future__ import annotations

import os
import subprocess
import sys

IMPORTED = """
import sys
import deepatlas.api, deepatlas.cli.main, deepatlas.exams.outputs, deepatlas.exams.read, deepatlas.localize.segment
import deepatlas.io.export.labels, deepatlas.localize.measure_files, deepatlas.localize.preview
slow = {"pydicom", "highdicom", "matplotlib", "nibabel", "jinja2", "contourpy", "scipy.spatial", "scipy.optimize",
        "scipy.stats", "scipy.interpolate", "torch._dynamo", "tensorboard"}
print(*sorted(slow & set(sys.modules)))
"""


def test_segment_imports_nothing_that_it_does_not_need():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, encoding="utf-8", timeout=200, env=environment
    )
    assert done.returncode == 0 and done.stdout.strip() == "", (done.stdout, done.stderr)
