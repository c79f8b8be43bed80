"""Templates: masks of structures in the learned coordinate space (section 5.2.7)."""
