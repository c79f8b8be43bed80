"""What the tests of the page do there, as a person would; they look at its state and its pixels by ``page_help.js``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from affine_model import ANATOMY
from served import shifted

HELP = (Path(__file__).parent / "view" / "page_help.js").read_text(encoding="utf-8")
LIVER, SPLEEN, HEART = (np.array(centre) for _, centre, _ in ANATOMY.values())


def opened(chromium, server, width=1280, height=720, touch=False):
    page = chromium.page(width, height, touch)
    page.go(server.address)
    page.wait("document.readyState === 'complete' && document.title.includes('–')")
    page.run(HELP)
    page.wait("T.ready()")
    page.run("T.drawn()")
    return page


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
