"""Griffe extension that adapts docstrings to the site.

Sphinx roles (``:class:`~deepatlas.space.volume.Volume```) become links. A name is looked up from the place where the
docstring stands, as Python would do it, and the link is optional: where the reference does not document the object, its
name is shown as code. Arguments that share an entry (``mode, padding: as for resample``) get one each. The text under
``Returns:`` is given the annotated type, so that a colon in its first sentence is not taken for the end of a type.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import griffe

# Two or more names with one description, which goes on in the lines that are indented more.
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n(?:\1 +.*|(?=\n)))*)", re.M)
_RETURNS = re.compile(r"^( *Returns:\n +)(?=\S)", re.M)
_ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|data|attr|exc|obj|const):`([^`]+)`")


class SphinxRoles(griffe.Extension):
    """Adapts every docstring that is read from the sources."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if not obj.docstring:
            return
        text = obj.docstring.value
        if obj.is_function:
            text = _SHARED.sub(_entries, text)
            if obj.returns is not None:
                text = _RETURNS.sub(lambda match: f"{match[1]}{obj.returns}: ", text)
        obj.docstring.value = _ROLE.sub(lambda match: _link(obj, match[1]), text)


def _entries(match: re.Match[str]) -> str:
    indent, names, description = match.groups()
    return "\n".join(f"{indent}{name}: {description}" for name in names.split(", "))


def _link(obj: griffe.Object, role: str) -> str:
    """HTML that the autorefs plugin turns into a link, or into its title where there is nothing to link to."""
    title, _, target = role.rpartition(" <")
    target = target.rstrip(">")
    if not title:
        title = target.removeprefix("~").rpartition(".")[2] if target.startswith("~") else target
    name = target.removeprefix("~")
    with contextlib.suppress(griffe.NameResolutionError):
        name = obj.resolve(name)
    return f'<autoref identifier="{name}" optional><code>{title}</code></autoref>'
