"""Choose the series of an exam that is used: the axial soft-tissue reconstruction with the most slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepatlas.errors import DataError
from deepatlas.io.dicom.kernel import SHARP, SOFT
from deepatlas.io.dicom.series import Choice, DicomSeries, Verdict

# Values of ImageType of images that are computed from a CT and show something else than anatomy.
_NOT_ANATOMY = frozenset(
    "MIP MINIP MIN_IP DOSE_INFO DOSE VRT PERFUSION CBF CBV MTT TTP TMAX 3D RGB OVERLAY IODINE EFF_Z RHO_Z SUBTRACTION "
    "BONE_REMOVED".split()
) | {"PROJECTION IMAGE", "SCREEN SAVE", "SCREEN CAPTURE"}  # fmt: skip
_CT_KINDS = ("CT Image", "Enhanced CT Image", "Legacy Converted Enhanced CT Image")


def choose_series(
    series: Sequence[DicomSeries], override: str | int | None = None, tried: Mapping[str, str] | None = None
) -> Choice:
    """Choose among the series of one exam.

    Candidates are the CT series that are axial, without gaps, and reconstructed for soft tissue or for an unknown
    purpose (never those known to be sharp); original series go before derived ones. The candidate with the most slices
    is taken. Ties are broken in favour of the series known to be for soft tissue, the longer range, the smaller
    pixels, the lower number and the lower UID, in this order.

    Args:
        series: all series of the exam.
        override: a SeriesNumber or a SeriesInstanceUID (with its ``#2`` if the series was split). This series is
            taken whatever the rules say, as long as it is a CT volume.
        tried: ``{DicomSeries.series: reason}`` of the series whose pixels could not be used, in the order in which
            they were tried; the next best one is taken.

    Returns:
        A :class:`~deepatlas.io.dicom.series.Choice`, whose ``taken`` is None if no series qualifies. The verdicts hold
        no free text of the headers.

    Raises:
        DataError: ``override`` names no series, or more than one, or a series that is not a CT volume.
    """
    names = series_names(series)
    if override is not None and str(override) != "":
        return _overridden(series, names, str(override))
    turns = {
        uid: f"tried {'next' if i else 'first'}, but {why}"
        for i, (uid, why) in enumerate((tried or {}).items())
    }
    against = [turns.get(one.series) or _against(one) for one in series]
    fit = [i for i, reason in enumerate(against) if not reason]
    original = [i for i in fit if not _derived(series[i])]
    if original:
        for i in fit:
            if i not in original:
                against[i] = "derived from other images, and an original series is there"
        fit = original
    fit.sort(key=lambda i: _rank(series[i]))
    reasons = {}
    for i, name in enumerate(names):
        if not against[i] and i != fit[0]:
            against[i] = _second(series[i], series[fit[0]])
        if against[i]:
            reasons[name] = Verdict(False, against[i], tried=series[i].series in turns)
        else:
            merit = _merit(series[i], len(fit)) + ", of those that can be used" * bool(tried)
            reasons[name] = Verdict(True, merit)
    return Choice(series[fit[0]] if fit else None, reasons)


def series_names(series: Sequence[DicomSeries]) -> list[str]:
    """Unique names for the series of an exam, made of number and geometry without any text of the headers."""
    names: list[str] = []
    for one in series:
        f = one.facts
        number = "without number" if f["number"] is None else str(f["number"])
        part = f" part {one.series.rpartition('#')[2]}" if "#" in one.series else ""
        size = f"{f['slices']} x {f['rows']} x {f['columns']}"
        spacing = ", " + " x ".join(f"{v:.3g}" for v in f["spacing"]) + " mm" if f["spacing"] else ""
        base = f"series {number}{part} ({f['orientation'] or f['kind']}, {size}{spacing})"
        name, again = base, 2
        while name in names:
            name, again = f"{base} [{again}]", again + 1
        names.append(name)
    return names


def no_anatomy(one: DicomSeries) -> str:
    """Why a series that was computed from a CT shows something else than anatomy, or the empty string."""
    kinds = sorted(_NOT_ANATOMY & set(one.facts["image_type"].split("\\")))
    return f"it is computed from a CT and shows something else (ImageType {kinds[0]})" if kinds else ""


def _overridden(series: Sequence[DicomSeries], names: list[str], override: str) -> Choice:
    hits = [i for i, one in enumerate(series) if one.series == override]
    hits = hits or [i for i, one in enumerate(series) if str(one.facts["number"]) == override]
    listed = "; ".join(names[:8]) + (" …" if len(names) > 8 else "")
    if len(hits) > 1:
        # A scout or a picture of the same number does not make the number ambiguous.
        hits = [i for i in hits if not _unusable(series[i])] or hits
    if not hits:
        raise DataError(f"no such series as the one asked for; the exam has: {listed}")
    if len(hits) > 1:
        raise DataError(f"the series number asked for fits {len(hits)} series; give the SeriesInstanceUID")
    if problem := _unusable(series[hits[0]]):
        raise DataError(f"{names[hits[0]]} was asked for, but {problem}")
    reasons = {name: Verdict(False, "another series was asked for") for name in names}
    reasons[names[hits[0]]] = Verdict(True, "asked for")
    return Choice(series[hits[0]], reasons)


def _unusable(one: DicomSeries) -> str:
    """Why a series cannot be a CT volume at all, or the empty string."""
    f = one.facts
    if f["kind"] not in _CT_KINDS or f["modality"] != "CT":
        modality = f" (modality {f['modality']})" if f["modality"] else ""
        return f"it is no CT: {f['kind']}{modality}"
    if f["localizer"]:
        return "it is a localizer (scout)"
    if f["problem"]:
        return f["problem"]
    if not f["hounsfield"]:
        return "its values are not Hounsfield units (RescaleType)"
    return ""


def _against(one: DicomSeries) -> str:
    """Why a series is no candidate, or the empty string."""
    f = one.facts
    if reason := _unusable(one):
        return reason
    if reason := no_anatomy(one):
        return reason
    if f["orientation"] != "axial":
        return f"it is {f['orientation']}, not axial"
    # Up to two images at each position may be copies: the reader compares their pixels.
    if f["images"] > 2 * f["slices"]:
        return f"it has {f['images']} images for {f['slices']} places: several times or energies"
    if f["tissue"] == SHARP:
        kernel = f" (kernel {f['kernel']})" if f["kernel"] else ""
        return f"it is a sharp reconstruction, for bone or lung{kernel}"
    return ""


def _derived(one: DicomSeries) -> bool:
    return "DERIVED" in one.facts["image_type"].split("\\")


def _rank(one: DicomSeries) -> tuple:
    f = one.facts
    spacing = f["spacing"] or (0.0, 0.0, 0.0)
    return (-f["slices"], f["tissue"] != SOFT, -f["extent"], spacing[0], f["number"] or 0, one.series)


def _merit(one: DicomSeries, fit: int) -> str:
    what = "axial soft-tissue reconstruction"
    if one.facts["tissue"] != SOFT:
        what = "axial reconstruction of unknown purpose"
    return f"the only {what}" if fit == 1 else f"{what} with the most slices of {fit} that fit"


def _second(one: DicomSeries, best: DicomSeries) -> str:
    if one.facts["slices"] < best.facts["slices"]:
        return f"{one.facts['slices']} slices are fewer than {best.facts['slices']}"
    return "as many slices as the one taken, which comes first by purpose, range, pixel size or number"
