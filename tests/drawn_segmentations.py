"""DICOM-SEG objects for tests, written by highdicom."""

from __future__ import annotations

import highdicom as hd
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

NAMES = ["Liver", "Left Lung", "Tumour"]


def segmentation(slices, masks, kind="BINARY", syntax=ExplicitVRLittleEndian, **keywords):
    """A DICOM-SEG of the series ``slices``.

    Args:
        slices: the data sets of the CT.
        masks: ``[planes, rows, columns, segments]``, bool, or float for FRACTIONAL; the segments are called NAMES.
        kind: the segmentation type.
        syntax: the transfer syntax.
        keywords: passed on to ``highdicom.seg.Segmentation``.
    """
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=NAMES[number - 1],
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number in range(1, masks.shape[-1] + 1)
    ]
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="deepatlas tests",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=syntax,
        **keywords,
    )
