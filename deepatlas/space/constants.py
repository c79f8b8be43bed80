"""Constants of physical space and of the data that the whole package shares. This module imports only NumPy."""

from __future__ import annotations

import numpy as np

# Multiplying points (x, y, z) by these signs converts RAS+ millimetres, which the package uses, into LPS millimetres,
# which ITK and DICOM use, and back.
LPS_SIGNS = np.array([-1.0, -1.0, 1.0])
# The same as a matrix for homogeneous points and affines: LPS = LPS_FROM_RAS @ RAS, and RAS = LPS_FROM_RAS @ LPS.
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Hounsfield units of air. Scanners fill the voxels outside their field of view with this value or a lower one; lower
# values are raised to it before voxels are averaged.
AIR = -1024.0

# The window of Hounsfield units that becomes [0, 1] (section 5.5.2). Images without a unit are stretched over it.
HU_RANGE = (-256.0, 256.0)

# Voxels along each side of the network's input (section 5.2.1), and of the finer grid that is pooled to it (5.5.2).
MODEL_SIZE = 64
FINE_SIZE = 128

# The smallest number of voxels along each axis of a volume. Fewer slices do not show enough anatomy.
MIN_VOXELS = 4

# The largest id of a structure in a label image, whose voxels are uint8 or uint16. 0 is the background.
MAX_LABEL = 65535
