"""Voxel spacings that no scanner of patients gives."""

from __future__ import annotations

from deepatlas.space.grid import Grid

# In mm. Cone-beam CT of the ear has 0.08, photon-counting CT 0.2; scouts and the thickest slices have at most 10.
SMALLEST, LARGEST = 0.05, 20.0


def odd_spacing(grid: Grid) -> list[str]:
    """A line about a grid whose voxels are too small or too large for the CT of a patient; empty for any other."""
    if all(SMALLEST <= s <= LARGEST for s in grid.spacing):
        return []
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing)
    unit = "metres or another unit than mm" if min(grid.spacing) < SMALLEST else "another unit than mm"
    return [f"its voxels are {spacing} mm (x, y, z): is the spacing in its header in {unit}?"]
