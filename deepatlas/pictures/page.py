"""Self-contained HTML pages: their common style, and the rendering of templates."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import jinja2

STYLE = """ :root { color-scheme: light dark; --line: #8884; --soft: #888; }
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
 h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
 .warning { color: #c2410c; font-weight: 600 }
 .soft { color: var(--soft); font-size: .9rem }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
 th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
 th:first-child, td:first-child { text-align: left } tr.total td { font-weight: 600 }
 .headline { display: flex; gap: 2.5rem; flex-wrap: wrap; margin: 1rem 0 }
 .headline b { display: block; font-size: 1.9rem; line-height: 1.1 }
 img { max-width: 100%; height: auto; border-radius: 6px; background: #101014 }
 details { margin: .5rem 0 } .wide { overflow-x: auto }
 nav a { margin-right: .8rem }
 @media (max-width: 640px) {
  body { padding: 0 .6rem } table { font-size: .85rem } th, td { padding: .25rem .3rem }
 }"""


def render(package: str, template: str, **values: Any) -> str:
    """Render a Jinja template of a Python package with these values, and with :data:`STYLE` as ``style``.

    Values are escaped. A value that the template needs but does not get raises ``jinja2.UndefinedError``.
    """
    return _compiled(package, template).render(style=STYLE, **values)


@functools.cache
def _compiled(package: str, template: str) -> jinja2.Template:
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source)
