"""Name maps and label tables: what the dataset calls the structures of its sources, and which ids they have."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.intake.privacy.names import MAX_NAME, clean_name
from deepatlas.io.structures.ignored import Ignored, Why
from deepatlas.names.meet import compact
from deepatlas.space.constants import MAX_LABEL

# Planning volumes.
_PLANNING = ("ptv", "ctv", "itv", "gtv")
_REGEX = "regex:"
_CURE = 'write {"wanted name": ["alias", "regex:^lung.*l"], …}'


@dataclass(frozen=True)
class NameMap:
    """Maps the names of the sources to the structures of the dataset.

    ``entries`` maps each wanted name to its aliases. Aliases are compared without case, spaces and punctuation, and
    each wanted name is an alias of itself. An alias that begins with ``regex:`` is a regular expression, which is
    searched, ignoring case, in the name as the source spells it and in its cleaned form (``lung_l`` for "Lung-L").
    """

    entries: dict[str, tuple[str, ...]]
    _exact: dict[str, str] = field(init=False, repr=False, compare=False)
    _patterns: list[tuple[re.Pattern[str], str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact: dict[str, str] = {}
        patterns = []
        for wanted, aliases in self.entries.items():
            if not compact(wanted) or len(wanted) > MAX_NAME:
                raise DataError(
                    f"name map: the wanted name {wanted[:40]!r} must hold a letter or digit and be at most "
                    f"{MAX_NAME} characters long; {_CURE}"
                )
            for alias in (wanted, *aliases):
                if alias.startswith(_REGEX):
                    patterns.append((_pattern(alias, wanted), wanted))
                    continue
                key = compact(alias)
                if not key:
                    raise DataError(
                        f"name map: alias {alias!r} of {wanted!r} has no letter or digit; {_CURE}"
                    )
                if exact.setdefault(key, wanted) != wanted:
                    raise DataError(
                        f"name map: {alias!r} is an alias of {exact[key]!r} and of {wanted!r} (case and "
                        "punctuation do not count); keep one"
                    )
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_patterns", patterns)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> NameMap:
        """Read a JSON file ``{"wanted name": ["alias", "regex:^lung.*l"]}``.

        Raises :class:`~deepatlas.errors.DataError`, which names the file and what is wrong with it.
        """
        path = Path(path)
        try:
            pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot read: {error}") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error}); {_CURE}") from error
        if not isinstance(pairs, _Pairs) or not pairs:
            raise DataError(f"{path}: not a JSON object of structures; {_CURE}")
        entries: dict[str, tuple[str, ...]] = {}
        for wanted, aliases in pairs:
            aliases = [aliases] if isinstance(aliases, str) else aliases
            if isinstance(aliases, _Pairs) or not isinstance(aliases, list):
                raise DataError(f"{path}: the aliases of {wanted!r} are not a list of names; {_CURE}")
            if not all(isinstance(alias, str) for alias in aliases):
                raise DataError(f"{path}: an alias of {wanted!r} is not a string; {_CURE}")
            if wanted in entries:
                raise DataError(f"{path}: {wanted!r} is listed twice; join its aliases")
            entries[wanted] = tuple(aliases)
        try:
            return cls(entries)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @property
    def wanted(self) -> list[str]:
        """The dataset's names, in the order of the map."""
        return list(self.entries)

    def match(self, name: str) -> tuple[str, str] | tuple[None, Ignored]:
        """``(wanted name, "")``, or ``(None, reason)``. An alias that is spelled out goes before every pattern."""
        if found := self._exact.get(compact(name)):
            return found, ""
        spelled, cleaned = unicodedata.normalize("NFKC", name).strip(), clean_name(name)
        fitting = {
            wanted
            for pattern, wanted in self._patterns
            if pattern.search(spelled) or (cleaned and pattern.search(cleaned))
        }
        if len(fitting) == 1:
            return fitting.pop(), ""
        if fitting:
            both = " and ".join(repr(wanted) for wanted in sorted(fitting))
            return None, Ignored(
                Why.UNUSABLE, f"patterns of {both} match it; spell it out as an alias of one"
            )
        return None, Ignored(Why.NOT_IN_MAP, "not in the name map")


def label_table(names: Iterable[str], given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Ids for ``names``: those of ``given`` are kept, the others follow after the largest, ordered by name.

    Planning volumes (PTV, CTV, ITV, GTV) come before anatomy, because of two overlapping structures of equal size
    the later one in the table lies on top in the label image. The result does not depend on the order of ``names``.

    Raises :class:`~deepatlas.errors.DataError` if an id would be larger than 65535.
    """
    table = dict(given or {})
    following = max(table.values(), default=0) + 1
    for name in sorted(set(names) - set(table), key=lambda n: (not n.casefold().startswith(_PLANNING), n)):
        table[name] = following
        following += 1
    if following - 1 > MAX_LABEL:
        raise DataError(
            f"{len(table)} structures need ids beyond {MAX_LABEL}; choose the wanted ones by a name map"
        )
    return table


class _Pairs(list):
    """A JSON object as the list of its pairs, so that repeated names are noticed."""


def _pattern(alias: str, wanted: str) -> re.Pattern[str]:
    text = alias.removeprefix(_REGEX)
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(
            f"name map: pattern {text!r} of {wanted!r} is no regular expression ({error})"
        ) from error
    if pattern.search(""):
        raise DataError(f"name map: pattern {text!r} of {wanted!r} matches every name; anchor or lengthen it")
    return pattern
