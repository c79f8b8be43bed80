"""Structure names: what a source calls a structure, what the dataset calls it, and what must stay out.

Names of contours and segments are free text and may carry a patient's name. What goes into a dataset is therefore
either a name that somebody wrote into a map or a label table, or one that :func:`why_private` finds nothing in.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.space.constants import MAX_LABEL

MAX_NAME = 64
_MARGINS = ("ptv", "ctv", "itv")  # drawn to hold healthy tissue around what is seen
_PLANNING = (*_MARGINS, "gtv")
_REGEX = "regex:"
_CURE = 'write {"wanted name": ["alias", "regex:^lung.*l"], …}'
_DATE = re.compile(r"(?<!\d)((19|20)\d\d[-_ ]\d{1,2}[-_ ]\d{1,2}|\d{1,2}[-_ ]\d{1,2}[-_ ](19|20)\d\d)(?!\d)")
_GROUPS = re.compile(r"\d+([-_ ]+\d+){2,}")  # telephone and social security numbers
_NUMBER = re.compile(r"\d{6}")  # record numbers and dates without separators; doses and indices are shorter
# Words of anatomy and of planning that stand in many PatientIDs of public collections ("LUNG1-003",
# "Pancreas-CT-0001") and are no identifiers: without them, exactly the structure of interest would be withheld.
_COMMON = frozenset(
    "abdomen arm bladder body bone bowel brain brainstem breast cervix chest colon cord ear esophagus external eye "
    "face femur gland head heart hip kidney knee larynx left leg lens liver lung lungs mandible muscle neck node "
    "nodes oesophagus oral organ pancreas parotid patient pelvis prostate rectum rib right sacrum skin skull spinal "
    "spine spleen stomach thorax thyroid trachea uterus ctv gtv ptv".split()
)


def compact(name: str) -> str:
    """A name without case, spaces and punctuation; two names with the same one are the same name."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())


def clean_name(name: str) -> str:
    """A source's name as the dataset spells it without a map: lower case, underscores for all between words."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "_".join("".join(c if c.isalnum() else " " for c in folded).split())


def identifier_tokens(values: Iterable[str]) -> frozenset[str]:
    """The words of identifying header fields (patient's and physicians' names, ids) that no name may hold."""
    words = set()
    for value in values:
        words.update(re.split(r"[\W_]+", unicodedata.normalize("NFKC", value).casefold()))
        words.add(compact(value))
    # Shorter ones (a middle initial, the running number of a study) are in every second name.
    return frozenset(w for w in words if len(w) >= (4 if w.isdigit() else 3) and w not in _COMMON)


def why_private(name: str, identifiers: frozenset[str] = frozenset()) -> str:
    """Why a source's name may not be written into a dataset, or the empty string if it may.

    It may if it is made of letters, digits, ``_``, ``-`` and spaces, has a letter and at most 64 characters, and holds
    no run of six digits, no date, no three groups of digits as in a telephone number, and none of ``identifiers``
    (:func:`identifier_tokens` of its file's header). Somebody else's surname cannot be told from a structure; where
    names are typed so freely, use a map.
    """
    name = unicodedata.normalize("NFKC", name).strip()
    if not any(c.isalpha() for c in name):
        return "its name has no letter"
    if len(name) > MAX_NAME:
        return f"its name is longer than {MAX_NAME} characters"
    if not all(c.isalnum() or c in "_- " for c in name):
        return "its name holds more than letters, digits, space, _ and -"
    groups = _GROUPS.search(name)
    if _NUMBER.search(name) or _DATE.search(name) or (groups and sum(map(str.isdigit, groups[0])) >= 7):
        return "its name holds a date or a long number, which may identify somebody"
    words = set(clean_name(name).split("_"))
    squeezed = compact(name)
    if words & identifiers or any(len(word) >= 5 and word in squeezed for word in identifiers):
        return "its name holds a name or number from the file's header"
    return ""


@dataclass(frozen=True)
class NameMap:
    """Which names of the sources mean which structure of the dataset.

    ``entries`` maps each wanted name to its aliases. Aliases are compared without case, spaces and punctuation, and
    the wanted name is an alias of itself. One that begins with ``regex:`` is a regular expression, searched without
    regard to case in the name as the source spells it and in its cleaned form (``lung_l`` for "Lung-L").
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
        """Read ``{"wanted name": ["alias", "regex:^lung.*l"]}``; :class:`DataError` names what is wrong in it."""
        path = Path(path)
        try:
            pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
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

    def match(self, name: str) -> tuple[str | None, str]:
        """``(wanted name, "")``, or ``(None, why not)``. An alias that is spelled out goes before every pattern."""
        if found := self._exact.get(compact(name)):
            return found, ""
        spelled, cleaned = unicodedata.normalize("NFKC", name).strip(), clean_name(name)
        found = {
            wanted
            for pattern, wanted in self._patterns
            if pattern.search(spelled) or (cleaned and pattern.search(cleaned))
        }
        if len(found) == 1:
            return found.pop(), ""
        if found:
            both = " and ".join(repr(wanted) for wanted in sorted(found))
            return None, f"patterns of {both} match it; spell it out as an alias of one"
        return None, "not in the name map"


def is_margin(name: str) -> bool:
    """Whether a structure is a planning volume that holds healthy tissue by design: PTV, CTV or ITV."""
    return name.casefold().startswith(_MARGINS)


def label_table(names: Iterable[str], given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Ids for ``names``: those of ``given`` are kept, the others follow after the largest in order of their names.

    Planning volumes (PTV, CTV, ITV, GTV) come before anatomy: where two of equal size overlap, the later one of the
    table has the voxel. The same names get the same ids in whatever order they come.
    Raises :class:`DataError` beyond 65535.
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
    """A JSON object as the list of its pairs, so that repeated names are seen."""


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
