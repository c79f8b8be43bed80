"""Phantoms: synthetic whole-body CTs for which the true template coordinate of every voxel is known."""
