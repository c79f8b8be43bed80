"""Which names of structures may be written into a dataset, and how they are compared and spelled.

Names of contours and segments are free text and may contain the name of a patient. A dataset therefore contains only
names that somebody wrote into a name map or a label table, and names that :func:`why_private` has no objection to.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from deepatlas.names.meet import compact

# Characters of a structure's name.
MAX_NAME = 64
_DATE = re.compile(r"(?<!\d)((19|20)\d\d[-_ ]\d{1,2}[-_ ]\d{1,2}|\d{1,2}[-_ ]\d{1,2}[-_ ](19|20)\d\d)(?!\d)")
# Telephone and social security numbers.
_GROUPS = re.compile(r"\d+([-_ ]+\d+){2,}")
# Record numbers, and dates without separators. Doses and indices are shorter.
_NUMBER = re.compile(r"\d{6}")
# Words of anatomy and of radiotherapy planning that are part of many PatientIDs of public collections ("LUNG1-003",
# "Pancreas-CT-0001"). They do not count as identifiers: otherwise the very structure of interest would be withheld.
_COMMON = frozenset(
    "abdomen arm bladder body bone bowel brain brainstem breast cervix chest colon cord ear esophagus external eye "
    "face femur gland head heart hip kidney knee larynx left leg lens liver lung lungs mandible muscle neck node "
    "nodes oesophagus oral organ pancreas parotid patient pelvis prostate rectum rib right sacrum skin skull spinal "
    "spine spleen stomach thorax thyroid trachea uterus ctv gtv ptv".split()
)


def clean_name(name: str) -> str:
    """The spelling of a source's name in a dataset made without a name map: lower case, words joined by underscores."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "_".join("".join(c if c.isalnum() else " " for c in folded).split())


def identifier_tokens(values: Iterable[str]) -> frozenset[str]:
    """The words of identifying header values (names of patients and physicians, ids) that no name may contain."""
    words = set()
    for value in values:
        words.update(re.split(r"[\W_]+", unicodedata.normalize("NFKC", value).casefold()))
        words.add(compact(value))
    # Shorter words (a middle initial, the running number of a study) occur in too many names.
    return frozenset(w for w in words if len(w) >= (4 if w.isdigit() else 3) and w not in _COMMON)


def why_private(name: str, identifiers: frozenset[str] = frozenset()) -> str:
    """Why a source's name must not be written into a dataset, or the empty string if it may be.

    A name may be written if it is made of letters, digits, ``_``, ``-`` and spaces, has a letter and at most
    :data:`MAX_NAME` characters, and contains no run of six digits, no date, no three groups of digits as in a
    telephone number, and none of ``identifiers`` (:func:`identifier_tokens` of the header of its file). Nothing can
    tell the surname of another person from a structure: where names are typed freely, use a name map.
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
