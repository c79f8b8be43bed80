"""The page in a headless Chromium: trust, keys, tablets, and what happens when something is not there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from affine_model import GRIDS, exam
from on_page import LIVER, SPLEEN, click_at, drawn, moved_by, opened, place, press_button, screen
from served import STRANGER, serving, session_of, write_exams

from deepatlas.io.codec import write_volume
from deepatlas.localize.trust.estimate import Trust
from deepatlas.view import shown

pytestmark = pytest.mark.slow(2)


class Believed:
    """Trust as the calibration of a template would give it: an error of 2 mm on the right, and 5 mm on the left."""

    structures = {"liver": Trust(0.91, 0.83), "spleen": Trust(None, None, "no labelled exam shows it")}

    def millimetres(self, points):
        error = np.where(points[:, 0] > 0, 2.0, 5.0)
        return error, error + 1.5


def test_trust_is_shown_with_structures_and_places(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(shown, "exam_trust", lambda *_, threshold: Believed())
    session = session_of(write_exams(tmp_path, ("plain",)), ("plain",))
    session.template.meta["trust"] = {"calibrated": True}
    with serving(session) as server:
        page = opened(chromium, server)
        page.wait("T.panel('plain').then(p => p.trust)")
        drawn(page)
        rows = page.run("Array.from(document.querySelectorAll('#structures li'), e => e.innerText)")
        assert [row.split("\n")[1].split(" · ")[1:] for row in rows] == [
            ["trust 0.91, ≥ 0.83"],
            ["no trust"],
            [],
        ]
        assert page.run("document.querySelector('#structures-of').innerText") == "in plain"
        titles = page.run("Array.from(document.querySelectorAll('#structures .numbers'), e => e.title)")
        assert "in nine of ten exams at least 0.83" in titles[0] and "no labelled exam shows it" in titles[1]
        page.run(f"T.moveTo('plain', {LIVER.tolist()})")
        line = page.run("document.querySelector('[aria-label=plain] .status').textContent")
        assert "liver 110 HU trust 0.91, ≥ 0.83 error 2.0 mm (90 % < 3.5)" in line
        page.run(f"T.moveTo('plain', {SPLEEN.tolist()})")
        line = page.run("document.querySelector('[aria-label=plain] .status').textContent")
        assert "spleen" in line and "trust" not in line and "error 5.0 mm" in line
        assert page.complaints() == []
        page.close()


# What is readable of the exams: whether the text of the line below the pictures is all there, and how much of the name.
READABLE = """Array.from(document.querySelectorAll('.panel'), (panel) => {
  const status = panel.querySelector('.status'), name = panel.querySelector('.name'), range = document.createRange();
  const frame = panel.getBoundingClientRect();
  range.setStart(name.firstChild, 0);
  range.setEnd(name.firstChild, Math.min(9, name.firstChild.length));
  return {
    whole: status.scrollWidth <= status.clientWidth && status.scrollHeight <= status.clientHeight
      && status.getBoundingClientRect().bottom <= frame.bottom + 1,
    named: range.getBoundingClientRect().right <= name.getBoundingClientRect().right,
    close: panel.querySelector('.close').getBoundingClientRect().right <= frame.right,
  };
})"""


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (820, 1180)])
def test_what_says_whether_to_believe_and_the_names_are_readable_in_six_panels(
    chromium, tmp_path, monkeypatch, width, height
):
    monkeypatch.setattr(shown, "exam_trust", lambda *_, threshold: Believed())
    names = ("plain", "moved", "oblique", STRANGER)
    folder = write_exams(tmp_path, names)
    for name in names:
        (folder / name).rename(folder / f"{name}_of_a_patient_with_a_long_name")
    # The name of its file is wider than its panel, and has no place to break a line.
    (folder / "broken_exam_of_a_patient_with_a_long_name").mkdir()
    (folder / "broken_exam_of_a_patient_with_a_long_name" / "ct.nii.gz").write_bytes(b"no image")
    session = session_of(folder)
    session.template.meta["trust"] = {"calibrated": True}
    session.opened = [exam.id for exam in session.gallery]
    with serving(session) as server:
        page = opened(chromium, server, width, height)
        page.wait(
            "T.state().then(s => s.panels.every(p => p.isAtlas || p.failed || p.known === false || p.trust))"
        )
        full = "plain_of_a_patient_with_a_long_name"
        page.run(f"T.moveTo({full!r}, {LIVER.tolist()})")
        drawn(page)
        found = page.run(READABLE)
        assert found == [{"whole": True, "named": True, "close": True}] * 6
        assert page.run("document.documentElement.scrollWidth") <= width
        # The reason why a place is not shown is as long.
        page.run(
            f"T.panel({full!r}).then(p => p.lose('this place of {full} is not in this exam; the nearest is shown'))"
        )
        drawn(page)
        assert page.run(READABLE) == found
        assert page.complaints() == []
        page.close()


def test_a_structure_that_the_exam_hardly_shows_says_how_much_of_it_there_is(chromium, tmp_path):
    ct, _ = exam(GRIDS["plain"], "part")
    level = int(ct.grid.world_to_voxel(LIVER[None])[0, 2]) + 8
    part = ct.cropped((level, 0, 0), (ct.grid.shape[0] - level, *ct.grid.shape[1:]))
    write_volume(tmp_path / "part" / "ct.nii.gz", part)
    with serving(session_of(tmp_path, ("part",))) as server:
        page = opened(chromium, server)
        drawn(page)
        rows = page.run("Array.from(document.querySelectorAll('#structures li'), e => e.innerText)")
        told = {row.split("\n")[0]: row.split("\n")[1] for row in rows}
        assert re.fullmatch(r"[\d.]+ ml · [1-4]?\d % of it in the exam", told["liver"])
        page.close()


def test_keys_are_told(page):
    page.press("?")
    assert page.run("document.querySelector('#keys').open")
    assert page.run("document.querySelector('#keys').innerText").count("\n") > 10
    press_button(page, "#keys button")
    assert not page.run("document.querySelector('#keys').open")
    press_button(page, "#help")
    assert page.run("document.querySelector('#keys').open")


def test_a_tablet_has_everything_within_reach_and_two_fingers_zoom(chromium, server, client):
    page = opened(chromium, server, 820, 1180, touch=True)
    out = page.run("T.beyond()")
    assert out == []
    assert page.run("document.documentElement.scrollWidth") <= 820
    x, y = screen(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
    page.touch("Start", (x, y))
    page.touch("End")
    drawn(page)
    np.testing.assert_allclose(place(page, "moved")["place"][:2], moved_by("moved", LIVER)[:2], atol=1)
    page.touch("Start", (x - 20, y), (x + 20, y))
    page.touch("Move", (x - 40, y), (x + 40, y))
    page.touch("End")
    drawn(page)
    assert page.run("T.state().then(s => s.zoom)") == pytest.approx(2, rel=0.1)
    assert page.complaints() == []
    page.close()


def test_the_page_asks_nobody_but_its_server(page, server):
    asked = page.requests()
    assert len(asked) > 10
    own = f"http://127.0.0.1:{server.gate.port}/"
    assert [address for address in asked if not address.startswith((own, "blob:" + own))] == []
    # The token is not left in the address.
    assert page.run("location.href") == own


def test_a_server_that_has_ended_is_one_line_and_loses_no_mark(chromium, tmp_path):
    marks = tmp_path / "marks.json"
    folder = write_exams(tmp_path / "data", ("plain",))
    with serving(session_of(folder, ("plain",), marks=marks)) as server:
        page = opened(chromium, server)
        page.press("p")
        click_at(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
        page.wait("T.marks().then(m => m.length === 1 && m[0].text !== undefined)")
        page.wait("T.carried()")
    page.wait("document.querySelector('#notices').innerText.includes('deepatlas view has ended')")
    assert page.run("document.querySelectorAll('#notices p').length") == 1
    assert len(page.run("T.marks()")) == 1
    page.close()
    again = session_of(folder, ("plain",), marks=marks)
    assert [mark.name for mark in again.marks.all()] == ["Point 1"]


def test_an_exam_that_cannot_be_read_says_why_and_the_others_are_shown(chromium, tmp_path):
    folder = write_exams(tmp_path, ("plain", "moved"))
    (folder / "moved" / "ct.nii.gz").write_bytes(b"no image")
    with serving(session_of(folder, ("plain", "moved"))) as server:
        page = opened(chromium, server)
        text = page.run("document.querySelector('[aria-label=moved]').innerText")
        assert "cannot be shown" in text and "ct.nii.gz" in text
        click_at(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
        assert place(page, "plain")["found"]
        page.close()
