"""The dataset that ``deepatlas prepare`` writes: its folder, manifest, quality report and check."""
