"""The contrast phase from the Hounsfield units of structures."""

from __future__ import annotations

import pytest

from deepatlas.index.phase import contrast_phase


@pytest.mark.parametrize(
    ("hu", "phase"),
    [
        ({"aorta": 40, "heart": 42, "liver": 58, "spleen": 48}, "none"),
        ({"aorta": 310, "heart": 230, "liver": 62, "spleen": 120}, "arterial"),
        ({"aorta": 150, "heart": 130, "liver": 105, "spleen": 112}, "venous"),
        # A vessel of few voxels is mixed with fat; the heart is not.
        ({"aorta": 180, "heart": 175}, "arterial"),
        ({"aorta": 120, "heart": 118}, "venous"),
        ({"aorta": 45, "heart": 118}, "venous"),
        ({"aorta": 120, "heart": None}, "venous"),
        # Blood before organs; a fatty liver beside a spleen that took up contrast.
        ({"aorta": 180, "liver": 62, "spleen": 55}, "arterial"),
        ({"aorta": 40, "liver": -400, "spleen": 45}, "none"),
        ({"aorta": 150, "liver": 95, "spleen": 110}, "venous"),
        ({"aorta": 120, "liver": 45, "spleen": 60}, "venous"),
        ({"heart": 45}, "none"),
        ({"heart": 200, "liver": None}, "arterial"),
        ({"liver": 60, "spleen": 125}, "arterial"),
        ({"liver": 104, "spleen": 110}, "venous"),
        ({"kidney_left": 160, "liver": 60}, None),
        ({"mandible": 600}, None),
        ({}, None),
    ],
)
def test_phases_of_usual_protocols(hu, phase):
    assert contrast_phase(hu) == phase
