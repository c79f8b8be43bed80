"""From coordinates to anatomy: templates, segmentations on the exam's own grid, and points."""
