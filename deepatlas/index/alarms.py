"""The names of what an exam may seem to be: mirrored, or turned."""

from __future__ import annotations

# With the axes (z, y, x) along which the exam would have to be flipped.
MIRRORED = ("left-right", (2,))
TURNED = (
    ("head-feet", (0,)),
    ("front-back", (1,)),
    # As when LPS is read as RAS.
    ("front-back and left-right", (1, 2)),
)
# What a question may ask for.
ALARMS = ("none", MIRRORED[0], *(name for name, _ in TURNED))
