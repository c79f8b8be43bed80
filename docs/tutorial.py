"""Take docs/tutorial-page.png, a picture of the page on phantoms. Run from the source tree, with Chromium installed.

python docs/tutorial.py RUN        # a run on phantoms; the steps are those of the tutorial
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from headless import browser  # noqa: E402

OUT = Path(__file__).with_name("tutorial-page.png")
PANELS = "import('/state.js').then(({state}) => state.panels"
CARRIED = (
    "import('/state.js').then(({state}) => state.marks.length === 2 && state.marks.every(m => state.panels.every("
    "p => p.id === m.exam || (m.places[p.id] && !m.places[p.id].preview))))"
)


def main(run: str) -> None:
    """Draw two patients, show them, mark a point and a box, and save the page."""
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        deepatlas = [sys.executable, "-m", "deepatlas"]
        subprocess.run([*deepatlas, "phantom", folder, "--exams", "3", "--seed", "1"], check=True)
        template = f"{folder}/template.h5"
        one = ["--data", folder, "--exams", "phantom_0000"]
        subprocess.run([*deepatlas, "template", "--model", run, *one, "--out", template], check=True)
        exams = [f"{folder}/phantom_000{i}" for i in (1, 2)]
        server = subprocess.Popen(
            [*deepatlas, "view", run, *exams, "--template", template, "--no-browser"],
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            page = chromium.page(1280, 720)
            assert server.stdout
            page.go(server.stdout.readline().strip())
            page.wait(f"{PANELS}.length === 3 && state.panels.every(p => p.labels))", 300)
            page.run("document.getElementById('title').textContent = 'runs/first'")
            x, y, width, height = page.run(
                "(() => { const r = document.querySelectorAll('.panel')[1].querySelectorAll('canvas')[1]"
                ".getBoundingClientRect(); return [r.x, r.y, r.width, r.height] })()"
            )
            page.press("p")
            page.click(x + 0.46 * width, y + 0.55 * height)
            page.press("b")
            corners = [(x + a * width, y + b * height) for a, b in ((0.4, 0.4), (0.45, 0.5), (0.52, 0.6))]
            page.drag(*corners)
            page.wait(CARRIED, 300)
            page.press("n")
            page.click(x + 0.47 * width, y + 0.5 * height)
            page.run("new Promise(r => setTimeout(r, 500))")
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        finally:
            server.terminate()
            server.wait()
    # 128 colours are enough for a dark page, and a third of the size.
    picture.quantize(128).save(OUT, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
