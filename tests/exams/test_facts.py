"""The allow-list of scanner settings that an exam file may state."""

from __future__ import annotations

import json

from deepatlas.exams.facts import allowed_facts


def test_facts_that_may_be_kept():
    facts = {
        "kvp": 120.0, "slice_thickness": 2.99996, "kernel": "Br40d\\3", "contrast": True, "pixel_spacing": [0.7, 0.7],
        "modality": "CT", "transfer_syntax": "1.2.840.10008.1.2.4.90", "orientation": "axial",
    }  # fmt: skip
    kept = allowed_facts(facts)
    assert kept == facts | {"contrast": "yes", "kvp": 120, "slice_thickness": 3}
    assert json.loads(json.dumps(kept)) == kept


def test_every_kernel_that_is_known_may_be_kept():
    for kernel in ("B30f", "Br40d\\3", "FC08", "FC13-H", "YA", "AA", "CHEST", "STND", "Bone Plus"):
        assert allowed_facts({"kernel": kernel}) == {"kernel": kernel}
    for kernel in ("", "Doe", "Br40d\\Doe", "Jane\\3", "FC13-JANE"):
        assert allowed_facts({"kernel": kernel}) == {"kernel": "other"}


def test_facts_that_identify():
    facts = {
        "patient_name": "Doe^Jane", "series_description": "Doe Jane 1970", "kernel": "JANE DOE", "modality": "Jane",
        "kvp": "Jane", "rows": 19700101, "slices": [19700101], "orientation": ["Jane", "Doe"], "spacing": float("nan"),
        "transfer_syntax": "1.2.840.10008.1.2.1234567.19700101", "contrast": "Doe", "columns": True,
    }  # fmt: skip
    kept = allowed_facts(facts)
    assert set(kept.values()) == {"other"}
    assert set(kept) == {"kernel", "modality", "orientation", "transfer_syntax", "contrast"}
