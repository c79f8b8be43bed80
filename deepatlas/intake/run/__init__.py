"""A run of ``deepatlas prepare``: planning, workers, journal and the end."""
