"""Facts of physical space and of the data that every part of the package shares; importing them needs NumPy alone."""

from __future__ import annotations

import numpy as np

# Multiplying points (x, y, z) by these signs turns RAS+ millimetres, which everything inside the package uses, into
# LPS millimetres, which ITK and DICOM use, and back.
LPS_SIGNS = np.array([-1.0, -1.0, 1.0])
# The same as a matrix for homogeneous points and affines: LPS = LPS_FROM_RAS @ RAS, and RAS = LPS_FROM_RAS @ LPS.
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Hounsfield units of a place that no ray has passed through. Scanners fill what lies outside their field of view with
# this value or a lower one, and lower ones are raised to it before anything is averaged.
AIR = -1024.0

# Voxels along each side of the network's input (section 5.2.1), and of the grid that it is averaged from (5.5.2).
MODEL_SIZE = 64
FINE_SIZE = 128

# A volume needs this many voxels along every axis: fewer slices hold no anatomy to learn from or to locate.
MIN_VOXELS = 4

# The largest id of a structure in a label image, whose voxels are uint8 or uint16. 0 is the background.
MAX_LABEL = 65535
