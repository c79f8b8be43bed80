"""Training: a run folder, the recipe of its phases, and the loop that they share (``python -m deepatlas.train``)."""
