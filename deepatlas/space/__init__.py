"""Physical space: grids, volumes, affine maps, and the resampling of a CT to the input of the network."""
