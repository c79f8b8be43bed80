"""The body part of an exam, in the classes of the paper's Table 2, from how much of each structure it shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from deepatlas.names.meet import structure_and_side

# Table 2, in its order.
BODY_PARTS = (
    "head",
    "face",
    "neck",
    "head/neck",
    "chest",
    "abdomen/pelvis",
    "cervical spine",
    "thoracic spine",
    "lumbar spine",
    "whole body",
)
# Which section of the body a structure belongs to, by words of its name or of its name in TG-263. The first that fits
# counts; a structure that crosses sections, such as the cord, belongs to none.
_SECTIONS = (
    ("cervical spine", r"vb_?c\d|vertebrae?_?c\d|\bc[1-7]\b"),
    ("thoracic spine", r"vb_?t\d|vertebrae?_?t\d|\bt(1[0-2]|\d)\b"),
    ("lumbar spine", r"vb_?l\d|vertebrae?_?l\d|\bl[1-6]\b"),
    ("", r"spin|cord|canal|esophagus|oesophagus|skin|body|external|muscle|aorta|vena_?cava|trachea|airway"),
    (
        "head",
        r"brain|skull|cerebell|hippocamp|ventricle_?(lateral|third|fourth)|lobe_temporal|temporal|pituitary|chiasm|"
        r"opti|eye|orbit|lens|lacrimal|cochlea",
    ),
    (
        "face",
        r"mandible|parotid|submand|oral|teeth|tooth|tongue|maxill|sinus|lips|cheek|buccal|joint_tm|glnd_submand",
    ),
    ("neck", r"larynx|thyroid|pharyn|glottis|constrictor|cricoid|hyoid|carotid|jugular|brachialplex"),
    (
        "chest",
        r"lung|heart|atri|ventric|myocard|pulmon|sternum|rib|breast|clavic|scapul|thymus|bronch|humerus|costal",
    ),
    (
        "abdomen/pelvis",
        r"liver|spleen|stomach|kidney|bladder|pelvis|pancrea|adrenal|bowel|colon|duodenum|rectum|prostate|femur|hip|"
        r"psoas|sacrum|uterus|iliac|portal|seminal|glute|iliopsoas|intestin|urinary",
    ),
)
_SHOWN = 50
# The field of view of a protocol for the spine is narrower than a body, across and from front to back.
_NARROW_MM = 215.0


@cache
def section(name: str) -> str:
    """The section of the body that a structure belongs to; the empty string where that is not known."""
    base, _ = structure_and_side(name)
    words = re.sub(r"[\s-]+", "_", name).casefold()
    for text in (words, base.casefold()):
        for found, pattern in _SECTIONS:
            if re.search(pattern, text):
                return found
    return ""


def body_part(coverage: Mapping[str, float], extent_mm: Sequence[float]) -> str | None:
    """The class of Table 2.

    An exam that shows at least half of the structures of a section, on average, shows that section. Head and neck
    together are ``head/neck``; a chest with an abdomen is the one of which more is shown; both with a head or a neck
    are ``whole body``. A field of view that is narrow in both directions of the axial slice, and shows vertebrae, is a
    spine.

    Args:
        coverage: the percentage of each structure that the exam shows.
        extent_mm: the field of view (x, y, z).

    Returns:
        One of :data:`BODY_PARTS`; None where the template holds no structure that would tell, or the exam shows none.
    """
    shares: dict[str, list[float]] = {}
    for name, percent in coverage.items():
        shares.setdefault(section(name), []).append(percent)
    shares.pop("", None)
    mean = {part: sum(values) / len(values) for part, values in shares.items()}
    spines = {part: share for part, share in mean.items() if part.endswith("spine")}
    if spines and max(extent_mm[:2]) < _NARROW_MM and max(spines.values()) >= _SHOWN:
        return max(spines, key=lambda part: spines[part])
    shown = {part for part, share in mean.items() if share >= _SHOWN and part not in spines}
    trunk = shown & {"chest", "abdomen/pelvis"}
    if len(trunk) == 2 and shown & {"head", "neck", "face"}:
        return "whole body"
    if trunk:
        return max(trunk, key=lambda part: mean[part])
    if "head" in shown:
        return "head/neck" if "neck" in shown else "head"
    if "neck" in shown:
        return "neck"
    return "face" if "face" in shown else None
