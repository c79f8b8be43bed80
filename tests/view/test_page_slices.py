"""The page in a headless Chromium: slices that are linked, windows, zoom, and what lies over them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from affine_model import ANATOMY, LABELS, SCALE
from on_page import (
    HEART,
    LIVER,
    SPLEEN,
    choose,
    click_at,
    drawn,
    moved_by,
    place,
    press_button,
    screen,
    slide,
)
from PIL import Image
from served import STRANGER, shifted

pytestmark = pytest.mark.slow(2)


def test_a_click_moves_every_exam_and_the_atlas_to_the_same_anatomy(page):
    for at, plane in ((LIVER, "axial"), (HEART, "coronal"), (SPLEEN, "sagittal")):
        fixed = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
        at = at.copy()
        click_at(page, "plain", plane, at)
        # A click stays in its plane, whichever that was.
        at[fixed] = place(page, "plain")["place"][fixed]
        for name in ("plain", "moved", "oblique"):
            there = place(page, name)
            assert there["found"], (name, there)
            # A pixel of the picture is a millimetre, and the grid of coordinates is 3 mm.
            np.testing.assert_allclose(there["place"], moved_by(name, at), atol=1.0)
        atlas = page.run("T.panel('atlas').then(p => p.toServer(p.place))")
        np.testing.assert_allclose(atlas, at / SCALE, atol=0.01)


def test_a_click_in_the_atlas_and_in_the_oblique_exam_moves_the_others(page):
    for name in ("atlas", "oblique", "moved"):
        click_at(page, name, "axial", page.run(f"T.panel({name!r}).then(p => p.place)"))
        before = place(page, "plain")["place"]
        x, y = page.run(f"T.panel({name!r}).then(p => T.screen({name!r}, 'axial', p.place))")
        page.click(x + 12, y - 9)
        drawn(page)
        after = place(page, "plain")
        # To the right of the picture is the patient's left.
        assert after["found"] and after["place"][0] < before[0] - 5 and after["place"][1] > before[1] + 3


@pytest.mark.parametrize("name", ["plain", "moved", "oblique", "atlas"])
def test_structures_lie_where_they_are_and_the_right_of_the_patient_is_on_the_left(page, name):
    """The truth is the anatomy; the pixels of the page are found by their colour."""
    slide(page, "mask-opacity", "100")
    press_button(page, "#outlines")
    colours = {s["name"]: s["colour"] for s in page.run("T.state().then(s => s.model.structures)")}
    for structure, at in (("liver", LIVER), ("heart", HEART)):
        there = at if name == "atlas" else moved_by(name, at)
        if name == "atlas":
            there = np.array(page.run(f"T.panel('atlas').then(p => p.fromServer({(at / SCALE).tolist()}))"))
        # Let the slices pass through it.
        page.run(f"T.moveTo({name!r}, {there.tolist()})")
        drawn(page)
        rgb = [int(colours[structure][k : k + 2], 16) for k in (1, 3, 5)]
        for plane in ("axial", "coronal", "sagittal"):
            found = page.run(f"T.middle({name!r}, {plane!r}, {rgb})")
            assert found["count"] > 60
            # Two voxels of the coarsest grid; the crosshair hides a few pixels.
            np.testing.assert_allclose(found["place"], there, atol=4.0)
        if structure == "liver":
            assert page.run(f"T.middle({name!r}, 'axial', {rgb})")["x"] < 0.5
        else:
            assert page.run(f"T.middle({name!r}, 'axial', {rgb})")["y"] < 0.5
            assert page.run(f"T.middle({name!r}, 'coronal', {rgb})")["y"] < 0.5


def test_an_exam_that_the_model_does_not_know_says_so_and_is_not_linked(page):
    press_button(page, f"#exams label[title={STRANGER}] input")
    page.wait(f"T.panel({STRANGER!r}).then(p => p && p.known === false)")
    text = page.run(f"document.querySelector('[aria-label={STRANGER}]').innerText")
    assert "does not know" in text and "not known · fit 0.10" in text and "from 0.50" in text
    before = place(page, STRANGER)["place"]
    click_at(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
    assert place(page, STRANGER)["place"] == before
    assert page.run(f"T.panel({STRANGER!r}).then(p => !p.labels)")
    # A click in it moves no other exam, which say why.
    x, y = page.run(f"T.panel({STRANGER!r}).then(p => T.screen({STRANGER!r}, 'axial', p.place))")
    page.click(x + 20, y)
    drawn(page)
    lost = place(page, "plain")
    assert not lost["found"] and STRANGER in lost["reason"]
    # Whoever wants it sees it nevertheless.
    press_button(page, f"[aria-label={STRANGER}] .told button")
    page.wait(f"T.panel({STRANGER!r}).then(p => p.labels)")
    drawn(page)
    text = page.run(f"document.querySelector('[aria-label={STRANGER}] .told').innerText")
    assert "does not know" in text and "It is linked nevertheless" in text and "not linked" not in text
    # The place was chosen in it, and the others are linked to it now.
    assert place(page, "plain")["reason"] == "" or STRANGER in place(page, "plain")["reason"]
    assert "not linked" not in place(page, "plain")["reason"]
    click_at(page, "plain", "axial", [*SPLEEN[:2], place(page, "plain")["place"][2]])
    np.testing.assert_allclose(place(page, STRANGER)["place"][:2], SPLEEN[:2], atol=2)


def test_exams_say_when_they_are_oblique_or_large(page):
    press_button(page, "#exams label[title=large] input")
    page.wait("T.panel('large').then(p => p && p.labels)")
    assert "oblique grid (22 degrees)" in page.run("document.querySelector('[aria-label=oblique]').innerText")
    assert "large (281" in page.run("document.querySelector('[aria-label=large]').innerText")
    assert page.run("T.panel('large').then(p => p.image.shape)") == [37, 59, 140]
    click_at(page, "plain", "axial", [*LIVER[:2], place(page, "plain")["place"][2]])
    np.testing.assert_allclose(place(page, "large")["place"][:2], LIVER[:2], atol=1.5)
    # Closed and opened again by the list and by its own cross.
    press_button(page, "[aria-label=large] .close")
    assert not page.run("T.panel('large')")
    assert page.run("document.querySelector('#exams label[title=large] input').checked") is False


def test_wheel_keys_and_scroll_tool_go_through_the_slices(page):
    start = np.array(place(page, "plain")["place"])
    x, y = screen(page, "plain", "axial", start)
    page.mouse("Wheel", x, y, deltaX=0, deltaY=-120, button="none", buttons=0)
    page.wait(f"T.place('plain').then(p => p.place[2] > {start[2] + 4.5})")
    up = place(page, "plain")["place"]
    assert up[2] - start[2] == pytest.approx(6, abs=1.1)
    np.testing.assert_allclose(place(page, "moved")["place"], moved_by("moved", np.array(up)), atol=1)
    page.press("PageDown")
    page.press("PageDown")
    drawn(page)
    assert up[2] - place(page, "plain")["place"][2] == pytest.approx(4, abs=1.1)
    before = place(page, "plain")["place"]
    for key, axis, way in (
        ("ArrowLeft", 0, 1),
        ("ArrowUp", 1, 1),
        ("ArrowRight", 0, -1),
        ("ArrowDown", 1, -1),
    ):
        page.press(key)
        drawn(page)
        after = place(page, "plain")["place"]
        assert (after[axis] - before[axis]) * way == pytest.approx(2, abs=1.1), key
        before = after
    page.press("s")
    page.drag((x, y), (x, y - 10), (x, y - 30))
    drawn(page)
    assert place(page, "plain")["place"][2] - before[2] == pytest.approx(10, abs=1.1)


def test_window_presets_and_the_window_tool_change_all_pictures(page):
    greys = {}
    for key, name in zip("12345", ("soft tissue", "lung", "bone", "brain", "model"), strict=True):
        page.press(key)
        drawn(page)
        greys[name] = page.run("T.grey('plain', 'axial')")
        assert page.run("document.querySelector('#preset').selectedOptions[0].text") == name
    # 20 HU of the body are bright in the window of lungs, and dark in that of bone.
    assert greys["lung"] > greys["soft tissue"] > greys["bone"]
    choose(page, "preset", "0")
    assert page.run("document.querySelector('#window-values').textContent") == "400 / 40"
    assert page.run("T.grey('plain', 'axial')") == pytest.approx(greys["soft tissue"], abs=0.5)
    page.press("w")
    x, y = screen(page, "moved", "axial", place(page, "moved")["place"])
    page.drag((x, y), (x + 10, y + 5), (x + 25, y + 20))
    drawn(page)
    assert page.run("document.querySelector('#window-values').textContent") == "500 / 0"
    assert page.run("document.querySelector('#preset').value") == "own"


def test_zoom_pan_and_fit(page):
    at = np.array(place(page, "plain")["place"])
    width = abs(np.diff([screen(page, "plain", "axial", at + d)[0] for d in ([20, 0, 0], [-20, 0, 0])])[0])
    there = np.array(screen(page, "plain", "axial", at + [10, 10, 0]))
    # A wheel is at whole pixels.
    x, y = (float(v) for v in there.round())
    page.mouse("Wheel", x, y, deltaX=0, deltaY=-300, button="none", buttons=0, modifiers=2)
    page.wait("T.state().then(s => s.zoom > 2)")
    drawn(page)
    # What was under the pointer still is.
    x, y = [x, y] + (there - [x, y]) * np.e
    np.testing.assert_allclose(screen(page, "plain", "axial", at + [10, 10, 0]), [x, y], atol=0.6)
    wide = abs(np.diff([screen(page, "plain", "axial", at + d)[0] for d in ([20, 0, 0], [-20, 0, 0])])[0])
    assert wide == pytest.approx(width * np.e, rel=0.01)
    page.press("h")
    page.drag((x, y), (x + 10, y), (x + 30, y + 15))
    drawn(page)
    np.testing.assert_allclose(screen(page, "plain", "axial", at + [10, 10, 0]), [x + 30, y + 15], atol=0.6)
    press_button(page, "#zoom-out")
    press_button(page, "#zoom-in")
    page.press("+")
    page.press("-")
    press_button(page, "#reset")
    again = abs(np.diff([screen(page, "plain", "axial", at + d)[0] for d in ([20, 0, 0], [-20, 0, 0])])[0])
    assert again == pytest.approx(width, rel=0.01)


def test_an_enlarged_picture_follows_the_place_and_stays_under_the_pointer(page):
    for _ in range(7):
        page.press("+")
    drawn(page)
    at = np.array(
        [*(np.array(place(page, "plain")["place"])[:2] + [12, -8]), place(page, "plain")["place"][2]]
    )
    x, y = screen(page, "plain", "axial", at)
    click_at(page, "plain", "axial", at)
    np.testing.assert_allclose(screen(page, "plain", "axial", at), [x, y], atol=0.6)
    box = page.run("T.frame('moved', 'axial')")
    x, y = screen(page, "moved", "axial", place(page, "moved")["place"])
    assert box[0] < x < box[2] and box[1] < y < box[3]


def test_planes_can_be_chosen(page):
    assert page.run("document.querySelectorAll('canvas').length") == 12
    choose(page, "planes", "coronal")
    assert (
        page.run("Array.from(document.querySelectorAll('canvas'), c => c.dataset.plane)") == ["coronal"] * 4
    )
    page.press("v")
    drawn(page)
    assert page.run("document.querySelector('#planes').value") == "sagittal"
    page.press("v")
    drawn(page)
    assert page.run("document.querySelectorAll('canvas').length") == 12
    click_at(page, "plain", "coronal", HEART)
    assert place(page, "moved")["found"]


def test_coordinates_as_colours_and_the_atlas_on_the_exam(page):
    """At a place of the body, red, green and blue are its coordinates x, y and z."""
    press_button(page, "#no-structures")
    slide(page, "overlay-opacity", "100")
    choose(page, "overlay", "coordinates")
    # Beside the crosshair.
    for name in ("plain", "oblique", "moved"):
        at = np.array(place(page, name)["place"]) + [14, 10, 0]
        x, y = screen(page, name, "axial", at)
        seen = np.array(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))[round(y), round(x)]
        anatomy = at if name != "moved" else shifted(at)
        np.testing.assert_allclose(seen, 127.5 * (anatomy / SCALE + 1), atol=4)
    page.press("a")
    drawn(page)
    slide(page, "overlay-opacity", "100")
    atlas = page.run("T.grey('plain', 'axial')")
    slide(page, "overlay-opacity", "0")
    exam = page.run("T.grey('plain', 'axial')")
    # The atlas of the test is a body of one value, at which the exam has 20 HU.
    assert atlas == pytest.approx(exam, rel=0.25) and atlas != exam
    page.press("x")
    assert page.run("document.querySelector('#overlay').value") == "none"


def test_structures_can_be_hidden_outlined_and_made_transparent(page):
    def ink():
        drawn(page)
        return page.run("T.ink('plain', 'axial')")

    click_at(page, "plain", "coronal", [LIVER[0], place(page, "plain")["place"][1], LIVER[2]])
    both = ink()
    press_button(page, "#no-structures")
    none = ink()
    press_button(page, "#structures label[title=liver] input")
    liver = ink()
    assert none < liver < both
    press_button(page, "#all-structures")
    # The browser may draw the edge of a line a little differently the second time.
    assert ink() == pytest.approx(both, rel=0.01)
    slide(page, "mask-opacity", "0")
    outlined = ink()
    page.press("o")
    assert none <= ink() < outlined < both
    assert page.run("document.querySelector('#outlines').checked") is False
    rows = page.run("Array.from(document.querySelectorAll('#structures li'), e => e.innerText)")
    assert [row.split("\n")[0] for row in rows] == list(LABELS)
    volume = 4 / 3 * np.pi * np.prod(ANATOMY["liver"][2]) / 1000
    assert float(rows[0].split("\n")[1].split()[0]) == pytest.approx(volume, rel=0.08)
