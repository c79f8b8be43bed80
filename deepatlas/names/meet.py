"""When two names mean one structure: spelling does not count, nor which of the usual vocabularies a name is from.

Two names meet, in this order of preference, if they are equal; if they are equal without case, spaces and punctuation;
or if they are synonyms of one structure on the same side of the body. ``synonyms.json`` holds the synonyms: those of
TG-263 (whose names are the keys), of TotalSegmentator and of public challenges. A side is never part of an entry there:
it is read from the name, so that no entry can exchange left and right.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from importlib import resources

from deepatlas.errors import DataError, did_you_mean

_SIDES = {"l": "L", "left": "L", "lt": "L", "r": "R", "right": "R", "rt": "R"}
# The boundaries between the words of "LeftParotid", "Parotid_L", "parotid gland left" and "OpticNRVLeft".
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")


def compact(name: str) -> str:
    """A name without case, spaces and punctuation. Two names that agree in this form are the same name."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())


def structure_and_side(name: str) -> tuple[str, str]:
    """The structure that a name means, and its side: ``"L"``, ``"R"`` or the empty string.

    The structure is its name in TG-263 where the name is a synonym of it, and otherwise the name in its compact form.
    """
    whole = compact(name)
    sided, single = synonyms()
    if whole in single:
        return single[whole], ""
    words = [w.casefold() for w in _WORDS.findall(unicodedata.normalize("NFKC", name))]
    sides = {_SIDES[w] for w in words if w in _SIDES}
    if len(sides) == 1 and len(words) > 1 and ({words[0], words[-1]} & set(_SIDES)):
        base = "".join(w for w in words if w not in _SIDES)
        return sided.get(base) or single.get(base, base), sides.pop()
    # Without boundaries ("PAROTIDL", "leftlung") only the structures of the table can be told from their sides.
    for mark, side in _SIDES.items() if not sides else ():
        for base in (whole.removeprefix(mark), whole.removesuffix(mark)):
            if base != whole and base in sided:
                return sided[base], side
    return sided.get(whole, whole), ""


@cache
def synonyms() -> tuple[dict[str, str], dict[str, str]]:
    """The compact forms of all synonyms with their structures: those of paired structures, and those of single ones.

    Raises :class:`ValueError` if a name is a synonym of two structures.
    """
    text = (resources.files("deepatlas.names") / "synonyms.json").read_text(encoding="utf-8")
    seen: dict[str, str] = {}
    tables = []
    for entries in (json.loads(text)[kind] for kind in ("sided", "single")):
        table = {}
        for structure, others in entries.items():
            for form in {compact(other) for other in (structure, *others)}:
                if seen.setdefault(form, structure) != structure:
                    raise ValueError(f"synonyms.json: {form!r} means {seen[form]} and {structure}")
                table[form] = structure
        tables.append(table)
    return tables[0], tables[1]


_FORMS: tuple[Callable[[str], object], ...] = (str, compact, structure_and_side)


def meeting(wanted: Iterable[str], known: Iterable[str], where: str) -> dict[str, str]:
    """The known name that each of the wanted names meets, for those that meet one.

    Names that meet in a stricter way take each other first, and are no longer available for others.

    Args:
        wanted: names of structures; distinct.
        known: names of structures; distinct.
        where: what holds the known names, for the message.

    Raises:
        DataError: a name meets two others in the same way, so that nobody can tell which is meant.
    """
    left, free = list(dict.fromkeys(wanted)), list(dict.fromkeys(known))
    order, found = list(left), {}
    for form in _FORMS:
        groups: dict[object, tuple[list[str], list[str]]] = {}
        for side, names in enumerate((left, free)):
            for name in names:
                groups.setdefault(form(name), ([], []))[side].append(name)
        for mine, theirs in groups.values():
            if not mine or not theirs:
                continue
            if len(mine) > 1 or len(theirs) > 1:
                raise DataError(
                    f"{where}: cannot tell whether {' or '.join(theirs)} is {' or '.join(mine)}; name the structure "
                    "exactly as it is spelled there, or rename one"
                )
            found[mine[0]] = theirs[0]
        left = [name for name in left if name not in found]
        free = [name for name in free if name not in found.values()]
    return {name: found[name] for name in order if name in found}


def chosen(names: Iterable[str], known: Iterable[str], where: str, what: str = "structure") -> list[str]:
    """The known names that a user means by ``names``, in their order; ``what`` is what messages call them.

    Raises:
        DataError: a name meets none of them, in which case the message suggests the nearest, or it meets several.
    """
    names, known = list(dict.fromkeys(names)), list(known)
    # One by one, because two spellings of one structure are no contradiction here.
    found = {name: meeting([name], known, where).get(name) for name in names}
    if missing := [name for name, other in found.items() if other is None]:
        raise DataError(
            f"{where}: no {what} {', '.join(map(repr, missing))}; {did_you_mean(missing[0], known)}"
        )
    return list(dict.fromkeys(other for other in found.values() if other))
