"""Templates: structures defined once in coordinate space (section 5.2.7)."""
