"""From what a hospital or a challenge hands out to a dataset that training reads: ``deepatlas prepare``."""
