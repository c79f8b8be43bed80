"""Synthetic whole-body CTs whose every voxel knows its true place in the template."""
