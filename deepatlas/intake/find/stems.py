"""What the name of an image tells of its case: ``volume-0`` and ``segmentation-0`` are the two images of case 0.

A stem is cut into words. Words that say what an image is (``ct``, ``volume``, ``seg``, ``gt``) are dropped; the others
name the case and, after it in the name of a label image, the structure or the reader.
"""

from __future__ import annotations

import re

# What a label image is called beside its CT: ``seg.nii.gz``, ``case_seg.nii.gz``, ``Segmentation.seg.nrrd`` …
DRAWN = (
    *("seg", "segmentation", "segmentations", "label", "labels", "mask", "masks", "msk", "gt", "dseg"),
    *("annotation", "annotations", "groundtruth"),
)
# What a CT is called: ``img.nrrd``, ``volume-0.nii``, ``CT_IMAGE.nrrd``, ``case_ct.nii.gz`` …
_SCANS = ("ct", "img", "image", "images", "imaging", "volume", "vol", "data", "scan")
_SAYS_WHAT = re.compile(rf"({'|'.join((*DRAWN, *_SCANS))})(\d*)")
# Entities of BIDS that describe a derived image and not its case.
_DERIVED = re.compile(r"(?:^|_)(?:desc|space|res|den|seg|label)-[^\W_]+")
_BIDS_LABEL = re.compile(r"(?:^|_)label-([^\W_]+)")
# The structures of VISCERAL Anatomy3, whose masks are called ``<CT>_<RadLex id>_<reader>``.
_RADLEX = {
    58: "liver", 86: "spleen", 170: "pancreas", 187: "gallbladder", 237: "urinary bladder", 480: "aorta",
    1247: "trachea", 1302: "right lung", 1326: "left lung", 2473: "sternum", 7578: "thyroid gland",
    29193: "first lumbar vertebra", 29662: "right kidney", 29663: "left kidney", 30324: "right adrenal gland",
    30325: "left adrenal gland", 32248: "right psoas major muscle", 32249: "left psoas major muscle",
    40357: "right rectus abdominis muscle", 40358: "left rectus abdominis muscle",
}  # fmt: skip

Words = tuple[str, ...]


def words_of(stem: str) -> Words:
    """The words of a stem that name its case, and in a label image its structure, in the spelling of the stem.

    ``img0001`` and ``label0001`` both give ``("0001",)``.
    """
    if stem.lower().startswith("sub-"):
        stem = _DERIVED.sub("", stem)
    words = []
    for word in re.findall(r"[^\W_]+", stem):
        what = _SAYS_WHAT.fullmatch(word.lower())
        if what is None:
            words.append(word)
        elif what[2]:
            words.append(what[2])
    return tuple(words)


def folded(words: Words) -> Words:
    """Words as they are compared."""
    return tuple(word.casefold() for word in words)


def says_drawn(stem: str) -> bool:
    """Whether a stem ends with a word that label images are called by."""
    return stem.lower() in DRAWN or any(
        stem.lower().endswith(join + mark) for mark in DRAWN for join in ("_", "-", ".")
    )


def structure_of(stem: str, rest: Words | None) -> str:
    """The structure that the name of a mask states, or the empty string.

    Args:
        stem: of the mask.
        rest: its words after those of its case; None if its name does not begin with its case.
    """
    if stem.lower().startswith("sub-") and (entity := _BIDS_LABEL.search(stem)):
        return entity[1]
    if rest is None:
        # The words beside "seg" are those of a case, for all that is known: "case12_seg".
        named = {word.lower() for word in re.findall(r"[^\W_]+", stem)}
        return stem if named.isdisjoint(DRAWN) and words_of(stem) else ""
    if len(rest) == 2 and all(word.isdecimal() for word in rest):
        return _RADLEX.get(int(rest[0]), "")
    return "_".join(rest) if any(c.isalpha() for word in rest for c in word) else ""


def other_case(words: Words, of: Words) -> bool:
    """Whether two names differ in their numbers alone: ``spleen_1`` and ``spleen_2`` are two cases."""
    numbers = [[w for w in folded(x) if any(map(str.isdigit, w))] for x in (words, of)]
    texts = [[re.sub(r"\d+", "", w) for w in folded(x)] for x in (words, of)]
    return numbers[0] != numbers[1] and texts[0] == texts[1]
