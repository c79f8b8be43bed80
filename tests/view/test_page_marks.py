"""The page in a headless Chromium: points, boxes and masks, which are found in every exam and can be kept."""

from __future__ import annotations

import time

import numpy as np
import pytest
from affine_model import SCALE
from on_page import LIVER, SPLEEN, choose, click_at, moved_by, opened, place, press_button, screen, slide

pytestmark = pytest.mark.slow(2)


def test_a_point_is_found_in_every_exam_and_can_be_named_shown_and_deleted(page, client):
    page.press("p")
    click_at(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
    page.wait("T.carried()")
    (mark,) = page.run("T.marks()")
    ids = {e["name"]: e["id"] for e in client.get("/api/session")["exams"]}
    for name in ("moved", "oblique"):
        there = mark["places"][ids[name]]
        assert there["found"]
        np.testing.assert_allclose(there["at"], moved_by(name, np.array(mark["at"])), atol=0.3)
    (kept,) = client.post("/api/marks", {})["marks"]
    assert kept["kind"] == "point" and kept["name"] == "Point 1"
    assert "found in 3 of 3" in page.run("document.querySelector('#marks').innerText")
    page.run(
        "document.querySelector('#marks input').focus(); document.querySelector('#marks input').select()"
    )
    page.type("<img src=x onerror=alert(1)>")
    page.run("document.querySelector('#marks input').dispatchEvent(new Event('change'))")
    page.wait("T.marks().then(m => m[0].name.startsWith('<img'))")
    assert page.run("document.querySelectorAll('main img, aside img').length") == 0
    page.press("n")
    click_at(page, "plain", "axial", [*SPLEEN[:2], place(page, "plain")["place"][2]])
    press_button(page, "#marks button[title='Show it']")
    np.testing.assert_allclose(place(page, "plain")["place"], mark["at"], atol=0.01)
    press_button(page, "#marks button[title=Delete]")
    page.wait("T.marks().then(m => !m.length)")
    assert client.post("/api/marks", {})["marks"] == []


def test_a_point_of_the_atlas_is_found_in_exams(page, client):
    page.press("p")
    at = page.run("T.panel('atlas').then(p => p.place)")
    click_at(page, "atlas", "axial", at)
    page.wait("T.carried()")
    (kept,) = client.post("/api/marks", {})["marks"]
    assert kept["exam"] == "atlas"
    (mark,) = page.run("T.marks()")
    ids = {e["name"]: e["id"] for e in client.get("/api/session")["exams"]}
    np.testing.assert_allclose(mark["places"][ids["plain"]]["at"], np.array(kept["at"]) * SCALE, atol=0.3)


def test_a_box_is_drawn_changed_and_found_in_every_exam(page, client):
    page.press("b")
    z = place(page, "plain")["place"][2]
    corners = [screen(page, "plain", "axial", [x, y, z]) for x, y in ((34, 18), (20, 0), (6, -14))]
    page.drag(*corners)
    page.wait("T.carried()")
    (mark,) = page.run("T.marks()")
    np.testing.assert_allclose(mark["centre"], [20, 2, z], atol=1.2)
    half = np.linalg.norm(mark["axes"], axis=0)
    # As deep as it is wide and high on average.
    np.testing.assert_allclose(half, [14, 16, 15], atol=1.2)
    ids = {e["name"]: e["id"] for e in client.get("/api/session")["exams"]}
    for name in ("moved", "oblique"):
        there = mark["places"][ids[name]]
        assert there["found"]
        np.testing.assert_allclose(there["centre"], moved_by(name, np.array(mark["centre"])), atol=0.5)
        np.testing.assert_allclose(np.linalg.norm(there["axes"], axis=0), half, atol=0.5)
    # Its lower edge is taken hold of and moved 8 mm down.
    edge = [mark["centre"][0], mark["centre"][1] - half[1], z]
    page.drag(screen(page, "plain", "axial", edge), screen(page, "plain", "axial", [edge[0], edge[1] - 4, z]),
              screen(page, "plain", "axial", [edge[0], edge[1] - 8, z]))  # fmt: skip
    page.wait("T.carried()")
    page.wait(
        f"T.marks().then(m => m.length === 1 && Math.abs(m[0].centre[1] - {mark['centre'][1] - 4}) < 1)"
    )
    page.press("Delete")
    page.wait("T.marks().then(m => !m.length)")


def test_a_mask_is_painted_undone_erased_and_found_in_every_exam(page, client):
    page.press("m")
    assert page.run("!document.querySelector('#brush').hidden")
    slide(page, "radius", "12")
    page.press("]")
    page.press("[")
    assert page.run("document.querySelector('#radius-mm').textContent") == "12 mm"
    press_button(page, "#ball")
    z = place(page, "plain")["place"][2]
    page.click(*screen(page, "plain", "axial", [16, 0, z]))
    page.wait("T.carried()")
    (mark,) = page.run("T.marks()")
    ids = {e["name"]: e["id"] for e in client.get("/api/session")["exams"]}
    ball = 4 / 3 * np.pi * 1.2**3
    there = mark["places"][ids["moved"]]
    assert there["found"] and there["millilitres"] == pytest.approx(ball, rel=0.25)
    start, shape = (np.array(there["mask"][key])[::-1] for key in ("start", "shape"))
    affine = np.array(page.run("T.panel('moved').then(p => p.affine)"))
    centre = affine[:3, :3] @ (start + (shape - 1) / 2) + affine[:3, 3]
    np.testing.assert_allclose(centre, moved_by("moved", np.array([16, 0, z])), atol=2.5)
    # A second stroke, which is undone; and one with the eraser.
    page.drag(screen(page, "plain", "axial", [16, 0, z]), screen(page, "plain", "axial", [0, 0, z]))
    page.wait(f"T.marks().then(m => m.length === 1 && m[0].mask.shape[2] > {mark['mask']['shape'][2] + 3})")
    page.press("z", modifiers=2)
    page.wait(f"T.marks().then(m => m.length === 1 && m[0].mask.bits === {mark['mask']['bits']!r})")
    page.press("e")
    slide(page, "radius", "40")
    page.click(*screen(page, "plain", "axial", [16, 0, z]))
    page.wait("T.marks().then(m => !m.length)")
    page.press("e")
    assert page.run("document.querySelector('#eraser').checked") is False


def test_results_are_downloaded(page, client, chromium, tmp_path):
    chromium.send("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    press_button(page, "[data-download=template]")
    page.wait("document.querySelector('#notices').innerText.includes('nothing of that kind')")
    page.press("p")
    click_at(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
    page.press("m")
    press_button(page, "#ball")
    page.click(*screen(page, "plain", "axial", [*SPLEEN[:2], place(page, "plain")["place"][2]]))
    page.wait("T.carried()")
    choose(page, "active", {e["name"]: e["id"] for e in client.get("/api/session")["exams"]}["moved"])
    expected = {
        "masks": "moved.nii.gz", "names": "labels.json", "points": "points.csv", "markups": "moved.mrk.json",
        "painted": "moved_painted.nii.gz", "template": "template.h5",
    }  # fmt: skip
    for what, name in expected.items():
        press_button(page, f"[data-download={what}]")
        page.wait(f"document.querySelector('#notices').innerText.includes('{name} is in')")
        end = time.monotonic() + 60
        while not (tmp_path / name).exists():
            assert time.monotonic() < end, (name, list(tmp_path.iterdir()))
            time.sleep(0.05)


def test_what_is_marked_outlives_the_page_and_is_in_all_pages(page, chromium, server, client):
    page.press("p")
    click_at(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
    page.wait("T.carried()")
    other = opened(chromium, server)
    assert [m["name"] for m in other.run("T.marks()")] == ["Point 1"]
    other.press("p")
    click_at(other, "moved", "axial", [*SPLEEN[:2], place(other, "moved")["place"][2]])
    other.wait("T.marks().then(m => m.length === 2)")
    other.close()
    # The first page learns of it when it is seen again, and its own point is still there.
    page.send("Page.bringToFront")
    page.wait("T.marks().then(m => m.length === 2)")
    assert len(client.post("/api/marks", {})["marks"]) == 2
