"""Remove from messages what could identify a person."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from deepatlas.io.dicom.found import Refusal

# Words of paths and headers that are too common to identify anybody, and that messages need.
_ORDINARY = frozenset(
    "ct seg dicom data image images labels label mask exam series study scan file train test".split()
)
# English words of our messages by which a folder may be called ("body", "head", "slices").
_VOCABULARY = frozenset(
    "the and not for with file files slice slices voxel voxels axis axes image volume body head neck chest abdomen "
    "pelvis lung lungs liver spine contrast axial coronal sagittal spacing series study exam patient damaged "
    "truncated empty missing read copy export again check holds only one two three from its has are was "
    "archive archives scratch disk".split()
)
_UID = re.compile(r"\d+(\.\d+){3,}")
_PATH = re.compile(r"(?<![\w.])[~.]?(/[^\s:;,]+)+/?|[A-Za-z]:\\[^\s:;,]+")
_QUOTED = re.compile(r"(?<!\w)(['\"]).*?\1(?!\w)")
_BRACKETS = re.compile(r"\s*\(([^()]*)\)")
_LONG = re.compile(r"\d{6,}|(?<!\d)\d{1,4}[-/]\d{1,2}[-/]\d{1,4}(?!\d)")
# What follows a number that our messages count or measure. Long numbers are removed nevertheless; counts have commas.
_COUNTED = r"\s*(?:x\s*\d|%|(?:(?:of its |padding )?voxels|slices|images|files|frames|mm|HU|degrees)\b)"
# What brackets may contain: numbers, and the words that our own messages use with them. Other text may quote a file.
_MEASURES = re.compile(
    r"(\s|,|;|:|[-+]?\d+(\.\d+)?(e[-+]?\d+)?|[x×%°²³]|mm|cm|ml|hu|kv|degrees?|slices?|voxels?|frames?|files?|apart|up|to|of"
    r"|and|or|in|with|the|a|corners?|cosine|x|y|z|axis|axes|air|no|region|above|below|sheared|geometry|as|after|gantry|tilt"
    r"|axial|coronal|sagittal|oblique|part|number|without|after|slice|about|at|most|least|is|are|series|bits?|largest|smallest|median)*",
    re.IGNORECASE,
)  # fmt: skip


def public_text(text: str, secrets: Iterable[str] = ()) -> str:
    """A message as a dataset may state it: on one line, without anything that could identify a person.

    ``secrets`` are names and paths that are removed wherever they occur, as a whole and word by word. Quotations,
    paths, UIDs, dates, long numbers and bracketed remarks of libraries are removed in any case.
    """
    text = " ".join(str(text).split())
    whole = sorted({s for s in secrets if len(s) >= 2}, key=len, reverse=True)
    for secret in whole:
        if secret.lower() not in _ORDINARY:
            pattern = re.escape(secret)
            if secret.isdecimal():
                pattern = _number(secret)
            elif len(secret) < 5:
                pattern = rf"(?<!\w){pattern}(?!\w)"
            text = re.sub(pattern, "…", text, flags=re.IGNORECASE)
    words = {w for s in whole for w in re.split(r"[\W_]+", s) if len(w) >= 3 and w.lower() not in _ORDINARY}
    for word in sorted(words, key=len, reverse=True):
        if word.lower() not in _VOCABULARY:
            pattern = _number(word) if word.isdecimal() else re.escape(word)
            text = re.sub(pattern, "…", text, flags=re.IGNORECASE)
    text = _QUOTED.sub("…", text)
    text = _PATH.sub("…", text)
    text = _UID.sub("…", text)
    text = _LONG.sub("…", text)
    text = _BRACKETS.sub(lambda m: m.group(0) if _MEASURES.fullmatch(m.group(1)) else "", text)
    text = re.sub(r"…(\s*[:,;/._-]?\s*…)+", "…", text)
    return re.sub(r"^…\s*:\s*", "", text).strip() or "cannot be used"


def _number(digits: str) -> str:
    """The pattern of a number that is a secret, but not a part of another number, nor what a message counts."""
    return rf"(?<!\d)(?<!\d[.,]){digits}(?!\d|[.,]\d)(?!{_COUNTED})"


def path_parts(path: str) -> set[str]:
    """The folders and the file name of a path, each also up to its first dot."""
    parts = {part for part in PurePosixPath(path).parts if part != "/"}
    return parts | {part.split(".")[0] for part in parts}


def redacted(refusal: Refusal, secrets: Iterable[str] | None = None) -> Refusal:
    """The refusal with its ``public`` reason. Without ``secrets`` the parts of its name are what must not appear."""
    if secrets is None:
        secrets = ({refusal.name} | path_parts(refusal.name)) - {""}
    return replace(refusal, public=public_text(refusal.reason, secrets))
