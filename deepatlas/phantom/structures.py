"""The structures of the phantom, and the ids of their labels."""

from __future__ import annotations

STRUCTURES: dict[str, int] = {
    name: i
    for i, name in enumerate(
        (
            "brain", "skull", "mandible", "airway", "spine", "spinal_canal", "humerus_right", "humerus_left",
            "lung_right", "lung_left", "heart", "aorta", "liver", "spleen", "stomach",
            "kidney_right", "kidney_left", "bladder", "pelvis", "femur_right", "femur_left",
        ),
        start=1,
    )
}  # fmt: skip

# Painted and labelled only where all structures are asked for. The orbit is the eyeball with the lens cut out, as the
# paper and radiotherapy use the word.
SMALL_STRUCTURES = (
    "orbit_right", "orbit_left", "lens_right", "lens_left", "optic_nerve_right", "optic_nerve_left",
    "lacrimal_gland_right", "lacrimal_gland_left", "cochlea_right", "cochlea_left", "parotid_gland_right",
    "parotid_gland_left", "submandibular_gland_right", "submandibular_gland_left", "thyroid", "gallbladder",
    "pancreas", "adrenal_right", "adrenal_left", "psoas_right", "psoas_left",
)  # fmt: skip
ALL_STRUCTURES = STRUCTURES | {name: i for i, name in enumerate(SMALL_STRUCTURES, start=len(STRUCTURES) + 1)}
