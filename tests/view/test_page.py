"""The page in a headless Chromium: every control, used as a person would, against exams with known anatomy."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from affine_model import ANATOMY, LABELS, SCALE
from headless import browser
from PIL import Image
from served import STRANGER, Client, serving, session_of, shifted, write_exams

from deepatlas.localize.trust.estimate import Trust
from deepatlas.view import shown

pytestmark = pytest.mark.slow(2)

# What the tests ask the page; they look at its state and its pixels, and change nothing by it.
HELP = Path(__file__).with_name("page_help.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def chromium():
    with browser() as it:
        yield it


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_exams(tmp_path_factory.mktemp("data"))
    with serving(session_of(folder, ("plain", "moved", "oblique"))) as it:
        yield it


@pytest.fixture
def client(server):
    it = Client(server)
    yield it
    marks = it.post("/api/marks", {})["marks"]
    it.post("/api/marks/change", {"delete": [mark["id"] for mark in marks]})


def opened(chromium, server, width=1280, height=720, touch=False):
    page = chromium.page(width, height, touch)
    page.go(server.address)
    page.wait("document.readyState === 'complete' && document.title.includes('–')")
    page.run(HELP)
    page.wait("T.ready()")
    page.run("T.drawn()")
    return page


@pytest.fixture
def page(chromium, server, client):
    it = opened(chromium, server)
    yield it
    assert it.complaints() == []
    it.close()


def screen(page, name, plane, place):
    return page.run(f"T.screen({name!r}, {plane!r}, {json.dumps([float(v) for v in place])})")


def place(page, name):
    return page.run(f"T.place({name!r})")


def drawn(page):
    page.run("T.drawn()")


def click_at(page, name, plane, at, **more):
    page.click(*screen(page, name, plane, at), **more)
    drawn(page)


def choose(page, identity, value):
    """Choose an entry of a list, as its menu does."""
    page.run(
        f"(() => {{ const e = document.getElementById({identity!r}); e.value = {value!r}; "
        "e.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    drawn(page)


def slide(page, identity, value):
    page.run(
        f"(() => {{ const e = document.getElementById({identity!r}); e.value = {value!r}; "
        "e.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )
    drawn(page)


def press_button(page, selector):
    box = page.run(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
        "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )
    page.click(*box)
    drawn(page)


def moved_by(to, at):
    """Where the anatomy at a place of the exam ``plain`` is in another exam."""
    return {"plain": at, "moved": at - (shifted(np.zeros(3))), "oblique": at}[to]


LIVER, SPLEEN, HEART = (np.array(centre) for _, centre, _ in ANATOMY.values())


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
        end = time.monotonic() + 20
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


class Believed:
    """Trust as the calibration of a template would give it: an error of 2 mm on the right, and 5 mm on the left."""

    structures = {"liver": Trust(0.91, 0.83), "spleen": Trust(None, None, "no labelled exam shows it")}

    def millimetres(self, points):
        error = np.where(points[:, 0] > 0, 2.0, 5.0)
        return error, error + 1.5


def test_trust_is_shown_with_structures_and_places(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(shown, "exam_trust", lambda *_: Believed())
    session = session_of(write_exams(tmp_path, ("plain",)), ("plain",))
    session.template.meta["trust"] = {"calibrated": True}
    with serving(session) as server:
        page = opened(chromium, server)
        page.wait("T.panel('plain').then(p => p.trust)")
        drawn(page)
        rows = page.run("Array.from(document.querySelectorAll('#structures li'), e => e.innerText)")
        assert [row.endswith("· 0.91") for row in rows] == [True, False, False]
        titles = page.run("Array.from(document.querySelectorAll('#structures .numbers'), e => e.title)")
        assert "in nine of ten exams at least 0.83" in titles[0] and "no labelled exam shows it" in titles[1]
        page.run(f"T.moveTo('plain', {LIVER.tolist()})")
        line = page.run("document.querySelector('[aria-label=plain] .status').textContent")
        assert "liver (trust 0.91)" in line and "expected error 2.0 mm (90 % under 3.5)" in line
        page.run(f"T.moveTo('plain', {SPLEEN.tolist()})")
        line = page.run("document.querySelector('[aria-label=plain] .status').textContent")
        assert "spleen" in line and "trust" not in line and "expected error 5.0 mm" in line
        assert page.complaints() == []
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
