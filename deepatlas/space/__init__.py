"""Physical space: grids, volumes, affine maps, and the way from a CT to the network's input."""
