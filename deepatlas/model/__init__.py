"""A trained model: from an exam to the anatomical coordinate of each of its voxels."""
