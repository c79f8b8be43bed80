"""The appearance of the tissues on CT: Hounsfield units, and their enhancement by contrast agent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PHASES = ("none", "arterial", "portal")


class Tissue(NamedTuple):
    """HU without contrast, enhancement in two phases, and sigma of the variation between exams and within one."""

    hu: float
    arterial: float = 0
    portal: float = 0
    jitter: float = 4
    texture: float = 4


TISSUES: dict[str, Tissue] = {
    "air": Tissue(-1000, jitter=0, texture=0),
    "skin": Tissue(15, jitter=6),
    "fat": Tissue(-104, jitter=5, texture=8),
    "visceral_fat": Tissue(-98, jitter=5, texture=8),
    "muscle": Tissue(52, 4, 10, jitter=4, texture=8),
    "soft": Tissue(35, 10, 20, jitter=5, texture=6),
    "cortical": Tissue(960, jitter=70, texture=50),
    "marrow": Tissue(200, jitter=25, texture=35),
    "tooth": Tissue(1500, jitter=80, texture=40),
    "cartilage": Tissue(95, 5, 5, jitter=8, texture=6),
    "gray_matter": Tissue(39, 4, 4, jitter=1.5, texture=2),
    "white_matter": Tissue(29, 2, 3, jitter=1.5, texture=2),
    "csf": Tissue(9, jitter=2, texture=2),
    "cord": Tissue(38, 2, 3, jitter=2, texture=2),
    "eye": Tissue(10, jitter=2, texture=2),
    "lens": Tissue(75, jitter=5, texture=2),
    "airway": Tissue(-990, jitter=2, texture=2),
    "lung": Tissue(-815, jitter=28, texture=26),
    "lung_dependent": Tissue(-755, jitter=30, texture=26),
    "lung_vessel": Tissue(-60, 260, 140, jitter=30, texture=20),
    "artery": Tissue(42, 285, 120, jitter=4),
    "vein": Tissue(42, 25, 125, jitter=4),
    "blood_right": Tissue(42, 190, 105, jitter=4),
    "blood_left": Tissue(42, 265, 115, jitter=4),
    "myocardium": Tissue(48, 62, 60, jitter=4, texture=5),
    "liver": Tissue(60, 14, 50, jitter=6, texture=5),
    "hepatic_vein": Tissue(44, 20, 105, jitter=4),
    "spleen": Tissue(50, 85, 68, jitter=4, texture=5),
    "kidney_cortex": Tissue(35, 140, 135, jitter=4, texture=5),
    "kidney_medulla": Tissue(31, 40, 115, jitter=4, texture=5),
    "pancreas": Tissue(42, 58, 48, jitter=5, texture=6),
    "gallbladder": Tissue(9, jitter=4, texture=2),
    "stomach_wall": Tissue(42, 40, 35, jitter=4),
    "stomach_fluid": Tissue(18, jitter=10, texture=5),
    "gas": Tissue(-900, jitter=30, texture=15),
    "bowel_wall": Tissue(42, 35, 38, jitter=4),
    "bowel_content": Tissue(24, jitter=8, texture=10),
    "stool": Tissue(-40, jitter=30, texture=45),
    "bladder_wall": Tissue(38, 15, 22, jitter=4),
    "urine": Tissue(6, jitter=4, texture=2),
    "thyroid": Tissue(108, 80, 60, jitter=10),
    "disc": Tissue(92, jitter=8, texture=6),
}

# Tissues of the small structures alone. They are apart because the random numbers of an exam are drawn tissue by
# tissue: one more above would change every exam.
SMALL_TISSUES: dict[str, Tissue] = {
    "crystalline_lens": Tissue(98, jitter=6, texture=2),
    "optic_nerve": Tissue(36, 2, 4, jitter=2, texture=2),
    "labyrinth": Tissue(260, jitter=30, texture=10),
    "gland": Tissue(34, 45, 58, jitter=6, texture=6),
    "adrenal": Tissue(26, 42, 48, jitter=5, texture=4),
}

TISSUE_NAMES = (*TISSUES, *SMALL_TISSUES)


def lookup(phase: str, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Random tables for one exam, indexed by tissue id: the HU of each tissue, and the sigma of its texture.

    The strength of the contrast and the HU of each tissue vary from exam to exam. Raises ValueError for a phase that is
    not one of :data:`PHASES`.
    """
    if phase not in PHASES:
        raise ValueError(f"phantom: phase must be one of {', '.join(PHASES)}, got {phase!r}")
    table = np.array([*TISSUES.values(), *SMALL_TISSUES.values()], dtype=np.float32)
    # A generator that is spawned leaves the numbers of its parent as they are.
    small = generator.spawn(1)[0].standard_normal(len(SMALL_TISSUES))
    strength = np.float32(generator.uniform(0.8, 1.1))
    draws = np.concatenate([generator.standard_normal(len(TISSUES)), small])
    jitter = draws.astype(np.float32).clip(-2, 2) * table[:, 3]
    rises = {"none": np.zeros_like(table[:, 0]), "arterial": table[:, 1], "portal": table[:, 2]}
    return table[:, 0] + strength * rises[phase] + jitter, table[:, 4] * np.float32(
        generator.uniform(0.7, 1.3)
    )
